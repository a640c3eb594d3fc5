"""How a run went, in a few sentences: what the terminal says at its end."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

from polyclinic.core.statistics.metrics import JUDGED, Metric, kind_of


def figure(found: dict[str, Any]) -> str:
    """0.912 (0.851–0.950), or a dash."""
    if found["value"] is None:
        return "–"
    limits = "" if found["low"] is None else f" ({found['low']:.3f}–{found['high']:.3f})"
    return f"{found['value']:.3f}{limits}"


def sentences(summary: dict[str, Any]) -> Iterator[str]:
    """The sentences on a summary: the federation's model, what it is measured against, and what it took."""
    pooled, worst = summary["pooled"].get("test"), summary["worst_site"]
    metric = (kind_of(pooled or ()) or JUDGED["outcome"]).first
    if pooled is None or pooled[metric.key]["value"] is None:
        why = pooled[metric.key]["why"] if pooled else "no site told any"
        yield f"There is no pooled {metric.inline} on test images: {why}."
    else:
        yield f"Pooled {metric.inline} on test images: {figure(pooled[metric.key])}, with its 95 % interval."
    if worst:
        at = summary["sites"][worst["site"]]["metrics"][worst["split"]][worst["metric"]]
        yield f"Worst site: {worst['site']} with {figure(at)} on {worst['split']} images."
    yield from _comparison(summary["sites"], metric)
    if summary["excluded"]:
        yield "Not in these figures: " + "; ".join(f"{site}: {why}" for site, why in summary["excluded"].items()) + "."
    megabytes = (summary["bytes_up"] + summary["bytes_down"]) / 1e6
    yield f"It took {summary['rounds']} rounds, {summary['seconds']:.0f} s and {megabytes:.1f} MB on the way."


def _comparison(sites: dict[str, Any], metric: Metric) -> Iterator[str]:
    rows = [tuple(_value(site, kind, metric) for kind in ("metrics", "alone", "central")) for site in sites.values()]
    known = [tuple(value for value in row if value is not None) for row in rows]
    known = [row for row in known if len(row) == 3]
    if known:
        together, alone, central = (fmean(column) for column in zip(*known, strict=True))
        better = sum(row[0] != row[1] and (row[0] > row[1]) == metric.more_is_better for row in known)
        one = f"each site alone {alone:.3f}, all images in one place {central:.3f}"
        yield f"Mean {metric.inline} over {len(known)} sites: federated {together:.3f}, {one}."
        yield f"The federated model beats the site's own at {better} of {len(known)}."


def _value(site: dict[str, Any], kind: str, metric: Metric) -> float | None:
    value: float | None = (site.get(kind, {}).get("test") or {}).get(metric.key, {}).get("value")
    return value
