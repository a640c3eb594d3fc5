"""What sites report while a run goes on, and what they are given as proof: statuses, refusals, receipts, heads."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polyclinic.core.errors import RunError, TrustError
from polyclinic.core.signing import Signed, canonical
from polyclinic.server.governance.statements import head as demand_head
from polyclinic.server.governance.statements import refusal as demand_refusal
from polyclinic.server.governance.store import Store, statement

REFUSALS = 1000
"""How many refusals of a site are kept; all are in the book."""
HEADS = 4000
"""How many heads are told at once, the latest."""
_SIGNED = "document, signer, signature"


@dataclass(frozen=True)
class Head:
    """How a ledger ended when a site saw it.

    Attributes:
        run: whose ledger; "" is the coordinator's book.
        signed: the site's statement.
    """

    site: str
    run: str
    sequence: int
    digest: str
    signed: Signed


class Reports(Store):
    """The part of the registry that knows what happens while runs go on."""

    def report(self, site: str, status: Mapping[str, Any]) -> None:
        """Keeps how ``site`` is; the latest only."""
        with self.change() as db:
            row = (site, json.dumps(status, allow_nan=False), self.clock())
            db.execute("INSERT OR REPLACE INTO statuses VALUES (?, ?, ?)", row)

    def statuses(self) -> dict[str, tuple[dict[str, Any], float]]:
        """What each site reported last, and when it came (seconds since the epoch)."""
        found = self.rows("SELECT site, status, received FROM statuses ORDER BY site")
        return {site: (json.loads(status), received) for site, status, received in found}

    def refuse(self, site: str, document: dict[str, Any], signed: Signed) -> None:
        """Keeps that ``site`` refused an instruction, and why; the very statement that is known is accepted again.

        Raises:
            UpdateError: it is no refusal as agreed.
            TrustError: it is another site's, or the site has sent too many.
        """
        demand_refusal(document)
        if document["site"] != site:
            raise TrustError("the refusal is another site's", where=site)
        run, number = document["run"], document["round"]
        with self.change() as db:
            row = (site, run, number, signed.document, signed.signer, signed.signature, self.clock())
            new = db.execute(
                f"INSERT OR IGNORE INTO refusals (site, run, round, {_SIGNED}, received) VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            ).rowcount
            if not new:
                return
            keep = "SELECT id FROM refusals WHERE site = ? ORDER BY id DESC LIMIT ?"
            db.execute(f"DELETE FROM refusals WHERE site = ? AND id NOT IN ({keep})", (site, site, REFUSALS))
            self.note(db, "refusal", {"site": site, "run": run, "statement": statement(signed)}, by=site)
            self.tell(db, run, "refusal", f"{site} refused round {number}: {document['why']}")

    def refusals(self, run: str) -> list[dict[str, Any]]:
        """What sites refused in a run, the oldest first."""
        found = self.rows("SELECT document FROM refusals WHERE run = ? ORDER BY id", run)
        return [canonical(row[0]) for row in found]

    def add_receipt(self, run: str, number: int, signed: Signed) -> None:
        """Keeps the receipt of round ``number``; one that differs in its time only is the same one.

        Raises:
            RunError: the round has another receipt already.
        """
        with self.change() as db:
            row = (run, number, signed.document, signed.signer, signed.signature)
            if db.execute("INSERT OR IGNORE INTO receipts VALUES (?, ?, ?, ?, ?)", row).rowcount:
                return
            query = "SELECT document FROM receipts WHERE run = ? AND round = ?"
            before = canonical(db.execute(query, (run, number)).fetchone()[0])
            if before | {"time": 0} != canonical(signed.document) | {"time": 0}:
                raise RunError(f"round {number} has another receipt already", where=run)

    def receipts(self, run: str, after: int, limit: int) -> list[Signed]:
        """Receipts of the rounds after ``after``, at most ``limit``, by round."""
        query = f"SELECT {_SIGNED} FROM receipts WHERE run = ? AND round > ? ORDER BY round LIMIT ?"
        return [Signed(*row) for row in self.rows(query, run, after, limit)]

    def put_head(self, site: str, document: dict[str, Any], signed: Signed) -> None:
        """Keeps the head of a ledger that ``site`` saw ("head"), or of its own book ("own-head").

        Raises:
            UpdateError: it is no head as agreed.
            TrustError: it is another site's, or contradicts what the site said before; that raises an alarm unless the
                statement is merely an older one that comes again.
        """
        demand_head(document)
        if document["site"] != site:
            raise TrustError("the head is another site's", where=site)
        with self.change() as db:
            problem = self._put_head(db, site, document, signed)
        if problem:
            raise TrustError(problem, where=site)

    def _put_head(self, db: sqlite3.Connection, site: str, document: dict[str, Any], signed: Signed) -> str:
        kind, run, number = document["kind"], document.get("run", ""), document["sequence"]
        query = "SELECT sequence, digest, document FROM heads WHERE site = ? AND kind = ? AND run = ?"
        before = db.execute(query, (site, kind, run)).fetchone()
        if before is not None:
            if before[2] == signed.document:
                return ""
            if canonical(before[2])["time"] > document["time"]:
                return "an older statement than the one that is known"
            if number < before[0] or (number == before[0] and document["digest"] != before[1]):
                what = "its own book" if kind == "own-head" else f"the ledger of {run or 'the coordinator'}"
                text = (
                    f"{site} says that {what} ends at line {number}, and said before that it ends at line {before[0]}"
                )
                self._alarm(db, site, run, text, signed)
                return "the head contradicts an earlier one: a ledger was rewritten"
        row = (site, kind, run, number, document["digest"])
        values = (*row, signed.document, signed.signer, signed.signature, self.clock())
        db.execute("INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        return ""

    def alarm(self, site: str, run: str, text: str, signed: Signed) -> None:
        """Raises an alarm over a statement of ``site``: an event, and an entry in the book; the same one only once."""
        with self.change() as db:
            self._alarm(db, site, run, text, signed)

    def heads(self, kind: str = "head") -> list[Head]:
        """The latest heads of all sites that were not revoked, the newest first."""
        columns = "site, run, sequence, digest, document, signer, signature"
        query = (
            f"SELECT {columns} FROM heads JOIN sites ON site = name WHERE kind = ? AND revoked IS NULL"
            " ORDER BY received DESC, site LIMIT ?"
        )
        found = self.rows(query, kind, HEADS)
        return [Head(site, run, number, digest, Signed(*rest)) for site, run, number, digest, *rest in found]

    def _alarm(self, db: sqlite3.Connection, site: str, run: str, text: str, signed: Signed) -> None:
        query = "SELECT EXISTS (SELECT 1 FROM events WHERE run = ? AND kind = 'alarm' AND text = ?)"
        if db.execute(query, (run, text)).fetchone()[0]:
            return
        self.note(db, "alarm", {"site": site, "run": run, "text": text, "statement": statement(signed)}, by=site)
        self.tell(db, run, "alarm", text)
