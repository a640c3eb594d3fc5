"""What is offered to the sites, and what each of them decided about it."""

from __future__ import annotations

from typing import Any

from polyclinic.core.errors import TrustError
from polyclinic.core.signing import Signed, canonical
from polyclinic.server.governance.statements import Decision
from polyclinic.server.governance.statements import decision as demand_decision
from polyclinic.server.governance.store import Store, statement

EARLY, LATE = 600.0, 7 * 86400.0
"""Seconds by which a decision's time may be ahead of the coordinator's, and an approval's behind it, when it arrives:
sites decide while the coordinator is away, too."""
_SIGNED = "document, signer, signature"


class Studies(Store):
    """The part of the registry that knows offers and decisions."""

    def publish(self, signed: Signed, study: str) -> None:
        """Offers the study of this digest; an offer of the same study takes the place of the one before."""
        with self.change() as db:
            values = (study, signed.document, signed.signer, signed.signature, self.clock())
            db.execute("INSERT OR REPLACE INTO offers VALUES (?, ?, ?, ?, ?, NULL)", values)
            self.note(db, "published", {"study": study, "statement": statement(signed)})
            self.tell(db, "", "published", f"study {study[:12]} is offered")

    def offers(self) -> list[Signed]:
        """All that is offered, the oldest first."""
        query = f"SELECT {_SIGNED} FROM offers WHERE retired IS NULL ORDER BY published, study"
        return [Signed(*row) for row in self.rows(query)]

    def offer(self, study: str) -> Signed | None:
        """The offer of this study."""
        found = self.rows(f"SELECT {_SIGNED} FROM offers WHERE study = ? AND retired IS NULL", study)
        return Signed(*found[0]) if found else None

    def retired(self) -> list[str]:
        """Digests of what is no longer offered, the latest 1,000."""
        query = "SELECT study FROM offers WHERE retired IS NOT NULL ORDER BY retired DESC LIMIT 1000"
        return [row[0] for row in self.rows(query)]

    def retire(self, study: str) -> None:
        """Offers it no longer.

        Raises:
            TrustError: it is not offered.
        """
        with self.change() as db:
            query = "UPDATE offers SET retired = ? WHERE study = ? AND retired IS NULL"
            if not db.execute(query, (self.clock(), study)).rowcount:
                raise TrustError("this study is not offered", where=study[:80])
            self.note(db, "retired", {"study": study})
            self.tell(db, "", "retired", f"study {study[:12]} is offered no longer")

    def decide(self, site: str, document: dict[str, Any], signed: Signed) -> None:
        """Keeps what ``site`` decided; the very statement that is known already is accepted again.

        The caller has checked that ``signed`` is by the site and says ``document``.

        Raises:
            UpdateError: it is no decision as agreed.
            TrustError: for another site, about a study that is not offered, older than the decision that is known, or
                an approval that was not given now.
        """
        demand_decision(document)
        if document["site"] != site:
            raise TrustError("the decision is another site's", where=site)
        study, sequence, approves = document["study"], document["sequence"], document["verb"] == "approve"
        now = self.clock()
        with self.change() as db:
            known = db.execute("SELECT retired FROM offers WHERE study = ?", (study,)).fetchone()
            if known is None or (approves and known[0] is not None):
                raise TrustError("this study is not offered", where=study[:12])
            query = "SELECT sequence, document FROM decisions WHERE study = ? AND site = ?"
            before = db.execute(query, (study, site)).fetchone()
            if before is not None and before[1] == signed.document:
                return
            if before is not None and sequence <= before[0]:
                raise TrustError(f"decision {sequence} is not newer than decision {before[0]}, which is known")
            late = now - document["time"]
            if late < -EARLY or (approves and late > LATE):  # what only takes back may come late
                remedy = "see that both clocks are right, and decide again"
                raise TrustError(f"the decision's time is {late:.0f} s before the coordinator's", remedy=remedy)
            row = (study, site, sequence, signed.document, signed.signer, signed.signature, now)
            db.execute("INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            told = {"site": site, "study": study, "verb": document["verb"], "statement": statement(signed)}
            self.note(db, "decision", told, by=site)
            self.tell(db, "", document["verb"], f"{site}: {document['verb']} study {study[:12]}")

    def decisions(self, study: str) -> dict[str, Decision]:
        """What each site decided last about the study, by site; also sites that were revoked since."""
        query = f"SELECT site, received, {_SIGNED} FROM decisions WHERE study = ? ORDER BY site"
        return {row[0]: _decision(row[1], Signed(*row[2:])) for row in self.rows(query, study)}


def _decision(received: float, signed: Signed) -> Decision:
    document = canonical(signed.document)
    del document["kind"]
    return Decision(**document, signed=signed, received=received)
