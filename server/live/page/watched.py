"""A run folder as it is now: read again only where a file changed, and never more of it than was added."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from polyclinic.server.live.page import live
from polyclinic.server.live.page.live import Live
from polyclinic.server.report import data
from polyclinic.server.report.data import Evidence, Json
from polyclinic.server.report.partial import SoFar

Stamp = tuple[int, int, int] | None
"""Time of the last change, size and inode; None where there is no file."""
CAPS = {"live.json": 2**22, "study.toml": 2**20, "summary.json": 2**26, "rounds.jsonl": 2**30}
"""Bytes of each file beyond which it is not read."""
TOLD = ("study", "study_digest", "adapter_sha256", "ledger_head", "polyclinic_version", "engine", "seed", "seconds")
"""What a page shows of summary.json as it stands there."""
DAMAGED = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, AssertionError, OverflowError)


@dataclass(frozen=True)
class Seen:
    """What a run folder says.

    Attributes:
        name: of the folder.
        evidence: what the rounds told; the whole run's once ``evidence.finished``.
        report: whether report.html is there.
        troubles: what could not be read, in sentences.
    """

    name: str
    live: Live
    evidence: Evidence
    report: bool
    troubles: tuple[str, ...]


@dataclass(frozen=True)
class Glance:
    """A run in a list of runs: its folder's name, where it stands, whether any round is committed, and report.html."""

    name: str
    live: Live
    begun: bool
    report: bool


@dataclass(frozen=True)
class Records:
    """rounds.jsonl as far as it was read: its bytes up to ``offset``, the last of which were ``tail``."""

    offset: int = 0
    tail: bytes = b""
    lines: int = 0
    so_far: SoFar = field(default_factory=SoFar)
    trouble: str = ""


class Watched:
    """One run folder. ``look`` gives the same objects again for as long as no file changed; not for several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamps: dict[str, Stamp] = {}
        self._live, self._records = Live(run=folder.name, study=""), Records()
        self._study: Json = {}
        self._source, self._summary = "", dict[str, Any]()
        self._troubles: dict[str, str] = {}
        self._seen: Seen | None = None
        self._news: set[str] = set()

    def look(self) -> Seen:
        """What the folder says now."""
        self._refresh((*CAPS, "report.html"))
        if self._seen is None or self._news:
            self._seen = self._compose(self._news)
            self._news = set()
        return self._seen

    def glance(self) -> Glance:
        """Where the run stands, without its records: they may be many."""
        self._refresh(("study.toml", "live.json"))
        bare = self._stamps["live.json"] is None and stamp(self._folder / "summary.json") is None
        now = self.look().live if bare else self._now()
        begun, report = (stamp(self._folder / name) is not None for name in ("rounds.jsonl", "report.html"))
        return Glance(self._folder.name, now, begun, report)

    def _refresh(self, files: Iterable[str]) -> None:
        """Reads those of ``files`` that changed."""
        readers = self._readers()
        for name in files:
            if self._changed(name):
                self._news.add(name)
                if name in readers:
                    self._troubles[name] = attempt(name, readers[name])

    def _changed(self, name: str) -> bool:
        before, self._stamps[name] = self._stamps.get(name), stamp(self._folder / name)
        return before != self._stamps[name]

    def _readers(self) -> Mapping[str, Callable[[], None]]:
        return {
            "study.toml": self._read_study,
            "live.json": self._read_live,
            "rounds.jsonl": self._read_rounds,
            "summary.json": self._read_summary,
        }

    def _bytes(self, name: str) -> bytes | None:
        found = self._stamps[name]
        if found is not None and found[1] > CAPS[name]:
            raise ValueError("it is too big")
        return None if found is None else (self._folder / name).read_bytes()

    def _read_study(self) -> None:
        content = self._bytes("study.toml") or b""
        self._study, self._source = tomllib.loads(content.decode()), content.decode()

    def _read_live(self) -> None:
        if content := self._bytes("live.json"):
            self._live = live.parse(content)

    def _read_summary(self) -> None:
        content = self._bytes("summary.json")
        if content is None:
            self._summary = {}
            return
        summary = json.loads(content)
        data.evidence({}, summary, ())  # or it is refused here
        if lacking := [key for key in TOLD if key not in summary]:
            raise ValueError(f"it lacks {lacking[0]}")
        self._summary = summary

    def _read_rounds(self) -> None:
        if self._stamps["rounds.jsonl"] is None:
            self._records = Records()
            return
        if self._stamps["rounds.jsonl"][1] > CAPS["rounds.jsonl"]:
            raise ValueError("it is too big")
        with (self._folder / "rounds.jsonl").open("rb") as file:
            before = self._records
            file.seek(max(0, before.offset - len(before.tail)))
            if before.trouble or file.read(len(before.tail)) != before.tail:  # mended: written anew
                before = Records()
                file.seek(0)
            self._records = more(before, file.read())
        if self._records.trouble:
            raise ValueError(self._records.trouble)

    def _compose(self, changed: set[str]) -> Seen:
        """Evidence is made anew only where what it is made of changed."""
        now, before = self._now(), self._seen
        same = before is not None and not changed & {"study.toml", "rounds.jsonl", "summary.json"}
        if before is not None and same and names(before.live) == names(now) and before.live.rounds == now.rounds:
            evidence = before.evidence
        elif self._summary:
            records = self._records.so_far.rounds
            evidence = replace(data.evidence(self._study, self._summary, (), self._source), rounds=records)
        else:
            facts = {"study": now.study, "rounds": now.rounds}
            evidence = self._records.so_far.evidence(self._study, facts, names(now), self._source)
        troubles = tuple(text for text in self._troubles.values() if text)
        return Seen(self._folder.name, now, evidence, self._stamps["report.html"] is not None, troubles)

    def _now(self) -> Live:
        """live.json, or what can be said without it: of a simulation, or a run that nobody has begun to carry."""
        if self._stamps["live.json"] is not None:
            return self._live
        done, about = len(self._records.so_far.rounds), live.table(self._study.get("study"))
        wanted = live.whole(live.table(self._study.get("rounds")).get("count")) or 0
        over = stamp(self._folder / "summary.json") is not None
        phase = "finished" if over else "running" if done else "waiting"
        why = "" if over or done else "the coordinator has not begun to carry this run"
        name = live.said(about.get("name")) or self._folder.name
        number = wanted if over else min(done + 1, wanted) if done else 0
        return Live(run=self._folder.name, study=name, phase=phase, why=why, round=number, rounds=wanted)


def more(before: Records, content: bytes) -> Records:
    """With the whole lines of ``content``, which stood after what was read before."""
    whole = content[: content.rfind(b"\n") + 1]
    so_far, number = before.so_far, before.lines
    for number, line in enumerate(whole.splitlines(), before.lines + 1):
        try:
            record = json.loads(line)
            left_out = {name: live.said(why) for name, why in (record.get("excluded") or {}).items()}
            so_far = so_far.add({**record, "excluded": left_out})
        except DAMAGED as failure:
            return Records(so_far=so_far, trouble=f"line {number} is no record of a round ({failure})")
    tail = (before.tail + whole)[-64:]
    return Records(before.offset + len(whole), tail, number, so_far)


def attempt(name: str, read: Callable[[], None]) -> str:
    """Reads, and says what went wrong if anything did: what was read before then still stands."""
    try:
        read()
    except FileNotFoundError:
        return ""  # gone since it was seen: the next look knows
    except OSError as failure:
        return f"{name} cannot be read: {failure.strerror}."
    except DAMAGED as failure:
        return f"{name} cannot be read: {live.said(str(failure))[:200]}."
    return ""


def stamp(path: Path) -> Stamp:
    """What tells that a file was changed."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def names(now: Live) -> tuple[str, ...]:
    """The sites of a run."""
    return tuple(site.name for site in now.sites)
