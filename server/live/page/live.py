"""live.json as typed, frozen records. What stands in it may have come from a site: nothing of it is taken on trust."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MOST = 600
"""Characters of a text that are shown."""
EVENTS = 50
SITES = 1000
LATEST = 32_503_680_000.0
"""The year 3000, in seconds since the epoch: no time is later."""
ON = ("waiting", "running", "paused", "finishing")
"""Phases of a run that is on."""


@dataclass(frozen=True)
class SiteNow:
    """What a site is doing; ``since`` in seconds since the epoch, ``certificate_days`` until its certificate ends."""

    name: str
    state: str
    since: float | None = None
    why: str = ""
    missed: int = 0
    certificate_days: int | None = None
    last: int | None = None


@dataclass(frozen=True)
class Happened:
    """One line of the log."""

    at: float | None
    kind: str
    round: int | None
    site: str
    text: str


@dataclass(frozen=True)
class Live:
    """A run at this moment; times in seconds since the epoch, ``left`` in seconds from ``updated``."""

    run: str
    study: str
    digest: str = ""
    phase: str = "waiting"
    why: str = ""
    round: int = 0
    rounds: int = 0
    round_began: float | None = None
    deadline: float | None = None
    began: float | None = None
    updated: float | None = None
    quorum: int = 0
    left: float | None = None
    sites: tuple[SiteNow, ...] = ()
    events: tuple[Happened, ...] = ()

    @property
    def judging(self) -> bool:
        """Whether all rounds are over and the final model is being judged."""
        return 0 < self.rounds < self.round

    @property
    def end(self) -> float | None:
        """When the run is likely to end."""
        return None if self.left is None or self.updated is None else self.updated + self.left


def parse(text: str | bytes) -> Live:
    """The contents of live.json; what is missing or of the wrong kind is as if it were not known.

    Raises:
        ValueError: it is no JSON object.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    return Live(
        run=said(found.get("run")),
        study=said(found.get("study")),
        digest=said(found.get("digest")),
        phase=said(found.get("phase")) or "waiting",
        why=said(found.get("why")),
        round=whole(found.get("round")) or 0,
        rounds=whole(found.get("rounds")) or 0,
        round_began=epoch(found.get("round_began")),
        deadline=epoch(found.get("deadline")),
        began=epoch(found.get("began")),
        updated=epoch(found.get("updated")),
        quorum=whole(found.get("quorum")) or 0,
        left=epoch(found.get("left")),
        sites=tuple(site(said(name), row) for name, row in sorted(table(found.get("sites")).items())[:SITES]),
        events=events(found.get("events")),
    )


def site(name: str, row: Any) -> SiteNow:
    """A site from its object."""
    found = table(row)
    return SiteNow(
        name=name,
        state=said(found.get("state")) or "unknown",
        since=epoch(found.get("since")),
        why=said(found.get("why")),
        missed=whole(found.get("missed")) or 0,
        certificate_days=whole(found.get("certificate_days")),
        last=whole(found.get("last")),
    )


def events(found: Any) -> tuple[Happened, ...]:
    """The last lines of the log, the oldest first."""
    rows = [table(row) for row in found[-EVENTS:]] if isinstance(found, list) else []
    return tuple(
        Happened(
            at=epoch(row.get("at")),
            kind=said(row.get("kind")),
            round=whole(row.get("round")),
            site=said(row.get("site")),
            text=said(row.get("text")),
        )
        for row in rows
    )


def said(value: Any) -> str:
    """A text without anything that could hide or turn around what stands beside it, cut where it is too long."""
    if not isinstance(value, str):
        return ""
    kept = "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Cf", "Zl", "Zp") else c for c in value[: 4 * MOST])
    plain = " ".join(kept.split())
    return plain if len(plain) <= MOST else f"{plain[: MOST - 1]}…"


def whole(value: Any) -> int | None:
    """A whole number that fits in a page."""
    fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**9
    return value if fits else None


def epoch(value: Any) -> float | None:
    """A number of seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < LATEST else None  # nan compares false


def table(value: Any) -> Mapping[str, Any]:
    """An object; empty where there is none."""
    return value if isinstance(value, dict) else {}
