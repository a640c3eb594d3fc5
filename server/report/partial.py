"""The evidence of a run that is still going on: a fold over the records of its rounds, as they come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from polyclinic.core.statistics.figures import Bin
from polyclinic.server.report import data
from polyclinic.server.report.data import Evidence, Figures, Json, Round, Shift, Site


@dataclass(frozen=True)
class SoFar:
    """What the rounds until now told; ``add`` gives what is known with one more.

    Attributes:
        rounds: those that are committed.
        sites: those that took part, with what each told last.
        pooled, bins: of the last model that was judged, over all sites that told.
        shifts: the last table of shift.
    """

    rounds: tuple[Round, ...] = ()
    sites: Mapping[str, Site] = field(default_factory=dict)
    pooled: Figures = field(default_factory=dict)
    bins: tuple[Bin, ...] = ()
    shifts: Mapping[str, Shift] = field(default_factory=dict)

    def add(self, record: Json) -> SoFar:
        """With one more line of rounds.jsonl; the figures that it tells of are those of the model before that round.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is no record of a round.
        """
        one = data.one_round(record)
        told = {name: judged(name, row, one.number - 1) for name, row in record["sites"].items()}
        missing = {name: Site(name) for name in one.excluded}
        pooled = record["pooled"]
        return SoFar(
            rounds=(*self.rounds, one),
            sites={**missing, **self.sites, **told},
            pooled=one.pooled or self.pooled,
            bins=data.bins(pooled.get("reliability")) if one.pooled else self.bins,
            shifts={name: data.shift(row) for name, row in (record.get("shift") or {}).items()} or self.shifts,
        )

    def evidence(self, study: Json, facts: Json, sites: Iterable[str] = (), source: str = "") -> Evidence:
        """The evidence until now.

        Args:
            study: study.toml as plain data; source: its text.
            facts: of summary.json, as far as they are known: at least study and rounds (how many are wanted).
            sites: those of the federation, for the ones that have told nothing yet.
        """
        last = self.rounds[-1].excluded if self.rounds else {}
        known = {**{name: Site(name) for name in sites}, **self.sites}
        shown = [
            replace(site, shift=self.shifts.get(name, Shift()), excluded="" if site.federated else last.get(name, ""))
            for name, site in sorted(known.items())
        ]
        moved: dict[str, Any] = {
            "bytes_up": sum(one.up for one in self.rounds),
            "bytes_down": sum(one.down for one in self.rounds),
            "seconds": sum(one.seconds for one in self.rounds),
            "excluded": {},
        }
        return Evidence(
            study=study,
            source=source,
            facts={**facts, **moved},
            sites=tuple(shown),
            rounds=self.rounds,
            pooled={"val": self.pooled} if self.pooled else {},
            pooled_bins={"val": self.bins} if self.bins else {},
            places={},
            finished=False,
        )


def partial(study: Json, rounds: Iterable[Json], facts: Json, sites: Iterable[str] = (), source: str = "") -> Evidence:
    """The evidence from all records until now; see ``SoFar.evidence``."""
    so_far = SoFar()
    for record in rounds:
        so_far = so_far.add(record)
    return so_far.evidence(study, facts, sites, source)


def judged(name: str, row: Mapping[str, Any], trained: int) -> Site:
    """What a site told in a round about the model that it was sent, which had ``trained`` rounds of training."""
    figures, bins = data.figures(row.get("incoming")), data.bins(row.get("reliability"))
    return Site(
        name=name,
        federated={"val": figures} if figures else {},
        bins={"val": bins} if bins else {},
        trained=trained,
        privacy=row.get("privacy") or {},
    )
