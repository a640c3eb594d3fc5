"""How a site's images were taken: counts of patients over closed lists of makers, modalities and ranges of numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Self

import numpy as np

from polyclinic.core.errors import DataError
from polyclinic.core.statistics.monoid import Floats, Ints, Sums, demand

OTHER, UNSAID, HIDDEN = "other", "not said", "withheld"
EDGES: Mapping[str, tuple[float, ...]] = {
    "kVp": (50, 70, 90, 110, 130, 150),
    "field strength": (0.5, 1.2, 1.8, 2.5, 3.5),
    "slice thickness": (1, 2, 3, 5, 8),
    "pixel spacing": (0.1, 0.2, 0.5, 0.75, 1, 2),
}
"""Field of numbers (kV, T, mm, mm) → where one range ends, excluded, and the next begins."""
NAMES: Mapping[str, tuple[str, ...]] = {
    "modality": (
        "CR", "CT", "DX", "ES", "MG", "MR", "NM", "OP", "OPT", "OT", "PT", "PX", "RF", "SC", "SM", "US", "XA", "XC",
    ),
    "maker": (
        "Accuray", "Agfa", "BK Medical", "Bruker", "Canon", "Carestream", "Del Medical", "Dentsply Sirona", "Elekta",
        "Esaote", "Fujifilm", "GE", "Hamamatsu", "Heidelberg", "Hitachi", "Hologic", "IMS Giotto", "Konica Minolta",
        "Leica", "Medtronic", "Mindray", "Neusoft", "Nidek", "Optos", "Philips", "Planmeca", "Samsung", "Sectra",
        "Shimadzu", "Siemens", "SonoSite", "SuperSonic", "Swissray", "Topcon", "United Imaging", "Varian", "Villa",
        "Zeiss",
    ),
}  # fmt: skip
"""Field of names → those that are told, any other as "other". A model's name is free text: it is never told."""


def _ranges(edges: Sequence[float]) -> tuple[str, ...]:
    middle = (f"{low:g} to {high:g}" for low, high in pairwise(edges))
    return (f"below {edges[0]:g}", *middle, f"{edges[-1]:g} and more")


VALUES: Mapping[str, tuple[str, ...]] = {
    field: (*known, OTHER, UNSAID, HIDDEN)
    for field, known in (*NAMES.items(), *((field, _ranges(edges)) for field, edges in EDGES.items()))
}
"""Field → everything that may be told of it. In the last stand the patients whose value too few share."""
CELLS = sum(map(len, VALUES.values()))


@dataclass(frozen=True, eq=False)
class Acquisition(Sums):
    """Patients by how their first image was taken.

    Attributes:
        counts: [CELLS] patients with each value, field after field as in ``VALUES``; each field adds up to everybody.
    """

    name: ClassVar[str] = "acquisition"

    counts: Ints

    @classmethod
    def of(cls, taken: Sequence[Mapping[str, str]], patients: Sequence[Hashable]) -> Self:
        """Counts what files say (field → text, as readers have it) of images of ``patients`` [N]; the first of each.

        Raises:
            DataError: not of as many images as patients.
        """
        if len(taken) != len(patients):
            raise DataError("does not tell of every image how it was taken", where="acquisition")
        first: dict[Hashable, Mapping[str, str]] = {}
        for patient, said in zip(patients, taken, strict=True):
            first.setdefault(patient, said)
        counts: list[int] = []
        for field, known in VALUES.items():
            found = Counter(value(field, said.get(field, "")) for said in first.values())
            counts += [found[name] for name in known]
        return cls(len(first), np.array(counts, dtype=np.int64))

    def check(self) -> None:
        """Raises UpdateError naming the field that cannot be."""
        super().check()
        demand(self.counts.shape == (CELLS,), "counts", "has another shape")
        demand(bool((self.counts >= 0).all() and (self.counts <= self.patients).all()), "counts", "are no counts")
        sums = [int(part.sum()) for part in self.by_field().values()]
        demand(set(sums) == {self.patients}, "counts", "do not add up to the patients")

    def by_field(self) -> dict[str, Ints]:
        """Field → [values] patients."""
        ends = np.cumsum([len(known) for known in VALUES.values()])[:-1]
        return dict(zip(VALUES, np.split(self.counts, ends), strict=True))

    def released(self, minimum_patients: int) -> Self:
        """Without values that fewer patients share: they are counted together as withheld.

        Where these are still too few together, the next smallest value joins them, so that no cell is small.
        """
        parts = [_folded(part, minimum_patients) for part in self.by_field().values()]
        return type(self)(self.patients, np.concatenate(parts))


def value(field: str, said: str) -> str:
    """What is told of a field of which a file says ``said``, such as "5.0 mm"; it is one of ``VALUES``."""
    if not said:
        return UNSAID
    if field in NAMES:
        return said if said in NAMES[field] else OTHER
    try:
        number = float(said.split(maxsplit=1)[0])
    except (ValueError, IndexError):
        return OTHER
    place = int(np.searchsorted(EDGES[field], number, side="right"))
    return VALUES[field][place] if np.isfinite(number) else OTHER


def difference(a: Acquisition, b: Acquisition) -> tuple[float | None, str]:
    """(the largest Jensen-Shannon distance over fields, in [0, 1]; the field), of what is told of both.

    The distance is the square root of the divergence in bits (Endres & Schindelin 2003): 0 for the same shares, 1 for
    values that never occur at both. What is withheld is left out. None where neither says anything of any field.
    """
    from scipy.spatial.distance import jensenshannon

    found: list[tuple[float, str]] = []
    for field, one in a.by_field().items():
        shares = [_shares(part) for part in (one, b.by_field()[field])]
        silent = all(part is None or part[-1] == 1.0 for part in shares)
        if not silent and shares[0] is not None and shares[1] is not None:
            found.append((float(jensenshannon(*shares, base=2)), field))
    return max(found, key=lambda pair: pair[0], default=(None, ""))


def _shares(part: Ints) -> Floats | None:
    """Shares of the values, "not said" being the last, of what is not withheld; None if all is."""
    told = part[:-1]
    return told / told.sum() if told.sum() else None


def _folded(part: Ints, minimum: int) -> Ints:
    kept = part.copy()
    small = (kept[:-1] > 0) & (kept[:-1] < minimum)
    while True:
        kept[-1] += kept[:-1][small].sum()
        kept[:-1][small] = 0
        left = np.flatnonzero(kept[:-1])
        if not 0 < kept[-1] < minimum or not len(left):
            return kept
        small = np.arange(len(kept) - 1) == left[kept[left].argmin()]
