"""A run as pieces of HTML: each is sent anew where it changed. Figures and charts are the report's own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from polyclinic.server.live.page import sayings
from polyclinic.server.live.page.live import ON, Live, SiteNow
from polyclinic.server.live.page.watched import Glance, Seen
from polyclinic.server.report.charts.attendance import attendance
from polyclinic.server.report.data import Evidence, Round
from polyclinic.server.report.page import environment
from polyclinic.server.report.sections import sections

NOW = ("phase", "clock", "alarms", "now", "log")
"""Pieces from live.json, by their template."""
FIGURES = ("so-far", "compared", "rounds", "sites", "calibration", "shift", "travelled", "study", "digests", "method")
"""Pieces from the rounds' records or the summary."""


@dataclass(frozen=True)
class Fragment:
    """What stands in the element with this id."""

    id: str
    html: str

    @property
    def digest(self) -> str:
        """Of what it says."""
        return short(self.html)


@dataclass(frozen=True)
class View:
    """All fragments of a page; ``version`` tells them from those of any other moment."""

    title: str
    fragments: tuple[Fragment, ...]

    @property
    def version(self) -> str:
        """A digest of all of it."""
        return short("\n".join(f"{f.id} {f.digest}" for f in self.fragments))

    @property
    def digests(self) -> Mapping[str, str]:
        """Digest by id."""
        return {f.id: f.digest for f in self.fragments}


class Renderer:
    """Makes views; keeps nothing but the templates."""

    def __init__(self) -> None:
        self.templates: Environment = environment(PackageLoader("polyclinic.server.live.page"))
        self.templates.globals.update(moment=moment, quoted=quoted, happened=sayings.happened)

    def run(self, seen: Seen, before: tuple[Seen, View] | None = None) -> View:
        """The page of a run; figures are taken from the view ``before`` where they are still the same."""
        now = {name: self.piece(name, around(seen)) for name in NOW}
        if before and before[0].evidence is seen.evidence:
            figures = [f for f in before[1].fragments if f.id not in NOW]
        else:
            figures = self.figures(seen.evidence)
        return View(title(seen.live), (*(Fragment(name, html) for name, html in now.items()), *figures))

    def figures(self, evidence: Evidence) -> list[Fragment]:
        """The report's sections; before there is anything to show, none."""
        made = sections(evidence)
        there = {name: shown(name, evidence, made) for name in FIGURES}
        return [Fragment(f"part-{name}", self.piece(name, made) if there[name] else "") for name in FIGURES]

    def runs(self, known: Iterable[Glance]) -> View:
        """The list of runs."""
        html = self.piece("runs", {"rows": [row(each) for each in known]})
        return View("Runs", (Fragment("runs", html),))

    def piece(self, name: str, values: Mapping[str, Any]) -> str:
        """The HTML of one piece: of this page, or a section of the report."""
        template = self.templates.select_template([f"live/{name}.html", f"sections/{name}.html"])
        return template.render(values).strip()


def shown(name: str, evidence: Evidence, made: Mapping[str, Any]) -> bool:
    """Whether a section has anything to say yet."""
    if name == "study":
        return bool(evidence.study)
    if name == "compared":
        return bool(made["forests"])
    return evidence.finished or (bool(evidence.rounds) and name != "digests")


def around(seen: Seen) -> dict[str, Any]:
    """What the pieces of this moment are made of."""
    now = seen.live
    alarms = sayings.alarms(now)
    fresh = [pair for pair in alarms if now.phase in ON and pair[0].round in (now.round, None)]
    return {
        "live": now,
        "seen": seen,
        "on": now.phase in ON,
        "description": seen.evidence.study.get("study", {}).get("description", ""),
        "phase": sayings.phase_of(now),
        "headline": sayings.headline(now, len(seen.evidence.rounds)),
        "why": sayings.why(now),
        "advice": sayings.advice(now),
        "title": title(now),
        "answered": len(sayings.answered(now)),
        "needed": sayings.needed(now),
        "done": len(seen.evidence.rounds),
        "alarms": fresh,
        "earlier": [pair for pair in alarms if pair not in fresh],
        "counts": sayings.counts(now),
        "sites": [roster(site, seen.evidence.rounds) for site in sayings.ranked(now.sites)],
        "events": sayings.told(now.events),
    }


def roster(site: SiteNow, rounds: tuple[Round, ...]) -> dict[str, Any]:
    """A site in the list of sites."""
    took = [each.number for each in rounds if site.name in each.arrived]
    asked = [each for each in rounds if site.name in each.arrived or site.name in each.excluded]
    return {
        "name": site.name,
        "state": sayings.state_of(site),
        "urgency": sayings.urgency(site),
        "since": site.since,
        "why": sayings.explained(site),
        "expiring": sayings.certificate(site) if sayings.expiring(site) else "",
        "strip": attendance(site.name, rounds),
        "took": f"answered {len(took)} of {len(asked)}" if asked else "",
    }


def row(known: Glance) -> dict[str, Any]:
    """A run in the list of runs."""
    now = known.live
    return {
        "name": known.name,
        "study": now.study or known.name,
        "phase": sayings.phase_of(now),
        "headline": headline(known),
        "why": sayings.why(now),
        "began": now.began,
        "report": known.report,
    }


def headline(known: Glance) -> str:
    """Where a run stands; how many rounds are done is not said where only the records know."""
    if known.begun and not known.live.round and known.live.phase == "waiting":
        return "Waiting to go on"
    return sayings.headline(known.live)


def title(now: Live) -> str:
    """For the browser's tab: what matters first."""
    place = f"{now.round}/{now.rounds}" if now.phase == "running" and not now.judging else sayings.phase_of(now)[0]
    mark = "⚠ " if now.phase in ("paused", "failed") else ""
    return f"{mark}{place} · {now.study or now.run or 'a run'}"


def moment(at: float | None, kind: str = "at", past: str = "over") -> Markup:
    """A time, which the page shows in its own words, and until then in UTC.

    Args:
        at: in seconds since the epoch.
        kind: "at" a clock's time, how long "ago" or "since" when, or how long "until" then.
        past: what is said after that time.
    """
    if at is None:
        return Markup("–")
    when = datetime.fromtimestamp(at, UTC)
    return Markup('<time datetime="{}" data-{}="{:.3f}" data-past="{}">{:%d %b %H:%M} UTC</time>').format(
        when.isoformat(timespec="seconds"), kind, at, past, when
    )


def quoted(name: str) -> str:
    """A folder's name as part of an address."""
    return quote(name, safe="")


def short(text: str) -> str:
    """A short digest."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:24]
