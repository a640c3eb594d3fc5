"""Who takes part in a run, as the registry knows it now: approved, not withdrawn, not revoked, with this version."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from polyclinic.core.study import Study
from polyclinic.core.version import VERSION
from polyclinic.server.governance.registry import Registry, State
from polyclinic.server.live.sites import Member, needed
from polyclinic.server.live.state import LiveState

LOOK = 0.5
"""Seconds for which what the registry said is taken for true."""
DAY = 86400.0


class RegistryCohort:
    """See ``polyclinic.server.live.sites.Cohort``."""

    def __init__(
        self, registry: Registry, study: Study, state: LiveState, clock: Callable[[], float] = time.time
    ) -> None:
        self._registry, self._study, self._state, self._clock = registry, study, state, clock
        self._members: dict[str, Member] = {}
        self._looked = -LOOK

    def members(self) -> Mapping[str, Member]:
        """Site → what is known."""
        if abs(self._clock() - self._looked) >= LOOK:
            self._looked = self._clock()
            self._members = self._look()
            self._state.only(self._shown, needed(self._study.rounds.quorum, len(self._members)))
        return self._members

    def note(self, site: str, state: str, why: str = "") -> None:
        """Shows a site's state, and "working" where the site itself says so."""
        self._state.note(site, state, why)

    def short(self, why: str) -> None:
        """Pauses the run, or lets it go on, in the registry too."""
        if self._state.short(why):
            state: State = "paused" if why else "running"
            self._registry.set_state(self._state.run, state, why, only_from=("wanted", "running", "paused"))

    def _look(self) -> dict[str, Member]:
        decisions, statuses = self._registry.decisions(self._study.digest), self._registry.statuses()
        members: dict[str, Member] = {}
        self._shown = []
        for site in self._registry.sites():
            decision, (status, seen) = decisions.get(site.name), statuses.get(site.name, ({}, 0.0))
            self._shown.append(site.name)
            days = int((site.not_after - self._clock()) // DAY)
            if site.revoked is not None:
                self._state.note(site.name, "revoked", certificate_days=days)
            elif decision is None:
                self._state.note(site.name, "undecided", certificate_days=days)
            elif decision.verb != "approve":
                self._state.note(site.name, "withdrawn", certificate_days=days)
            elif decision.version != VERSION:
                why = f"approved for version {decision.version}, this is {VERSION}"
                self._state.note(site.name, "undecided", why, certificate_days=days)
            else:
                members[site.name] = Member(site.signing_key, seen, status)
                self._state.working(site.name, status, certificate_days=days)
        return members
