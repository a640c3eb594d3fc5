"""What a federation is measured against: each site alone, and all data pooled in one place, by the very same loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from polyclinic.client.data.dataset import SiteData
from polyclinic.client.keep import Keep
from polyclinic.client.private.answer import Vault
from polyclinic.client.respond import Site, Workbench
from polyclinic.core.errors import PolyclinicError
from polyclinic.core.update import Tensors
from polyclinic.server import monitor, rounds
from polyclinic.server.journal import Journal
from polyclinic.simulations.in_turn import InTurn

CENTRAL = "central"


def names(sites: Sequence[str]) -> tuple[str, ...]:
    """All baselines: "central", and "alone/SITE" for every site."""
    return (CENTRAL, *(f"alone/{site}" for site in sorted(sites)))


def baseline(bench: Workbench, sites: Mapping[str, Site], initial: Tensors, name: str) -> dict[str, Any]:
    """Trains baseline ``name`` as long as the federation trains and judges it: site → metrics by split."""
    quiet = {"tell": ("outcome",)}  # how the images are spread, the federation has told
    one = Keep()  # what the trained model keeps for itself is what it is judged with, wherever that is
    quieted = {own: site.policy.model_copy(update=quiet) for own, site in sites.items()}
    sites = {own: replace(site, policy=quieted[own], keep=one, vault=Vault()) for own, site in sites.items()}
    if name == CENTRAL:
        trained, judged = {CENTRAL: pooled(sites)}, dict(sites)
    else:
        site = name.removeprefix("alone/")
        trained = judged = {site: sites[site]}
    journal, study = Journal.create(None, {"run": name}), bench.study
    kind = bench.task.blank(bins=study.monitoring.bins, score_bins=study.monitoring.score_bins).name
    try:
        state = rounds.train(
            study, InTurn(bench, trained, hurried=False), initial, journal, lambda event: None, noised=False
        )
        final = rounds.judge(study, InTurn(bench, judged, hurried=False), state, journal, lambda event: None)
    except PolyclinicError as failure:  # the federation's own result stands all the same
        return {site: dict.fromkeys(("val", "test"), monitor.unavailable(failure.problem, kind)) for site in judged}
    finally:
        journal.close()
    return {site: result["metrics"] for site, result in final["sites"].items()}


def pooled(sites: Mapping[str, Site]) -> Site:
    """One site that holds the training images of all; the same patient id at two sites stays two patients."""
    rows = [
        replace(row, site=CENTRAL, patient=f"{name}/{row.patient}")
        for name, site in sorted(sites.items())
        for row in site.data.rows
        if row.split == "train"
    ]
    first = next(iter(sites.values()))
    return Site(CENTRAL, SiteData(CENTRAL, tuple(rows), first.data.data, first.data.task), first.policy)
