"""The state of a run as lines of plain text, for the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from polyclinic.core.errors import RunError
from polyclinic.server.live.page import sayings
from polyclinic.server.live.page.live import ON, Live, SiteNow
from polyclinic.server.live.page.watched import Seen, Watched
from polyclinic.server.report import words
from polyclinic.server.report.data import Evidence
from polyclinic.server.report.sections import tiles

LAST = 5
"""Events that are shown."""


def snapshot(folder: Path, clock: Callable[[], float] = time.time) -> list[str]:
    """Where the run in ``folder`` stands: phase and why, the round, sites with state and why, the last figures.

    Raises:
        RunError: the folder holds no run.
    """
    if not (folder / "study.toml").is_file():
        raise RunError("holds no run", where=str(folder), remedy="check the folder's name")
    return list(lines(Watched(folder).look(), clock()))


def lines(seen: Seen, now: float) -> Iterator[str]:
    """The lines, from the most to the least important."""
    live = seen.live
    yield f"{live.study or live.run} ({seen.name})"
    yield f"  {sayings.headline(live, len(seen.evidence.rounds))}"
    for text in (sayings.why(live), sayings.advice(live), *seen.troubles):
        if text:
            yield f"  {text}"
    if live.phase in ON:
        yield from times(live, now)
    yield from alarms(live, now)
    if live.sites:
        yield ""
        yield f"Sites: {', '.join(f'{n} {state.word}' for state, n in sayings.counts(live))}"
        yield from sites(live, now)
    if seen.evidence.rounds:
        yield ""
        yield from figures(seen.evidence)
    if live.events:
        yield ""
        yield "What happened, the latest first"
        for event in sayings.told(live.events)[:LAST]:
            yield f"  {ago(event.at, now)}: {' '.join(filter(None, (event.site, sayings.happened(event))))}"


def times(live: Live, now: float) -> Iterator[str]:
    """What is waited for, and how long."""
    parts = []
    if live.round:
        parts = [f"{len(sayings.answered(live))} of {words.counted(len(live.sites), 'site')} answered"]
        parts += [text for text in (sayings.needed(live),) if text]
    if live.phase == "running" and live.deadline:
        parts.append(f"waited for {words.duration(max(0.0, live.deadline - now))} more at the most")
    if live.phase == "running" and live.end:
        parts.append(f"about {words.duration(max(0.0, live.end - now))} left in all")
    if parts:
        yield f"  {'; '.join(parts)}"
    if live.updated is not None:
        yield f"  last word of the run: {ago(live.updated, now)}"


def alarms(live: Live, now: float) -> Iterator[str]:
    """Alarms, the latest first."""
    for event, count in sayings.alarms(live):
        often = f", {count} times" if count > 1 else ""
        yield f"  ALARM {ago(event.at, now)}{often}: {' '.join(filter(None, (event.site, event.text)))}"


def sites(live: Live, now: float) -> Iterator[str]:
    """A line a site, in columns."""
    wide = max(len(site.name) for site in live.sites)
    for site in sayings.ranked(live.sites):
        yield f"  {site.name:<{wide}}  {sayings.state_of(site).word:<9}  {rest(site, now)}".rstrip()


def rest(site: SiteNow, now: float) -> str:
    """Since when, why, and what of the certificate needs saying."""
    over = sayings.state_of(site).over
    lasted = "" if site.since is None else words.duration(max(0.0, now - site.since))
    since = lasted and (f"{lasted} ago" if over else f"for {lasted}")
    certificate = sayings.certificate(site) if sayings.expiring(site) else ""
    return ". ".join(part.rstrip(".") for part in (since, sayings.explained(site), certificate) if part)


def figures(evidence: Evidence) -> Iterator[str]:
    """The figures at the top of the page."""
    trained = words.counted(len(evidence.rounds) - 1, "round")
    yield "The final model" if evidence.finished else f"The model after {trained} of training"
    rows = tiles(evidence)
    wide = max(len(what) for what, _, _ in rows)
    yield from (f"  {what:<{wide}}  {figure}  ({note})" for what, figure, note in rows)


def ago(at: float | None, now: float) -> str:
    """ "12 min ago", or the date of what is older than a day."""
    if at is None:
        return "some time ago"
    if now - at > 86_400:
        return datetime.fromtimestamp(at).astimezone().strftime("%d %b %H:%M")
    return f"{words.duration(max(0.0, now - at))} ago"
