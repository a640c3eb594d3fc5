"""The study that ``polyclinic demo`` runs on the synthetic centres."""

from __future__ import annotations

from importlib.resources import files

from polyclinic.core import study as studies
from polyclinic.core.study import Study


def demo_study() -> Study:
    """examples/demo.toml, as it ships in the package."""
    return studies.loads(files("polyclinic.simulations").joinpath("demo.toml").read_text(encoding="utf-8"), "demo.toml")
