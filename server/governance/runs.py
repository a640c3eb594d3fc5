"""Which runs there are and what state they are in, and the events that everybody may follow."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from polyclinic.core.errors import RunError
from polyclinic.server.governance.store import Store

State = Literal["wanted", "running", "paused", "stopped", "finished", "failed"]


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        name: as it stands in instructions, receipts and ledgers.
        study: digest.
        folder: where it is kept, as text.
        state: "wanted" until a runner takes it up.
        why: what led to the state; "" if it speaks for itself.
        created: seconds since the epoch.
    """

    name: str
    study: str
    folder: str
    state: State
    why: str
    created: float


@dataclass(frozen=True)
class Event:
    """Something that happened; ``at`` in seconds since the epoch."""

    sequence: int
    at: float
    run: str
    kind: str
    text: str


class Runs(Store):
    """The part of the registry that knows runs and events."""

    def want(self, name: str, study: str, folder: str) -> Run:
        """Asks for a new run.

        Raises:
            RunError: there is one of that name.
        """
        run = Run(name, study, folder, "wanted", "", self.clock())
        with self.change() as db:
            if db.execute("SELECT 1 FROM runs WHERE name = ?", (name,)).fetchone():
                raise RunError("there is a run of this name already", where=name)
            db.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?)", tuple(vars(run).values()))
            self.note(db, "run", {"run": name, "study": study, "state": "wanted"})
            self.tell(db, name, "wanted", f"run {name} is wanted")
        return run

    def runs(self) -> list[Run]:
        """All runs, the oldest first."""
        return [Run(*row) for row in self.rows("SELECT * FROM runs ORDER BY created, name")]

    def run(self, name: str) -> Run | None:
        """The run of that name."""
        found = self.rows("SELECT * FROM runs WHERE name = ?", name)
        return Run(*found[0]) if found else None

    def set_state(self, name: str, state: State, why: str = "", *, only_from: Collection[State] = ()) -> bool:
        """Puts a run into ``state``; with ``only_from``, only if it is in one of those. Whether that was done.

        Raises:
            RunError: there is no such run, or no such state.
        """
        if state not in get_args(State):
            raise RunError(f"there is no state {state!r}", where=name)
        with self.change() as db:
            found = db.execute("SELECT state, why FROM runs WHERE name = ?", (name,)).fetchone()
            if found is None:
                raise RunError("there is no run of this name", where=name)
            if only_from and found[0] not in only_from:
                return False
            if found != (state, why):
                db.execute("UPDATE runs SET state = ?, why = ? WHERE name = ?", (state, why, name))
                self.note(db, "run", {"run": name, "state": state, "why": why})
                self.tell(db, name, state, f"run {name} is {state}{': ' if why else ''}{why}")
        return True

    def event(self, run: str, kind: str, text: str) -> None:
        """Adds an event."""
        with self.change() as db:
            self.tell(db, run, kind, text)

    def events(self, after: int = 0, limit: int = 100) -> list[Event]:
        """Events after the one with sequence ``after``, at most ``limit``, the oldest first."""
        query = "SELECT sequence, at, run, kind, text FROM events WHERE sequence > ? ORDER BY sequence LIMIT ?"
        return [Event(*row) for row in self.rows(query, after, limit)]

    def last_event(self) -> int:
        """Sequence of the latest event; 0 if there is none."""
        return int(self.rows("SELECT coalesce(max(sequence), 0) FROM events")[0][0])
