"""Polyclinic: hospitals adapt a medical-imaging foundation model together while every image stays at home.

>>> import polyclinic
>>> study = polyclinic.demo_study()
>>> study.rounds.count
8

``simulate(study, data="manifest.csv", run="runs/first")`` gives a ``Run`` whose ``summary``, ``rounds``, ``adapter``
and ``report`` can be read; ``evaluate(run, data="others.csv")`` judges it elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from polyclinic.core.runs import Run
    from polyclinic.core.study import Study
    from polyclinic.server.rounds import Observer

__all__ = ["demo_study", "evaluate", "load_study", "network", "read_run", "simulate"]


def load_study(path: Path | str) -> Study:
    """The study in a TOML file; raises StudyError for whatever is wrong with it."""
    from polyclinic.core import study

    return study.load(path)


def demo_study() -> Study:
    """The study that ``polyclinic demo`` runs."""
    from polyclinic.simulations import demo

    return demo.demo_study()


def simulate(
    study: Study, data: Path | str, run: Path | str, *, observe: Observer | None = None, **options: Any
) -> Run:
    """Simulates ``study`` on the images of manifest ``data`` into the folder ``run``.

    Options: ``engine``, ``workers``, ``ray_address``, ``baselines``, ``resume``, ``policy``, as on the command line.
    """
    from polyclinic.simulations.simulate import Options
    from polyclinic.simulations.simulate import simulate as carry_out

    return carry_out(study, Path(data), Path(run), Options(**options), observe or (lambda event: None))


def read_run(folder: Path | str) -> Run:
    """A finished run; raises RunError if the folder holds none."""
    from polyclinic.core import runs

    return runs.read(folder)


def evaluate(run: Run, data: Path | str, split: str = "test") -> dict[str, Any]:
    """Metrics with 95 % intervals of the run's model on the images of manifest ``data``, by site and pooled."""
    from polyclinic.simulations.evaluate import evaluate as judge

    return judge(run, Path(data), split)


def network(study: Study) -> nn.Module:
    """The study's backbone and head before adaptation: what ``PeftModel.from_pretrained`` wants as its base."""
    from polyclinic.models.network import plain

    return plain(study)
