from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

with warnings.catch_warnings():  # typer 0.20 imports names that click has deprecated since
    warnings.simplefilter("ignore", DeprecationWarning)
    import typer  # noqa: F401


class Digits:
    """A task that knows the labels 0, 1 and 2."""

    classes = ("0", "1", "2")

    needs = "label"

    def target(self, label: str) -> int:
        if label not in self.classes:
            raise ValueError(f"unknown label '{label}'; the study knows 0, 1, 2")
        return int(label)


@pytest.fixture
def task() -> Digits:
    return Digits()


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    """Writes a picture of random pixels, different for every name, into the manifest's folder."""

    def make(name: str, shape: tuple[int, ...] = (16, 16)) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(list(name.encode())).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return make


@pytest.fixture
def manifest(tmp_path: Path, picture: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a manifest, and the pictures that its first column names unless ``pictures`` is False."""

    def make(header: str, lines: Iterable[str], pictures: bool = True) -> Path:
        held = list(lines)
        for line in held:
            name = line.split(",")[0].strip()
            if pictures and name.endswith(".png"):
                picture(name)
        path = tmp_path / "manifest.csv"
        path.write_text("\n".join([header, *held]) + "\n", encoding="utf-8")
        return path

    return make
