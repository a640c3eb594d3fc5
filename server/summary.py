"""summary.json: the run in figures, for programs; its schema is server/summary.schema.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polyclinic.core.study import Study
from polyclinic.core.version import VERSION
from polyclinic.server import monitor, shift
from polyclinic.server.journal import Journal

Json = dict[str, Any]


def summarise(study: Study, journal: Journal, *, engine: str, adapter_sha256: str, peak_rss_mb: float) -> Json:
    """What summary.json holds. The run must have finished."""
    final, records = journal.result("final"), journal.rounds()
    moved = [*records, final]
    test = {site: result["metrics"].get("test") for site, result in final["sites"].items()}
    val = {site: result["metrics"].get("val") for site, result in final["sites"].items()}
    split = "test" if monitor.worst(test) else "val"
    worst = monitor.worst(test) or monitor.worst(val)
    return {
        "polyclinic_version": VERSION,
        "study": study.study.name,
        "study_digest": study.digest,
        "seed": study.study.seed,
        "engine": engine,
        "rounds": len(records),
        "seconds": round(sum(record["seconds"] for record in records), 3),
        "bytes_up": sum(record["bytes_up"] for record in moved),
        "bytes_down": sum(record["bytes_down"] for record in moved),
        "peak_rss_mb": round(peak_rss_mb, 1),
        "adapter_sha256": adapter_sha256,
        "pooled": final["pooled"]["metrics"],
        "pooled_reliability": final["pooled"]["reliability"],
        "worst_site": worst and worst | {"split": split},
        "sites": _sites(final, journal),
        "excluded": final["excluded"],
        "map": shift.site_map(journal),
        **({"privacy": records[-1]["privacy"]} if "privacy" in records[-1] else {}),
    }


def _sites(final: Json, journal: Journal) -> Json:
    shifts = shift.table(journal)
    central = journal.result("baseline/central")
    sites: Json = {}
    for site, result in final["sites"].items():
        kept = {key: result[key] for key in ("n", "metrics", "reliability")}
        row = {**kept, "shift": shifts.get(site), **_privacy(site, [*journal.rounds(), final])}
        alone = journal.result(f"baseline/alone/{site}")
        row |= _baseline("alone", alone, site) | _baseline("central", central, site)
        sites[site] = row
    for site, why in final["excluded"].items():
        empty: Json = {"n": {}, "metrics": {}, "reliability": {}}
        sites.setdefault(site, {**empty, "shift": shifts.get(site), "excluded": why})
    return sites


def _privacy(site: str, records: Sequence[Json]) -> Json:
    """The site's last receipt, of a private study."""
    told = [record["sites"][site]["privacy"] for record in records if "privacy" in record["sites"].get(site, {})]
    return {"privacy": told[-1]} if told else {}


def _baseline(name: str, result: Mapping[str, Any] | None, site: str) -> Json:
    return {} if result is None else {name: result.get(site, {})}
