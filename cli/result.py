"""How a run went, in a few sentences: what the terminal says at its end."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any


def figure(found: dict[str, Any]) -> str:
    """0.912 (0.851–0.950), or a dash."""
    if found["value"] is None:
        return "–"
    limits = "" if found["low"] is None else f" ({found['low']:.3f}–{found['high']:.3f})"
    return f"{found['value']:.3f}{limits}"


def sentences(summary: dict[str, Any]) -> Iterator[str]:
    """The sentences on a summary: the federation's model, what it is measured against, and what it took."""
    pooled, worst = summary["pooled"].get("test"), summary["worst_site"]
    if pooled is None or pooled["auroc"]["value"] is None:
        why = pooled["auroc"]["why"] if pooled else "no site told any"
        yield f"There is no pooled AUROC on test images: {why}."
    else:
        yield f"Pooled AUROC on test images: {figure(pooled['auroc'])}, with its 95 % interval."
    if worst:
        at = summary["sites"][worst["site"]]["metrics"][worst["split"]]["auroc"]
        yield f"Worst site: {worst['site']} with {figure(at)} on {worst['split']} images."
    yield from _comparison(summary["sites"])
    if summary["excluded"]:
        yield "Not in these figures: " + "; ".join(f"{site}: {why}" for site, why in summary["excluded"].items()) + "."
    megabytes = (summary["bytes_up"] + summary["bytes_down"]) / 1e6
    yield f"It took {summary['rounds']} rounds, {summary['seconds']:.0f} s and {megabytes:.1f} MB on the way."


def _comparison(sites: dict[str, Any]) -> Iterator[str]:
    rows = [tuple(_auroc(site, kind) for kind in ("metrics", "alone", "central")) for site in sites.values()]
    known = [row for row in rows if None not in row]
    if known:
        together, alone, central = (fmean(value or 0.0 for value in column) for column in zip(*known, strict=True))
        better = sum((row[0] or 0.0) > (row[1] or 0.0) for row in known)
        one = f"each site alone {alone:.3f}, all images in one place {central:.3f}"
        yield f"Mean AUROC over {len(known)} sites: federated {together:.3f}, {one}."
        yield f"The federated model beats the site's own at {better} of {len(known)}."


def _auroc(site: dict[str, Any], kind: str) -> float | None:
    value: float | None = (site.get(kind, {}).get("test") or {}).get("auroc", {}).get("value")
    return value
