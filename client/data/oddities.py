"""What is odd about images that can be read: alone, beside the others of their site, or beside one another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from statistics import median

import numpy as np

from polyclinic.client.data.examined import Examined
from polyclinic.client.data.manifest import Row
from polyclinic.client.data.problem import Problem
from polyclinic.client.data.readers.geometry import Place, arranged
from polyclinic.client.data.sighting import Sighting
from polyclinic.core.errors import DataError

GROUP = 20
"""Images of one site and kind from which on one can be odd beside the others."""
SATURATED = 0.2
FAR = 0.15
"""Share of the whole range of brightness by which the brightness of an outlier lies off on average."""
NEAR_BITS, NEAR_THUMB = 4, 4.0
"""Two pictures look alike if at most so many bits of 64 differ, and their fields by so much of 255 on average."""
_LOOK = "look at it, and leave it out if it is not what it should be"
Pair = tuple[Row, Examined]


def alone(row: Row, found: Examined) -> Iterator[Problem]:
    """What is odd about one image by itself."""
    if found.flat:
        yield _warning(row, "shows one flat colour", "look at it, and leave it out if it shows nothing")
    elif found.dark:
        yield _warning(row, "is nearly black", "look at it, and leave it out if it shows nothing")
    elif found.kind == "image" and found.top > SATURATED and found.top + found.bottom < 0.98:
        yield _warning(row, f"is saturated: {found.top:.0%} of its pixels have its highest value", _LOOK)
    for remark in found.remarks:
        yield _warning(row, remark, _LOOK)
    if found.mask:
        yield Problem(row.line or None, row.name, f"has a mask that does not fit: it {found.mask}", "name its own mask")
    if found.laterality == "other":
        yield _warning(row, "names a side that is none (laterality)", "L, R, B or U")
    if found.orientation == ("other",):
        yield _warning(row, "names directions that are none (patient orientation)", "look at it")
    if found.acquisition.get("modality") == "MG":
        yield from _mammogram(row, found)


def _mammogram(row: Row, found: Examined) -> Iterator[Problem]:
    if not found.laterality:
        yield _warning(row, "is a mammogram that does not say of which side", "look it up, or leave it out")
    usual = {"L": "A", "R": "P"}.get(found.laterality, "")
    if usual and len(found.orientation) == 2 and found.orientation[0][0] in "AP" and found.orientation[0][0] != usual:
        what = "is turned round: its side (laterality) and its directions (patient orientation) do not go together"
        yield _warning(row, what, "look whether it is mirrored")


def beside_others(pairs: Sequence[Pair]) -> Iterator[Problem]:
    """What is odd about an image beside the others of its site and modality."""
    groups: dict[tuple[str, str], list[Pair]] = defaultdict(list)
    for row, found in pairs:
        if found.kind == "image":
            groups[row.site, found.acquisition.get("modality", found.format)].append((row, found))
    for (site, kind), group in sorted(groups.items()):
        yield from _spacing(group, f"{site} {kind}".strip())
        yield from _partly_silent(group, f"{site} {kind}".strip())
        seen = [(row, found) for row, found in group if not (found.flat or found.dark)]
        if len(seen) >= GROUP:
            yield from _brightness(seen)


def _spacing(group: Sequence[Pair], place: str) -> Iterator[Problem]:
    known = [(row, found.spacing[1]) for row, found in group if len(found.spacing) == 3 and found.spacing[1]]
    steps = [step for _, step in known if step]
    if len(steps) < 10:
        return
    usual = median(steps)
    for row, step in known:
        if step and not 0.5 <= step / usual <= 2.0:
            yield _warning(row, f"has pixels of {step:.3g} mm, where {usual:.3g} mm is usual", _LOOK)
    if len(steps) < len(group):
        what = f"{len(group) - len(steps)} of {len(group)} images do not say how large their pixels are"
        yield Problem(None, place, what, "export them with their spacing", "warning")


def _partly_silent(group: Sequence[Pair], place: str) -> Iterator[Problem]:
    """Sides and views that some images name and others do not; volumes that are turned differently."""
    for what, said in (
        ("side (laterality)", [bool(found.laterality) for _, found in group]),
        ("view", [bool(found.view) for _, found in group]),
    ):
        if any(said) and not all(said):
            missing = f"{said.count(False)} of {len(said)} images do not name their {what}, the others do"
            yield Problem(None, place, missing, "look whether they are of another kind", "warning")
    axes = sorted({found.axes for _, found in group if found.axes and found.shape[1] > 1})
    if len(axes) > 1:
        what = f"volumes lie in {len(axes)} orientations ({', '.join(axes)})"
        yield Problem(None, place, what, "the middle slice of each shows another plane", "warning")


def _brightness(group: Sequence[Pair]) -> Iterator[Problem]:
    """Histograms far from their site's usual one; among them those that would be near it if inverted."""
    shares = np.array([found.histogram for _, found in group])
    sums = np.cumsum(shares, axis=1)
    usual = np.median(sums, axis=0)
    away = np.abs(sums - usual).mean(axis=1)
    turned = np.abs(np.cumsum(shares[:, ::-1], axis=1) - usual).mean(axis=1)
    middle = float(np.median(away))
    limit = max(FAR, middle + 8.0 * float(np.median(np.abs(away - middle))))
    for i in map(int, np.flatnonzero(away > FAR / 2)):
        if turned[i] < 0.5 * away[i] and turned[i] < FAR:
            yield _warning(group[i][0], "looks inverted: black and white are swapped beside its site's others", _LOOK)
        elif away[i] > limit:
            yield _warning(group[i][0], "is much brighter or darker than its site's others", _LOOK)


def lookalikes(pairs: Sequence[Pair], twins: Iterable[str]) -> Iterator[Problem]:
    """Pictures that look the same, though the manifest says that they have nothing to do with each other.

    Args:
        twins: names of images that were told already.
    """
    told = set(twins)
    held = [(row, found) for row, found in pairs if not (found.flat or found.dark or row.name in told)]
    held.sort(key=lambda pair: (pair[0].line, pair[0].name))
    marks = np.array([found.fingerprint for _, found in held], dtype=np.uint64)
    thumbs = np.array([found.thumb for _, found in held], dtype=np.float32)
    for i in range(1, len(held)):
        near = np.flatnonzero(np.bitwise_count(marks[:i] ^ marks[i]) <= NEAR_BITS)
        if not near.size:
            continue
        level = thumbs[near] - thumbs[near].mean(axis=1, keepdims=True)
        apart = np.abs(level - (thumbs[i] - thumbs[i].mean())).mean(axis=1)
        alike = [held[j][0] for j in near[apart <= NEAR_THUMB]]
        row = held[i][0]
        others = [other for other in alike if _strangers(row, other)]
        if others:
            yield _warning(
                row, f"looks the same as {_named(others[0])}", "keep one of the two, if they are one picture"
            )


def _strangers(row: Row, other: Row) -> bool:
    return (row.site, row.patient, row.split, row.label) != (other.site, other.patient, other.split, other.label)


def _named(row: Row) -> str:
    label = f", label {row.label}" if row.label else ""
    return f"the image on line {row.line} ({row.site}, {row.split}{label})" if row.line else row.name


def twins(seen: Sequence[Sighting]) -> Iterator[tuple[Row, Problem]]:
    """The same bytes in two sites, two splits or under two labels: a leak or a contradiction."""
    same: dict[bytes, list[Row]] = defaultdict(list)
    for sighting in seen:
        if sighting.digest and sighting.found:
            same[sighting.digest].append(sighting.row)
    for group in same.values():
        first, *others = sorted(group, key=lambda row: (row.line, row.name))
        for row in others:
            if not row.line:
                yield row, _warning(row, f"is byte for byte {first.name}", "keep one of the two")
            elif (row.site, row.split, row.label) != (first.site, first.split, first.label):
                label = f", label {row.label}" if row.label else ""
                stands = f"but stands under {row.site}, {row.split}{label}"
                yield row, _warning(row, f"is byte for byte {_named(first)}, {stands}", "keep one of the two")


def series(pairs: Sequence[Pair]) -> Iterator[Problem]:
    """Series whose slices make no volume; for files without a manifest."""
    groups: dict[str, list[Pair]] = defaultdict(list)
    for row, found in pairs:
        if found.series and found.affine and found.shape[1] == 1:
            groups[found.series].append((row, found))
    for group in groups.values():
        if len(group) > 1:
            try:
                arranged([_place(found) for _, found in group], [found.shape for _, found in group])
            except DataError as failure:
                what = f"is one of {len(group)} slices of a series that {failure.problem}"
                yield _warning(group[0][0], what, failure.remedy)


def _place(found: Examined) -> Place:
    affine = np.array(found.affine).reshape(4, 4).T
    steps = np.linalg.norm(affine[:3, :2], axis=0)
    rows, columns = (affine[:3, :2] / steps).T
    return Place(affine[:3, 3], rows, columns, (float(steps[1]), float(steps[0])))


def absent(rows: Sequence[Row], classes: Sequence[str]) -> Iterator[Problem]:
    """Classes of the study of which no site, or some site, has nothing to train on."""
    held: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.split == "train":
            held[row.site] |= {classes[i] for i in present(row) if 0 <= i < len(classes)}
    nowhere = [name for name in classes if not any(name in names for names in held.values())]
    if held and nowhere:
        what = f"no site has an image of {', '.join(nowhere)} to train on"
        yield Problem(None, "", what, "list some, or take the class out of the study", "warning")
    for site, names in sorted(held.items()):
        missing = [name for name in classes if name not in names and name not in nowhere]
        if missing and len(names) > 1:
            what = f"has no image of {', '.join(missing)} to train on"
            yield Problem(None, f"site '{site}'", what, "it learns of these from the others alone", "warning")


def present(row: Row) -> list[int]:
    """Indices of the classes that an image has, as far as its label or its boxes say."""
    if row.boxes:
        return sorted({box[0] for box in row.boxes})
    return [i for i, one in enumerate(row.target) if one] if isinstance(row.target, tuple) else [row.target]


def _warning(row: Row, what: str, remedy: str) -> Problem:
    return Problem(row.line or None, row.name, what, remedy, "warning")
