"""What the terminal shows of a live run while it is watched: lines that come once, and one line about now."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from polyclinic.cli.answers import moment, span

if TYPE_CHECKING:
    from polyclinic.server.governance.registry import Registry, Run
    from polyclinic.server.live.page.live import Happened, Live, SiteNow

LOOK = 0.5
"""Seconds between two looks."""
ENDED = ("finished", "stopped", "failed")
REPEATED = ("site", "excluded", "alarm")
"""Events that come anew whenever a round is tried again."""
SHOWN = 8
"""Sites that the one line names."""


class Lines:
    """What is new in a run since it was looked at last; what is tried again and again is told once a round."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: Happened | None = None
        self._round, self._phase = 0, ""
        self._told: set[tuple[str, str]] = set()

    def new(self, live: Live) -> Iterator[str]:
        """A line on everything that has happened since."""
        known = next((i + 1 for i in reversed(range(len(live.events))) if live.events[i] == self._last), 0)
        for event in live.events[known:]:
            if event.kind == "done":
                self._told.clear()
            if event.kind not in REPEATED or self._news(event.site, event.text):
                told = figures(self._folder, event.round) if event.kind == "done" and event.round else ""
                yield event_line(event) + (f": {told}" if told else "")
        self._last = live.events[-1] if live.events else self._last
        if live.round != self._round and live.phase == "running":
            self._round = live.round
            yield f"{moment(live.round_began or time.time())}  {stage(live)} began"
        if live.phase != self._phase:
            self._phase = live.phase
            if live.phase in ("waiting", "paused", "finishing") and self._news("", live.why):
                yield f"{moment(live.updated or time.time())}  {live.phase}: {live.why or 'no reason given'}"

    def _news(self, site: str, text: str) -> bool:
        """Whether that was not told in this round; "refused: refused: why" is "why"."""
        key = site, text.rpartition("refused: ")[2] if site else text
        new = key not in self._told
        self._told.add(key)
        return new


def event_line(event: Happened) -> str:
    """ "14:03:20  round 3: north: overdue"."""
    parts = (
        "ALARM" if event.kind == "alarm" else "",
        f"round {event.round}" if event.round and event.kind not in ("done", "finished") else "",
        event.site,
        event.text or event.kind,
    )
    return f"{moment(event.at or 0.0)}  {': '.join(filter(None, parts))}"


def figures(folder: Path, number: int) -> str:
    """What a committed round tells: "began from AUROC 0.812 pooled, …"; nothing if that cannot be read."""
    import json

    from polyclinic.cli.progress import sentence
    from polyclinic.core import study as studies
    from polyclinic.core.errors import PolyclinicError
    from polyclinic.server.rounds import Event

    try:
        lines = (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
        event = Event("done", number, record=json.loads(lines[number - 1]))
        return sentence(studies.load(folder / "study.toml"), event).partition(": ")[2]
    except (OSError, ValueError, IndexError, KeyError, TypeError, PolyclinicError):
        return ""


def stage(live: Live) -> str:
    """ "round 3 of 8"."""
    return "the last evaluation" if live.judging else f"round {live.round} of {live.rounds}"


def now_line(live: Live, now: float) -> str:
    """ "Round 3 of 8: north answered, south working for 12 s; the round ends in 3 h at the latest"."""
    from polyclinic.server.live.page import sayings

    told = [_site(site, now) for site in live.sites[:SHOWN]]
    told += [f"{len(live.sites) - SHOWN} more"] if len(live.sites) > SHOWN else []
    line = sayings.headline(live) + (f": {', '.join(told)}" if told else "")
    if live.phase == "running" and live.deadline:
        line += f"; the round ends in {span(live.deadline - now)} at the latest"
    return line + (f"; about {span(live.end - now)} left" if live.end and live.phase == "running" else "")


def _site(site: SiteNow, now: float) -> str:
    from polyclinic.server.live.page import sayings

    since = f" for {span(now - site.since)}" if site.since and site.state in ("sent", "working", "away") else ""
    return f"{site.name} {sayings.state_of(site).word}{since}"


def watch(registry: Registry, name: str, *, quiet: bool = False) -> Run:
    """Shows a run until it has ended; the run as it ended then.

    Raises:
        RunError: there is no run of this name.
    """
    from rich.console import Console
    from rich.text import Text

    console, lines = Console(highlight=False, soft_wrap=True), Lines(Path(look(registry, name)[0].folder))
    spinner = console.status("") if console.is_terminal and not quiet else None
    with spinner or nullcontext():
        while True:
            run, live = look(registry, name)
            for line in () if quiet else lines.new(live):
                console.print(line, markup=False)
            if spinner is not None:
                spinner.update(Text(now_line(live, time.time())[: max(20, console.width - 4)]))
            if run.state in ENDED and live.phase in (*ENDED, ""):
                return run
            time.sleep(LOOK)


def look(registry: Registry, name: str) -> tuple[Run, Live]:
    """A run as the registry knows it, and as it was told last; phase "" if nobody has taken it up.

    Raises:
        RunError: there is no run of this name.
    """
    from polyclinic.core.errors import RunError
    from polyclinic.server.live.page.live import Live, parse

    run = registry.run(name)
    if run is None:
        raise RunError("there is no such run", where=name)
    try:
        return run, parse((Path(run.folder) / "live.json").read_bytes())
    except (OSError, ValueError):
        return run, Live(run=name, study="", phase="")


def ending(run: Run, folder: Path, again: str) -> Sequence[str]:
    """How a run ended, and what comes next."""
    from polyclinic.cli.result import sentences
    from polyclinic.core import runs

    if run.state != "finished":
        why = f": {run.why}" if run.why else ""
        return (f"{run.name} is {run.state}{why}.", f"To go on from its last committed round: {again}")
    found = runs.read(folder)
    return (
        *sentences(found.summary),
        f"Run folder: {folder}",
        f"Report:     {found.report}",
        f"Next: polyclinic verify {folder}",
    )
