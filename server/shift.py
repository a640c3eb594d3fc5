"""How far each site's data lie from the others', from what the sites told about them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

from polyclinic.core.statistics import noised, shift
from polyclinic.core.statistics.codec import unpack
from polyclinic.core.statistics.monoid import Withheld
from polyclinic.core.statistics.noised import NoisedKernel, NoisedLabels
from polyclinic.server.journal import Journal

Json = dict[str, Any]
Told = tuple[str, str, bytes]
"""Site, name, packed statistic."""
FIELDS = {
    "features": ("frechet",),
    "kernel": ("mmd2", "p_value"),
    "intensities": ("intensity_psi",),
    "labels": ("prevalence",),
    "acquisition": ("acquisition_js", "acquisition_field"),
}
MAP_LIMIT = 100
"""Sites up to which all pairs are compared for the map: the work grows with their square."""


def renewed(journal: Journal, new: Iterable[Told]) -> dict[str, Json] | None:
    """The table with what a round brought; None if it brought nothing."""
    brought = tuple(new)
    return table(journal, brought) if brought else None


def table(journal: Journal, new: Sequence[Told] = ()) -> dict[str, Json]:
    """Site → what is under ``FIELDS``, of that site against all the others together.

    ``new`` is what was told and is not yet in the journal.
    """
    found: dict[str, Json] = {}
    for name, fields in FIELDS.items():
        told, heard = known(journal, name, new), [site for site, _ in journal.told(f"describe/{name}")]
        heard += [site for site, what, _ in new if what == f"describe/{name}"]
        total = reduce(add, told.values()) if told else None
        for site in sorted(set(heard)):
            row = found.setdefault(site, {})
            if site not in told:
                row.update(dict.fromkeys(fields), why="withheld: too few patients")
            elif len(told) < 2 and name != "labels":
                row.update(dict.fromkeys(fields), why="no other site told")
            else:
                row.update(compared(name, told[site], total))
    return found


def compared(name: str, one: Any, total: Any) -> Json:
    """What a site's statistic says against the rest of ``total``."""
    if name == "labels":
        shares = noised.prevalence(one) if isinstance(one, NoisedLabels) else shift.prevalence(one)
        return {"prevalence": [figure.value for figure in shares]}
    others = shift.rest(total, one)
    if isinstance(one, NoisedKernel):
        apart = noised.discrepancy(one, others)
        return {"mmd2": apart.value, "p_value": None, "mmd2_noise": apart.noise}
    if name == "features":
        distance = shift.frechet(one, others)
        return {"frechet": distance} | ({"why": "too few patients for a covariance"} if distance is None else {})
    if name == "kernel":
        mmd2, p_value = shift.mmd2(one, others)
        return {"mmd2": mmd2, "p_value": p_value}
    if name == "acquisition":
        distance, field = shift.difference(one, others)
        return {"acquisition_js": distance, "acquisition_field": field or None}
    return {"intensity_psi": shift.psi(one, others)}


def site_map(journal: Journal) -> dict[str, list[float]] | None:
    """Site → place in a plane in which distances follow the MMD between sites; None for fewer than three sites."""
    import numpy as np

    told = known(journal, "kernel")
    if not 3 <= len(told) <= MAP_LIMIT:
        return None
    names = sorted(told)
    distances = np.zeros((len(names), len(names)))
    for i, one in enumerate(names):
        for j, other in enumerate(names[:i]):
            apart = max(0.0, _discrepancy(told[one], told[other]) or 0.0) ** 0.5
            distances[i, j] = distances[j, i] = apart
    places = shift.classical_mds(distances)
    return {name: [float(x) for x in place] for name, place in zip(names, places, strict=True)}


def _discrepancy(one: Any, other: Any) -> float | None:
    return noised.discrepancy(one, other).value if isinstance(one, NoisedKernel) else shift.discrepancy(one, other)


def known(journal: Journal, name: str, new: Sequence[Told] = ()) -> Mapping[str, Any]:
    """Site → statistic told under "describe/``name``", without those withheld."""
    told = {site: unpack(body) for site, body in journal.told(f"describe/{name}")}
    told |= {site: unpack(body) for site, what, body in new if what == f"describe/{name}"}
    return {site: statistic for site, statistic in told.items() if not isinstance(statistic, Withheld)}
