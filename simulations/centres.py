"""Synthetic centres: made-up hospitals that differ by named knobs, so that a known shift can be dialled in.

A patient is decided by the seed, the centre's name and the patient's number alone, and each purpose has a stream of
its own: turning one knob leaves everything else as it was, and no centre's pictures depend on another's.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from polyclinic.core.errors import DataError
from polyclinic.simulations.phantom import Field, Finding, Lesion, picture, waves

NORMAL, LESION = "normal", "lesion"
COLUMNS = ("path", "site", "label", "split", "patient_id", "truth", "lesion_radius", "lesion_x", "lesion_y")
"""Of the manifest. ``label`` is what the centre says, ``truth`` what is there; lengths are in pixels."""


def _within(where: str, knob: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise DataError(f"{knob} = {value} makes no sense", where=where, remedy=f"give {low:g} to {high:g}")


@dataclass(frozen=True)
class Scanner:
    """How a centre acquires its pictures; the knobs are applied in the order in which they are listed.

    Grey levels are shares of the full scale: 0.1 is 25.5 of the 255 that are written.

    Args:
        blur: standard deviation of the point spread in pixels of a 128-pixel picture; it scales with the size.
        bias_field: relative amplitude (standard deviation) of a slow multiplicative shading, new in every picture.
        gamma: exponent of the grey levels; above 1 darkens the middle.
        contrast: factor about the middle grey 0.5.
        brightness: grey level that is added.
        vignette: share of the brightness that is lost in the corners, in [0, 1].
        noise: standard deviation of white Gaussian noise, in grey levels.
        inverted: whether white and black are exchanged.

    Raises:
        DataError: a knob has no meaning.
    """

    blur: float = 0.6
    bias_field: float = 0.0
    gamma: float = 1.0
    contrast: float = 1.0
    brightness: float = 0.0
    vignette: float = 0.0
    noise: float = 0.03
    inverted: bool = False

    def __post_init__(self) -> None:
        for knob, low, high in (
            ("blur", 0, 16), ("bias_field", 0, 1), ("gamma", 0.05, 20), ("contrast", 0.01, 100),
            ("brightness", -1, 1), ("vignette", 0, 1), ("noise", 0, 1),
        ):  # fmt: skip
            _within("scanner", knob, getattr(self, knob), low, high)

    def scan(self, clean: Field, rng: np.random.Generator) -> NDArray[np.uint8]:
        """The picture that this scanner makes of ``clean``, (size, size) in [0, 1]: same shape, 8 bits."""
        size = len(clean)
        shading, grain = waves(rng, size, 4, 1.0), rng.standard_normal(clean.shape)
        field = ndimage.gaussian_filter(clean, self.blur * size / 128) if self.blur else clean
        field = np.clip(field * (1 + self.bias_field * shading), 0, None) ** self.gamma
        field = (field - 0.5) * self.contrast + 0.5 + self.brightness
        axis = np.linspace(-1, 1, size) ** 2
        field = field * (1 - self.vignette * (axis[:, None] + axis[None, :]) / 2) + self.noise * grain
        levels = np.rint(255 * np.clip(field, 0, 1)).astype(np.uint8)
        return 255 - levels if self.inverted else levels


@dataclass(frozen=True)
class Centre:
    """A made-up hospital.

    Args:
        name: names the site and its folder, and seeds its patients: lower-case letters, digits, ``_`` and ``-``.
        patients: how many, at least 1.
        prevalence: chance that a patient has a lesion.
        scanner: how its pictures are acquired.
        missed: chance that a lesion smaller than ``lesion_size`` (about half of all are) is labelled normal.
        overcalled: chance that a healthy patient is labelled as having a lesion.
        label_flip: chance that a label is turned round after that, whatever it is.
        lesion_contrast: how much brighter than its organ a lesion is, in grey levels; may be negative.
        lesion_size: middle radius of the lesions as a share of the picture's side; they range from 0.6 to 1.4 of it.
        images_per_patient: slices of each patient, alike but not the same; all carry the patient's one label.

    Raises:
        DataError: a knob has no meaning.
    """

    name: str
    patients: int
    prevalence: float = 0.4
    scanner: Scanner = Scanner()
    missed: float = 0.0
    overcalled: float = 0.0
    label_flip: float = 0.0
    lesion_contrast: float = 0.28
    lesion_size: float = 0.06
    images_per_patient: int = 1

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", self.name):
            raise DataError(
                f"'{self.name}' cannot name a centre", where="centre", remedy="use lower-case letters, digits, _ and -"
            )
        for knob, low, high in (
            ("patients", 1, 10**6), ("prevalence", 0, 1), ("missed", 0, 1), ("overcalled", 0, 1), ("label_flip", 0, 1),
            ("lesion_contrast", -1, 1), ("lesion_size", 0.005, 0.15), ("images_per_patient", 1, 1000),
        ):  # fmt: skip
            _within(self.name, knob, getattr(self, knob), low, high)


class Patient(NamedTuple):
    """One patient of a centre: the number, the lesion (None: healthy), the label given, and the place in the queue."""

    number: int
    lesion: Lesion | None
    label: str
    order: float


def demo_centres() -> tuple[Centre, ...]:
    """Five centres, 1,060 pictures: a large one to measure by, and four of which each differs in one way that hurts."""
    old = Scanner(blur=1.0, bias_field=0.15, gamma=1.3, contrast=0.8, brightness=0.06, vignette=0.3, noise=0.05)
    return (
        Centre("large_hospital", patients=360),
        Centre("small_clinic", patients=45, images_per_patient=2),
        Centre("old_scanner", patients=195, scanner=old),
        Centre("screening_unit", patients=245, prevalence=0.15),
        Centre("hurried_readers", patients=170, missed=0.5, overcalled=0.05),
    )


def write_centres(folder: Path, centres: Sequence[Centre], *, seed: int, size: int = 128) -> Path:
    """Writes the pictures of ``centres`` and the manifest that lists them.

    The same arguments give the same bytes. Patients are split into train, val and test (0.5, 0.15, 0.35 of each
    label); from three patients of a label on, every split has one. The manifest stands only while it is true: an
    old one goes before the first picture is written, the new one comes, at once, after the last.

    Args:
        folder: where to write; made if absent.
        centres: at least one, their names distinct.
        seed: not negative.
        size: side of the pictures in pixels, from 32 to 1024.

    Returns:
        The path of ``manifest.csv``, whose paths are relative to ``folder``; see ``COLUMNS``.

    Raises:
        DataError: the arguments make no sense.
        OSError: the folder cannot be written.
    """
    _within("write_centres", "seed", seed, 0, 2**64)
    _within("write_centres", "size", size, 32, 1024)
    names = [centre.name for centre in centres]
    if not names or len(set(names)) < len(names):
        raise DataError("needs centres, each with its own name", where="write_centres", remedy="rename or add some")
    manifest = folder / "manifest.csv"
    manifest.unlink(missing_ok=True)
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    for centre in centres:
        (folder / centre.name).mkdir(parents=True, exist_ok=True)
        for row, levels in _rows(centre, seed, size):
            # Light compression: noise hardly compresses, and time matters more than bytes here.
            Image.fromarray(levels).save(folder / row["path"], format="PNG", compress_level=1)
            table.writerow(row)
    draft = folder / "manifest.csv.tmp"
    draft.write_text(text.getvalue(), encoding="utf-8", newline="")
    os.replace(draft, manifest)  # noqa: PTH105
    return manifest


def roster(centre: Centre, *, seed: int) -> list[Patient]:
    """The patients of ``centre``, in order of their numbers: who is ill, and what the centre says."""
    return [_patient(centre, seed, number) for number in range(centre.patients)]


def image(centre: Centre, patient: Patient, index: int, *, seed: int, size: int) -> tuple[Field, Finding | None]:
    """Slice ``index`` of ``patient`` before the scanner, (size, size) in about [0, 1], and where its lesion lies."""
    anatomy = _stream(seed, centre.name, patient.number, "anatomy")
    return picture(anatomy, _stream(seed, centre.name, patient.number, index, "slice"), size, patient.lesion)


def _rows(centre: Centre, seed: int, size: int) -> Iterator[tuple[dict[str, str], NDArray[np.uint8]]]:
    patients = roster(centre, seed=seed)
    splits = _splits(patients)
    for patient in patients:
        name = f"{centre.name}-{patient.number:05d}"
        for index in range(centre.images_per_patient):
            clean, finding = image(centre, patient, index, seed=seed, size=size)
            levels = centre.scanner.scan(clean, _stream(seed, centre.name, patient.number, index, "scanner"))
            where = ["", "", ""] if finding is None else [f"{v:.2f}" for v in (finding.radius, finding.x, finding.y)]
            truth, path = (LESION if patient.lesion else NORMAL), f"{centre.name}/{name}-{index:02d}.png"
            values = (path, centre.name, patient.label, splits[patient.number], name, truth, *where)
            yield dict(zip(COLUMNS, values, strict=True)), levels


def _patient(centre: Centre, seed: int, number: int) -> Patient:
    # Knobs are thresholds of fixed draws: raising the prevalence makes more patients ill and none well.
    ill, read, turned, order = _stream(seed, centre.name, number, "fate").random(4)
    rng = _stream(seed, centre.name, number, "lesion")
    factor = rng.uniform(0.6, 1.4)
    lesion = Lesion.draw(rng, centre.lesion_contrast, centre.lesion_size * factor) if ill < centre.prevalence else None
    seen = read >= centre.missed or factor >= 1 if lesion else read < centre.overcalled
    return Patient(number, lesion, LESION if seen != (turned < centre.label_flip) else NORMAL, float(order))


def _splits(patients: Sequence[Patient]) -> dict[int, str]:
    splits = {}
    for label in (NORMAL, LESION):
        queue = sorted((p for p in patients if p.label == label), key=lambda p: p.order)
        scarce = len(queue) < 3  # train first, then test: a model is worth more than its choice on validation
        test = len(queue) // 2 if scarce else max(1, round(0.35 * len(queue)))
        val = 0 if scarce else max(1, round(0.15 * len(queue)))
        for place, patient in enumerate(queue):
            splits[patient.number] = "test" if place < test else "val" if place < test + val else "train"
    return splits


def _stream(seed: int, *purpose: str | int) -> np.random.Generator:
    # Hashed, so that neither the order of drawing nor another centre's size moves anything.
    digest = hashlib.sha256("/".join(map(str, (seed, *purpose))).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
