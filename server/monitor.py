"""What is known, per site and pooled, after every round: how good, how well calibrated, how far from the others."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from polyclinic.core import seeds
from polyclinic.core.privacy.told import blanks
from polyclinic.core.statistics.metrics import JUDGED, kind_of
from polyclinic.core.statistics.monoid import Statistic, Withheld
from polyclinic.core.study import Study
from polyclinic.server.receive import Receiver

Json = dict[str, Any]


def round_record(receiver: Receiver, bytes_down: int, seconds: float) -> Json:
    """One object of rounds.jsonl: see docs/run-folder.md."""
    number = receiver.instruction.round
    # without the calibration errors' bootstrap: it would cost more than all else that the server does
    incoming, fitted = (metrics(receiver, f"{moment}/val") for moment in ("incoming", "fitted"))
    told = receiver.statistics("incoming/val")
    sites = {
        site: {
            "incoming": incoming[0].get(site),
            "fitted": fitted[0].get(site),
            "reliability": bins(told.get(site)),
            "weight": reply["weight"],
            "seconds": reply["seconds"],
            **({"privacy": reply["privacy"]} if reply["privacy"] else {}),
        }
        for site, reply in sorted(receiver.accepted.items())
    }
    return {
        "round": number,
        "seconds": round(seconds, 3),
        "bytes_up": receiver.bytes_up,
        "bytes_down": bytes_down,
        "sites": sites,
        "pooled": {"incoming": incoming[1], "fitted": fitted[1], "reliability": bins(merged(told))},
        "worst_site": worst(incoming[0]),
        "excluded": dict(sorted(receiver.excluded.items())),
    }


def final_record(study: Study, receiver: Receiver, bytes_down: int) -> Json:
    """The last evaluation: metrics and reliability bins by site and split, and pooled."""
    sites: dict[str, Json] = {
        site: {"n": sizes(reply["sizes"]), "metrics": {}, "reliability": {}}
        | ({"privacy": reply["privacy"]} if reply["privacy"] else {})
        for site, reply in sorted(receiver.accepted.items())
    }
    pooled: Json = {"metrics": {}, "reliability": {}}
    for split in receiver.instruction.evaluate:
        name = f"incoming/{split}"
        by_site, together = metrics(receiver, name, study.study.seed)
        for site, row in sites.items():
            row["metrics"][split] = by_site.get(site) or untold(
                study, name, bool(row["n"].get(split, {}).get("images"))
            )
        pooled["metrics"][split] = together
        for site, statistic in receiver.statistics(name).items():
            sites[site]["reliability"][split] = bins(statistic)
        pooled["reliability"][split] = bins(merged(receiver.statistics(name)))
    return {
        "sites": sites,
        "pooled": pooled,
        "excluded": dict(sorted(receiver.excluded.items())),
        "bytes_up": receiver.bytes_up,
        "bytes_down": bytes_down,
    }


def metrics(receiver: Receiver, name: str, seed: int | None = None) -> tuple[dict[str, Json], Json | None]:
    """(figures by site, figures pooled over the sites that told) of the outcomes told under ``name``.

    ``seed`` is that of the calibration errors' bootstrap; without one they have no interval.
    """

    def draws(site: str) -> np.random.Generator | None:
        return None if seed is None else seeds.generator(seed, "intervals", name, site)

    told = receiver.statistics(name)
    by_site = {site: judged(statistic, draws(site)) for site, statistic in told.items()}
    together = merged(told)
    return by_site, None if together is None else judged(together, draws("*pooled*"))


def judged(statistic: Any, rng: np.random.Generator | None) -> Json:
    """Figures of one outcome as JSON, or why there are none."""
    if isinstance(statistic, Withheld):
        return unavailable(f"fewer than {statistic.minimum} patients", statistic.kind)
    return {key: figure.json() for key, figure in JUDGED[statistic.name].figures(statistic, rng).items()}


def untold(study: Study, name: str, images: bool) -> Json:
    """Figures of a site that told nothing under ``name``."""
    task: Any = study.task
    why = "no images" if not images else "the site's policy does not tell it"
    if images and study.privacy is not None and (name not in blanks(study) or not study.privacy.statistics_share):
        why = "not told under privacy"
    return unavailable(why, task.blank(bins=study.monitoring.bins, score_bins=study.monitoring.score_bins).name)


def unavailable(why: str, kind: str) -> Json:
    """Figures of a kind of outcome that cannot be had."""
    return {metric.key: {"value": None, "low": None, "high": None, "why": why} for metric in JUDGED[kind].metrics}


def merged(told: Mapping[str, Statistic | Withheld]) -> Any:
    """The sum of what was not withheld; None if nothing was told."""
    open_ones = [statistic for statistic in told.values() if not isinstance(statistic, Withheld)]
    return reduce(add, open_ones) if open_ones else None


def bins(statistic: Any) -> list[Json]:
    """Reliability bins that hold anything, as JSON."""
    if statistic is None or isinstance(statistic, Withheld):
        return []
    return [
        {"low": low, "high": high, "count": count, "confidence": confidence, "frequency": frequency}
        for low, high, count, confidence, frequency in JUDGED[statistic.name].reliability(statistic)
        if count
    ]


def sizes(counts: Mapping[str, tuple[int, int]]) -> Json:
    """Images and patients by split, as JSON."""
    return {split: {"images": images, "patients": patients} for split, (images, patients) in counts.items()}


def worst(by_site: Mapping[str, Json | None]) -> Json | None:
    """The site that does worst by the first leading figure of its kind of outcome, among those that have it."""
    kind = kind_of(key for found in by_site.values() if found for key in found)
    if kind is None:
        return None
    leading = kind.first
    values = {site: found[leading.key]["value"] for site, found in by_site.items() if found}
    known = {site: value if leading.more_is_better else -value for site, value in values.items() if value is not None}
    if not known:
        return None
    site = min(sorted(known), key=known.__getitem__)
    return {"site": site, "metric": leading.key, "value": values[site]}
