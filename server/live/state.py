"""live.json: what is going on in a run right now, for the live page and for ``status``; written by the runner alone."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from polyclinic.core import files
from polyclinic.core.errors import RunError
from polyclinic.core.study import Study
from polyclinic.server.rounds import Event

OFTEN, SELDOM = 0.3, 5.0
"""Seconds between two writings: at least, unless the phase changes; and at most, so that a reader sees it is alive."""
BLOCK = 4096
"""Bytes that a file takes of a disk at a time, at the least."""
KEPT = 50
"""Events that are shown."""


class LiveState:
    """Gathers what happens and writes it whole, so that a reader never sees half of it."""

    def __init__(self, folder: Path, run: str, study: Study, clock: Callable[[], float] = time.time) -> None:
        self.run, self._path, self._study, self._clock = run, folder / "live.json", study, clock
        self._written, self._text = 0.0, ""
        self._seconds: list[float] = []
        self._short = ""
        before = read(folder)
        self._state: dict[str, Any] = {
            "run": run,
            "study": study.study.name,
            "digest": study.digest,
            "rounds": study.rounds.count,
            "round": 0,
            "round_began": None,
            "deadline": None,
            "began": before.get("began", clock()),
            "quorum": 0,
            "left": None,
            "sites": {},
            "events": before.get("events", []),
        }
        self.phase("waiting", "sites are being waited for")

    def phase(self, phase: str, why: str = "") -> None:
        """Says where the run stands."""
        if (self._state.get("phase"), self._state.get("why")) != (phase, why):
            if self._state.get("phase") != phase and phase in ("paused", "stopped", "failed", "finished"):
                self.event("alarm" if phase in ("paused", "failed") else phase, text=why)
            self._state |= {"phase": phase, "why": why}
            self.flush(now=True)

    def now(self) -> tuple[str, str]:
        """(phase, why)."""
        return self._state["phase"], self._state["why"]

    def short(self, why: str) -> bool:
        """Shows that a run waits for sites, or ("") has enough of them; whether a run that was on paused or goes on."""
        if self._state["round_began"] is None:
            self.phase("waiting", why or "sites are being waited for")
            return False
        if self._short == why:
            return False
        self._short = why
        self.phase("paused" if why else "running", why)
        return True

    def note(self, site: str, state: str, why: str = "", **more: Any) -> None:
        """What a site is doing, since when."""
        row = self._state["sites"].setdefault(site, {"missed": 0, "last": None, "certificate_days": None})
        if row.get("state") != state or (why and row.get("why") != why):
            row["missed"] += state == "overdue"
            row |= {"state": state, "since": self._clock(), "why": why}
            if state == "answered":
                row |= {"missed": 0, "last": self._state["round"]}
            if state in ("overdue", "away", "revoked"):  # what was refused is told as excluded
                self.event("alarm" if state == "revoked" else "site", site, f"{state}: {why}" if why else state)
        row |= more
        self.flush()

    def working(self, site: str, status: Mapping[str, Any], **more: Any) -> None:
        """Shows "working" from when a site that was sent this round's instruction says that it is at work on it."""
        row = self._state["sites"].get(site, {})
        at_it = (status.get("agent"), status.get("round")) == ("working", self._state["round"])
        if row.get("state") == "sent" and at_it and status.get("run") == self._state["run"]:
            self.note(site, "working", **more)
        elif row:
            row |= more

    def only(self, sites: Sequence[str], quorum: int) -> None:
        """Forgets sites that are not of the cohort any more."""
        self._state["quorum"] = quorum
        self._state["sites"] = {site: row for site, row in self._state["sites"].items() if site in sites}

    def observe(self, event: Event) -> None:
        """As an observer of the round loop."""
        if event.kind == "round":
            now, deadline = self._clock(), self._study.rounds.deadline
            self._state |= {"round": event.round, "round_began": now, "deadline": now + deadline}
            last = "" if event.round <= self._study.rounds.count else "the final model is judged at every site"
            self.phase("running", last)
        if event.kind == "site" and event.failure:
            self.event("excluded", event.site, event.failure)
        if event.kind == "done" and event.record is not None:
            self._seconds.append(event.record["seconds"])
            rounds = self._study.rounds.count - event.round
            self._state["left"] = rounds * sum(self._seconds[-5:]) / len(self._seconds[-5:])
            self.event("done", text=f"round {event.round} is committed")
        self.flush(now=event.kind != "site")

    def event(self, kind: str, site: str = "", text: str = "") -> None:
        """One line of the log."""
        line = {"at": self._clock(), "kind": kind, "round": self._state["round"], "site": site, "text": text}
        self._state["events"] = [*self._state["events"], line][-KEPT:]

    def flush(self, *, now: bool = False) -> None:
        """Writes what is new, if it was not done a moment ago; to be called now and then when nothing happens."""
        age = self._clock() - self._written
        text = json.dumps(self._state)
        if now or (text != self._text and age >= OFTEN) or not 0 <= age < SELDOM:
            self._written, self._text = self._clock(), text
            updated = json.dumps(self._state | {"updated": self._written}).encode()
            try:
                files.write(self._path, updated, durable=False)
            except RunError as failure:  # what is shown may be old for once; the run goes on
                logging.getLogger(__name__).warning("%s", failure)
                _in_place(self._path, updated)


def _in_place(path: Path, content: bytes) -> None:
    """Writes over a file if that takes no more of a full disk: why a run is paused is to be read all the same."""
    with suppress(OSError), path.open("r+b") as out:
        if len(content) <= -(-out.seek(0, 2) // BLOCK) * BLOCK:
            out.seek(0)
            out.write(content)
            out.truncate()


def read(folder: Path) -> Mapping[str, Any]:
    """live.json of a run; empty if there is none, or none that can be read."""
    try:
        found = json.loads((folder / "live.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
