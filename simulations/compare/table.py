"""compare.json: all axes of all variants, put together from what the cells gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyclinic.core.statistics.metrics import JUDGED, Judged, Metric, kind_of
from polyclinic.core.study import Study
from polyclinic.core.version import VERSION
from polyclinic.server.report.charts.rounds import limits
from polyclinic.simulations.compare import estimate
from polyclinic.simulations.compare.estimate import AMOUNT, SHARE, over
from polyclinic.simulations.compare.plan import Cell, Variant
from polyclinic.simulations.compare.robustness import JUDGE
from polyclinic.simulations.compare.shifts import SHIFTS

Json = dict[str, Any]
CALIBRATION = "ece"
"""Key of the calibration error, for kinds of outcome that have one."""


@dataclass(frozen=True)
class Found:
    """A cell and what it gave; ``why`` says why nothing."""

    cell: Cell
    folder: str
    figures: Json
    why: str = ""


@dataclass(frozen=True)
class Frame:
    """By what variants are compared: the figure of merit, and the sites at which every whole cell has it."""

    metric: Metric
    sites: tuple[str, ...]

    def over(self, values: Sequence[float | None], why: str = estimate.ABSENT) -> Json:
        """The figure of merit over seeds."""
        return over(values, why, limits(self.metric)).json()

    def mean(self, by_site: Mapping[str, Mapping[str, Any]]) -> float | None:
        """Unweighted mean over these sites; None where one of them has no figure."""
        values = [value_of(by_site.get(site), self.metric.key) for site in self.sites]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None


def table(study: Study, variants: Sequence[Variant], found: Sequence[Found], axes: Sequence[str], data: str) -> Json:
    """The document, all but its findings."""
    frame = framed([one for one in found if one.cell.whole])
    rows = [
        _variant(variant, [one for one in found if one.cell.variant == variant.name], frame) for variant in variants
    ]
    merits = {"merit": {v.name: _merits(found, v.name, frame) for v in variants}}
    if "labels" in axes:
        merits["labels"] = {v.name: _known(_areas(found, v.name, frame)) for v in variants}
    if "robustness" in axes:
        merits["unseen"] = {v.name: _known(_unseen(found, v.name, frame)) for v in variants}
        merits["shifted"] = {v.name: _known(_shifted(found, v.name, frame)) for v in variants}
    return {
        "polyclinic_version": VERSION,
        "study": study.study.name,
        "study_digest": study.digest,
        "data_digest": data,
        "backbone": study.backbone.reference,
        "rounds": study.rounds.count,
        "seeds": sorted({one.cell.seed for one in found}),
        "axes": list(axes),
        "metric": {"key": frame.metric.key, "name": frame.metric.name, "more_is_better": frame.metric.more_is_better},
        "sites": list(frame.sites),
        "shifts": {name: {"unit": shift.unit, "sizes": list(shift.sizes)} for name, shift in SHIFTS.items()},
        "cells": [_cell(one) for one in found],
        "variants": rows,
        "differences": [row for what, values in merits.items() for row in estimate.pairs(values, what)],
    }


def framed(whole: Sequence[Found]) -> Frame:
    """The first leading figure that any site has in every cell that has figures at all."""
    each = [_sites(one) for one in whole if not one.why]
    kind = _kind(each)
    for key in kind.leading:
        sites = [s for s in sorted(each[0]) if all(value_of(c.get(s), key) is not None for c in each)] if each else []
        if sites:
            return Frame(next(metric for metric in kind.metrics if metric.key == key), tuple(sites))
    return Frame(kind.first, ())


def value_of(figures: Mapping[str, Any] | None, key: str) -> float | None:
    """A figure's value, be it a plain number or an object with its interval."""
    found = (figures or {}).get(key)
    value: float | None = found.get("value") if isinstance(found, Mapping) else found
    return value


def _kind(each: Sequence[Mapping[str, Mapping[str, Any]]]) -> Judged:
    kinds = (kind_of(figures) for cell in each for figures in cell.values() if figures)
    return next((kind for kind in kinds if kind is not None), next(iter(JUDGED.values())))


def _sites(one: Found) -> dict[str, Json]:
    """Site → figures on test images, of a cell that was judged at all sites."""
    if "summary" not in one.figures:
        return {}
    return {site: row["metrics"].get(JUDGE) or {} for site, row in one.figures["summary"]["sites"].items()}


def _cell(one: Found) -> Json:
    cell = one.cell
    about = {"variant": cell.variant, "seed": cell.seed, "share": cell.share, "without": cell.without}
    return {**about, "folder": one.folder, "why": one.why}


def _variant(variant: Variant, found: Sequence[Found], frame: Frame) -> Json:
    whole = [one for one in found if one.cell.whole]
    failed = next((one.why for one in whole if one.why), estimate.ABSENT)
    rows = [_sites(one) for one in whole]
    pooled = [(one.figures.get("summary", {}).get("pooled") or {}).get(JUDGE) for one in whole]
    key, name = frame.metric.key, variant.name
    by_site = {site: frame.over([value_of(row.get(site), key) for row in rows], failed) for site in frame.sites}
    return {
        "name": name,
        "chain": [dict(table) for table in variant.chain],
        "merit": frame.over(list(_merits(found, name, frame).values()), failed),
        "sites": by_site,
        "worst_site": frame.over([_worst(row, frame) for row in rows], failed),
        "pooled": frame.over([value_of(row, key) for row in pooled], failed),
        "calibration": over([value_of(row, CALIBRATION) for row in pooled], failed, SHARE).json(),
        "depth": _depth([one.figures["depth"] for one in whole if "depth" in one.figures]),
        "labels": _labels(found, name, frame) if any(one.cell.share < 1.0 for one in found) else None,
        "robustness": _robustness(found, name, frame) if any("robustness" in one.figures for one in whole) else None,
        "cost": _cost([one.figures["cost"] for one in whole if "cost" in one.figures]),
        "audit": next((one.figures["audit"] for one in whole if "audit" in one.figures), None),
        "burden": next((one.figures["burden"] for one in whole if "burden" in one.figures), None),
    }


def _merits(found: Sequence[Found], variant: str, frame: Frame) -> dict[int, float]:
    whole = [one for one in found if one.cell.whole and one.cell.variant == variant]
    return _known({one.cell.seed: frame.mean(_sites(one)) for one in whole})


def _known(values: Mapping[int, float | None]) -> dict[int, float]:
    return {seed: value for seed, value in values.items() if value is not None}


def _worst(by_site: Mapping[str, Json], frame: Frame) -> float | None:
    values = [value for site in frame.sites if (value := value_of(by_site.get(site), frame.metric.key)) is not None]
    return (min if frame.metric.more_is_better else max)(values, default=None)


def _depth(found: Sequence[Json]) -> Json | None:
    if not found:
        return None
    names = list(found[0]["cka"])
    return {
        "trained": found[0]["trained"],
        "total": found[0]["total"],
        "share": found[0]["trained"] / found[0]["total"],
        "pictures": found[0]["pictures"],
        "change": over([one["change"] for one in found], "no validation pictures", SHARE).json(),
        "cka": {name: over([one["cka"].get(name) for one in found], within=SHARE).json() for name in names},
    }


def _curves(found: Sequence[Found], variant: str, frame: Frame) -> dict[int, dict[float, float]]:
    """Seed → share of labels → merit."""
    curves: dict[int, dict[float, float]] = {}
    for one in found:
        if one.cell.variant == variant and not one.cell.without:
            merit = frame.mean(_sites(one))
            if merit is not None:
                curves.setdefault(one.cell.seed, {})[one.cell.share] = merit
    return curves


def _areas(found: Sequence[Found], variant: str, frame: Frame) -> dict[int, float | None]:
    shares = {one.cell.share for one in found if not one.cell.without}
    curves = _curves(found, variant, frame)
    # a curve with a gap has an area of its own, which compares with nobody's
    return {seed: estimate.area(curve) if curve.keys() == shares else None for seed, curve in curves.items()}


def _labels(found: Sequence[Found], variant: str, frame: Frame) -> Json:
    curves = _curves(found, variant, frame)
    shares = sorted({one.cell.share for one in found if not one.cell.without})
    curve = [
        {"share": share, **frame.over([one.get(share) for one in curves.values()], "training failed")}
        for share in shares
    ]
    return {"curve": curve, "area": frame.over(list(_areas(found, variant, frame).values()))}


def _unseen(found: Sequence[Found], variant: str, frame: Frame) -> dict[int, float | None]:
    """Seed → mean over sites, each judged by the model that never saw it."""
    by_seed: dict[int, dict[str, Json]] = {}
    for one in found:
        if one.cell.variant == variant and one.cell.without:
            sites = one.figures.get("unseen", {}).get("sites", {})
            by_seed.setdefault(one.cell.seed, {})[one.cell.without] = sites.get(one.cell.without) or {}
    return {seed: frame.mean(rows) for seed, rows in by_seed.items()}


def _shifted(found: Sequence[Found], variant: str, frame: Frame) -> dict[int, float | None]:
    """Seed → mean over all shifts, sizes and sites."""
    result: dict[int, float | None] = {}
    for one in found:
        if one.cell.variant == variant and one.cell.whole and "robustness" in one.figures:
            merits = [frame.mean(row["sites"]) for row in one.figures["robustness"].values()]
            known = [merit for merit in merits if merit is not None]
            result[one.cell.seed] = sum(known) / len(known) if known and len(known) == len(merits) else None
    return result


def _robustness(found: Sequence[Found], variant: str, frame: Frame) -> Json:
    judged = [one.figures["robustness"] for one in found if one.cell.whole and "robustness" in one.figures]
    merits, unseen = _merits(found, variant, frame), _unseen(found, variant, frame)
    drop = [None if (left := unseen.get(seed)) is None else left - merit for seed, merit in merits.items()]
    sites = {
        site: frame.over(
            [
                value_of(one.figures.get("unseen", {}).get("sites", {}).get(site), frame.metric.key)
                for one in found
                if one.cell.without == site
            ]
        )
        for site in frame.sites
    }
    errors = [[value_of(row["pooled"], CALIBRATION) for row in one.values()] for one in judged]
    whole = [[error for error in row if error is not None] for row in errors]
    return {
        "unseen": frame.over(list(unseen.values())),
        "unseen_sites": sites,
        "unseen_less_seen": over(drop).json(),
        "shifted": frame.over(list(_shifted(found, variant, frame).values())),
        "shifted_calibration": over([sum(row) / len(row) if row else None for row in whole], within=SHARE).json(),
        "shifts": {name: [_shift(judged, name, size, frame) for size in kind.sizes] for name, kind in SHIFTS.items()},
    }


def _shift(judged: Sequence[Json], name: str, size: float, frame: Frame) -> Json:
    rows = [one[f"{name}/{size:g}"] for one in judged]
    return {
        "size": size,
        "merit": frame.over([frame.mean(row["sites"]) for row in rows]),
        "calibration": over([value_of(row["pooled"], CALIBRATION) for row in rows], within=SHARE).json(),
    }


def _cost(found: Sequence[Json]) -> Json | None:
    if not found:
        return None
    varying = ("step_seconds", "step_mb", "bytes_up", "bytes_down", "latency", "inference_seconds")
    exact = ("step_flops", "inference_flops", "frozen_flops", "device")
    return {
        **{name: found[0][name] for name in exact},
        **{name: over([one[name] for one in found], "the system does not tell", AMOUNT).json() for name in varying},
    }
