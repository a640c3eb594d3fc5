"""Synthetic centres: the same bytes again, each knob alone, splits by patient, no centre moved by another."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from polyclinic.core.errors import DataError
from polyclinic.simulations.centres import (
    COLUMNS,
    LESION,
    NORMAL,
    Centre,
    Patient,
    Scanner,
    demo_centres,
    image,
    roster,
    write_centres,
)
from polyclinic.simulations.phantom import Lesion, picture, waves

PLAIN = Centre("plain", patients=12)
IDEAL = Scanner(blur=0.0, noise=0.0)


def table(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def turned(**knobs: object) -> Centre:
    return dataclasses.replace(PLAIN, **knobs)  # type: ignore[arg-type]


def scans(scanner: Scanner, count: int = 6) -> NDArray[np.float64]:
    """Pictures of the same patients through ``scanner``: (count, 64, 64), grey levels in [0, 1]."""
    pictures = []
    for i in range(count):
        clean, _ = picture(np.random.default_rng([i, 0]), np.random.default_rng([i, 1]), 64, None)
        pictures.append(scanner.scan(clean, np.random.default_rng([i, 2])) / 255)
    return np.stack(pictures)


def share(patients: Sequence[Patient], label: str) -> float:
    return sum(p.label == label for p in patients) / len(patients)


def within_binomial(observed: float, p: float, n: int) -> bool:
    """Four standard deviations: a right implementation fails about once in 16,000 seeds, and the seed is fixed."""
    return abs(observed - p) <= 4 * math.sqrt(p * (1 - p) / n) + 1e-12


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_centres(tmp_path / name, [PLAIN], seed=seed, size=48)
    first, again, other = (contents(tmp_path / name) for name in "abc")
    assert first == again
    assert len(first) == 13
    pictures = [name for name in first if name.endswith(".png")]
    assert all(first[name] != other[name] for name in pictures)
    assert len({first[name] for name in pictures}) == len(pictures)


def test_a_centre_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    neighbours = [Centre("other", 3, images_per_patient=2), PLAIN, Centre("third", 2)]
    alone = table(write_centres(tmp_path / "alone", [PLAIN], seed=1, size=48))
    among = table(write_centres(tmp_path / "among", neighbours, seed=1, size=48))
    assert [row for row in among if row["site"] == "plain"] == alone
    assert contents(tmp_path / "alone" / "plain") == contents(tmp_path / "among" / "plain")


def test_more_patients_leave_the_earlier_ones_as_they_were() -> None:
    few, many = roster(PLAIN, seed=5), roster(turned(patients=30), seed=5)
    assert [(p.label, p.order) for p in many[:12]] == [(p.label, p.order) for p in few]


def test_the_manifest_lists_what_was_written(tmp_path: Path) -> None:
    manifest = write_centres(tmp_path / "new" / "folder", [turned(images_per_patient=2, missed=1.0)], seed=0, size=40)
    rows = table(manifest)
    assert manifest.name == "manifest.csv"
    assert tuple(rows[0]) == COLUMNS
    assert set(contents(manifest.parent)) == {row["path"] for row in rows} | {"manifest.csv"}
    for row in rows:
        with Image.open(manifest.parent / row["path"]) as stored:
            assert (stored.mode, stored.size, stored.format) == ("L", (40, 40), "PNG")
        assert {row["label"], row["truth"]} <= {NORMAL, LESION}
        assert all((row[key] == "") == (row["truth"] == NORMAL) for key in ("lesion_radius", "lesion_x", "lesion_y"))
        if row["truth"] == LESION:
            assert all(0 <= float(row[key]) < 40 for key in ("lesion_x", "lesion_y"))


def test_no_manifest_stands_beside_half_written_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_centres(tmp_path, [PLAIN], seed=0, size=32)

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="no space"):
        write_centres(tmp_path, [PLAIN], seed=1, size=32)
    assert not manifest.exists()


def test_splits_are_by_patient_and_hold_both_labels(tmp_path: Path) -> None:
    centre = Centre("many", patients=60, images_per_patient=2, prevalence=0.3)
    rows = table(write_centres(tmp_path, [centre], seed=2, size=32))
    of_patient: dict[str, set[str]] = {}
    for row in rows:
        of_patient.setdefault(row["patient_id"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in of_patient.values())
    held = {(row["split"], row["label"]) for row in rows}
    assert held == {(split, label) for split in ("train", "val", "test") for label in (NORMAL, LESION)}
    for split, wanted in (("train", 0.5), ("val", 0.15), ("test", 0.35)):
        assert sum(split in splits for splits in of_patient.values()) / 60 == pytest.approx(wanted, abs=0.03)


@pytest.mark.parametrize(
    ("patients", "splits"), [(1, ["train"]), (2, ["test", "train"]), (3, ["test", "train", "val"])]
)
def test_the_smallest_centres_fill_train_first(tmp_path: Path, patients: int, splits: list[str]) -> None:
    rows = table(write_centres(tmp_path, [Centre("tiny", patients, prevalence=0.0)], seed=0, size=32))
    assert sorted(row["split"] for row in rows) == splits


@pytest.mark.parametrize("prevalence", [0.0, 0.1, 0.5, 1.0])
def test_prevalence_is_the_share_of_the_ill(prevalence: float) -> None:
    patients = roster(turned(patients=800, prevalence=prevalence), seed=7)
    assert within_binomial(sum(p.lesion is not None for p in patients) / 800, prevalence, 800)
    assert all((p.label == LESION) == (p.lesion is not None) for p in patients)


def test_more_prevalence_makes_patients_ill_and_changes_only_their_lesions() -> None:
    rare, common = (turned(patients=40, prevalence=p) for p in (0.2, 0.7))
    newly_ill = 0
    for before, after in zip(roster(rare, seed=0), roster(common, seed=0), strict=True):
        assert before.lesion is None or after.lesion is not None
        a, _ = image(rare, before, 0, seed=0, size=64)
        b, finding = image(common, after, 0, seed=0, size=64)
        if before.lesion is None and finding is not None:
            newly_ill += 1
            rows, columns = np.nonzero(a != b)
            assert rows.size
            assert np.hypot(rows - finding.y, columns - finding.x).max() < 3.5 * finding.radius + 4
        else:
            assert np.array_equal(a, b)
    assert newly_ill > 5


def test_missed_turns_only_small_lesions_and_only_their_labels() -> None:
    careful, hurried = (roster(turned(patients=1500, prevalence=0.6, missed=m), seed=3) for m in (0.0, 0.5))
    small: list[Patient] = []
    large: list[Patient] = []
    for a, b in zip(careful, hurried, strict=True):
        assert repr(a.lesion) == repr(b.lesion)
        if b.lesion is None:
            assert b.label == NORMAL
        else:
            (small if b.lesion.radius < PLAIN.lesion_size else large).append(b)
    assert share(large, NORMAL) == 0
    assert within_binomial(share(small, NORMAL), 0.5, len(small))
    assert within_binomial(len(small) / (len(small) + len(large)), 0.5, len(small) + len(large))


def test_overcalled_and_label_flip_turn_the_share_they_name() -> None:
    healthy = roster(turned(patients=1500, prevalence=0.0, overcalled=0.1), seed=3)
    assert within_binomial(share(healthy, LESION), 0.1, 1500)
    ill = roster(turned(patients=300, prevalence=1.0, overcalled=0.9), seed=3)
    assert share(ill, LESION) == 1.0
    flipped = roster(turned(patients=1500, label_flip=0.2), seed=3)
    assert within_binomial(sum((p.label == LESION) != (p.lesion is not None) for p in flipped) / 1500, 0.2, 1500)


def test_a_labelling_habit_moves_no_pixel(tmp_path: Path) -> None:
    write_centres(tmp_path / "a", [PLAIN], seed=0, size=32)
    write_centres(tmp_path / "b", [turned(missed=0.9, overcalled=0.5, label_flip=0.3)], seed=0, size=32)
    assert contents(tmp_path / "a" / "plain") == contents(tmp_path / "b" / "plain")


def test_brightness_adds_to_the_mean() -> None:
    plain, bright = scans(IDEAL), scans(dataclasses.replace(IDEAL, brightness=0.08))
    assert bright.mean() - plain.mean() == pytest.approx(0.08, abs=0.002)
    assert (bright - plain).std() < 0.01


def test_contrast_scales_about_the_middle_grey() -> None:
    plain, flat = scans(IDEAL), scans(dataclasses.replace(IDEAL, contrast=0.5))
    assert flat.std() / plain.std() == pytest.approx(0.5, abs=0.01)
    assert flat.mean() - 0.5 == pytest.approx(0.5 * (plain.mean() - 0.5), abs=0.003)


def test_noise_is_white_and_has_the_variance_it_names() -> None:
    lifted = dataclasses.replace(IDEAL, brightness=0.2, contrast=0.5)  # far from clipping at either end
    grain = scans(dataclasses.replace(lifted, noise=0.05)) - scans(lifted)
    assert grain.std() == pytest.approx(0.05, rel=0.03)
    assert abs(grain.mean()) < 0.002
    assert abs(np.mean(grain[:, :, 1:] * grain[:, :, :-1]) / grain.var()) < 0.05


def test_blur_is_a_gaussian_that_keeps_the_mean() -> None:
    plain, blurred = scans(IDEAL), scans(dataclasses.replace(IDEAL, blur=2.0))
    expected = np.stack([ndimage.gaussian_filter(picture, 1.0) for picture in plain])  # 64 pixels: half of 2.0
    assert np.abs(blurred - expected).max() < 2.5 / 255
    assert blurred.mean() == pytest.approx(plain.mean(), abs=0.002)


def test_gamma_is_the_exponent() -> None:
    plain, dark = scans(IDEAL), scans(dataclasses.replace(IDEAL, gamma=2.0))
    assert np.abs(dark - plain**2).max() < 0.006


def test_inversion_exchanges_black_and_white() -> None:
    assert np.allclose(scans(Scanner(inverted=True)), 1 - scans(Scanner()))


def test_vignette_darkens_the_corners_and_spares_the_middle() -> None:
    lit = dataclasses.replace(IDEAL, brightness=0.4)
    ratio = scans(dataclasses.replace(lit, vignette=0.5)) / scans(lit)
    assert ratio[:, 0, 0] == pytest.approx(0.5, abs=0.01)
    assert ratio[:, 31, 31] == pytest.approx(1.0, abs=0.01)


def test_the_bias_field_is_a_slow_shading_of_the_named_strength() -> None:
    scanner = dataclasses.replace(IDEAL, bias_field=0.1)
    even = np.full((64, 64), 0.5)
    shading = np.stack([scanner.scan(even, np.random.default_rng(i)) / 127.5 for i in range(60)])
    assert shading.mean() == pytest.approx(1.0, abs=0.005)
    assert shading.std() == pytest.approx(0.1, abs=0.012)
    assert np.diff(shading, axis=2).std() < 0.01


def test_a_lesion_is_as_large_as_it_says_and_lies_where_it_says() -> None:
    sizes = []
    for i in range(40):
        lesion = Lesion.draw(np.random.default_rng([i, 2]), 0.3, 0.08)
        healthy, none = picture(np.random.default_rng([i, 0]), np.random.default_rng([i, 1]), 128, None)
        ill, finding = picture(np.random.default_rng([i, 0]), np.random.default_rng([i, 1]), 128, lesion)
        assert none is None
        assert finding is not None
        assert finding.radius == pytest.approx(0.08 * 128)
        brighter = ill - healthy > 0.05
        assert brighter.any()
        y, x = ndimage.center_of_mass(brighter)
        assert math.hypot(y - finding.y, x - finding.x) < finding.radius
        sizes.append(math.sqrt(brighter.sum() / math.pi) / finding.radius)
    assert np.mean(sizes) == pytest.approx(1.0, abs=0.1)


def test_lesion_contrast_scales_the_lesion_alone() -> None:
    def mark(contrast: float) -> NDArray[np.float64]:
        rngs = [np.random.default_rng([9, k]) for k in range(3)]
        return picture(rngs[0], rngs[1], 64, Lesion.draw(rngs[2], contrast, 0.1))[0]

    assert np.allclose(mark(0.2) - mark(0.0), 2 * (mark(0.1) - mark(0.0)))
    assert np.array_equal(mark(0.0), picture(np.random.default_rng([9, 0]), np.random.default_rng([9, 1]), 64, None)[0])


def test_slices_of_one_patient_are_alike_and_not_the_same() -> None:
    patients = roster(PLAIN, seed=0)[:6]
    first, second = (
        np.stack([image(PLAIN, p, index, seed=0, size=64)[0].ravel() for p in patients]) for index in (0, 1)
    )
    likeness = np.corrcoef(first, second)[:6, 6:]
    own = np.diag(likeness)
    assert own.max() < 0.999
    assert own.mean() > likeness[~np.eye(6, dtype=bool)].mean() + 0.02


def test_waves_have_mean_nought_and_unit_variance_at_any_size() -> None:
    fields = [waves(np.random.default_rng(i), 96, 12, 0.7) for i in range(60)]
    assert np.abs([field.mean() for field in fields]).max() < 1e-12
    assert np.mean([field.var() for field in fields]) == pytest.approx(1.0, abs=0.1)
    small, large = (waves(np.random.default_rng(0), size, 4, 1.0) for size in (48, 96))
    assert np.abs(large.reshape(48, 2, 48, 2).mean(axis=(1, 3)) - small).max() < 0.02


def test_the_demo_differs_from_centre_to_centre_as_its_names_say() -> None:
    centres = {centre.name: centre for centre in demo_centres()}
    assert len(centres) == 5
    size = {name: centre.patients for name, centre in centres.items()}
    assert size["large_hospital"] == max(size.values())
    assert size["small_clinic"] == min(size.values())
    assert [name for name, centre in centres.items() if centre.scanner != Scanner()] == ["old_scanner"]
    assert [name for name, centre in centres.items() if centre.prevalence != 0.4] == ["screening_unit"]
    assert [name for name, centre in centres.items() if centre.missed > 0] == ["hurried_readers"]


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
@pytest.mark.parametrize("knob", ["prevalence", "missed", "overcalled", "label_flip"])
def test_senseless_shares_are_refused(knob: str, value: float) -> None:
    with pytest.raises(DataError, match=knob):
        turned(**{knob: value})


SENSELESS = [("patients", 0), ("images_per_patient", 0), ("lesion_size", 0.0), ("lesion_contrast", math.inf)]
NAMELESS = [("name", ""), ("name", "../elsewhere"), ("name", "Upper")]


@pytest.mark.parametrize(("knob", "value"), [*SENSELESS, *NAMELESS])
def test_senseless_centres_are_refused(knob: str, value: object) -> None:
    with pytest.raises(DataError):
        turned(**{knob: value})


@pytest.mark.parametrize(
    "knobs",
    [{"blur": -1.0}, {"noise": -0.1}, {"gamma": 0.0}, {"contrast": 0.0}, {"vignette": 1.5}, {"brightness": 2.0}],
)
def test_senseless_scanners_are_refused(knobs: dict[str, float]) -> None:
    with pytest.raises(DataError, match=next(iter(knobs))):
        Scanner(**knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("centres", "seed", "size"), [([], 0, 64), ([PLAIN, PLAIN], 0, 64), ([PLAIN], -1, 64), ([PLAIN], 0, 8)]
)
def test_senseless_requests_are_refused(tmp_path: Path, centres: list[Centre], seed: int, size: int) -> None:
    with pytest.raises(DataError):
        write_centres(tmp_path, centres, seed=seed, size=size)
    assert not list(tmp_path.iterdir())
