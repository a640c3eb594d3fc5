"""A site's privacy ledger: what was spent, by whom it was paid, and what may still be spent.

Only reservations cost: they are on the disk before the first gradient, and nothing gives them back. Why that never
undercounts:

1. ``reserve`` commits before anything is worked out, within the transaction that looked at the limits.
2. A reservation has one key, and all randomness of its answer follows from it. An answer that is worked out again
   (after a crash, or because a reply got lost) is the same random variable: the same release, which was paid.
3. ``release`` commits the digest of what leaves before it leaves, and refuses a second, different one under the same
   reservation: two sums with the same noise would show their difference. The reservation is then void; the next try
   is a new one, with a new key, and charged.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from polyclinic.client.privacy.budget import Bound, demand_within
from polyclinic.client.privacy.chain import Chain
from polyclinic.client.privacy.people import Cohort
from polyclinic.client.privacy.record import Charge, Question, Record, Reservation, reserve_body
from polyclinic.core.book import EMPTY, Head
from polyclinic.core.errors import PrivacyError
from polyclinic.core.privacy.events import Generator
from polyclinic.core.signing import SigningKey

KEY = 32
"""Bytes of a reservation's key."""


class Ledger:
    """The ledger in ``folder``, which is made if it is not there: privacy.db, and the salt beside it.

    Args:
        key: the site's; each entry is signed with it. A ledger that was begun with a key is gone on with by it alone.
        clock: seconds since the epoch.

    Raises:
        PrivacyError: the ledger is damaged, was altered, or lacks its salt; names the first bad entry.
        RunError: the folder cannot be written.
    """

    def __init__(self, folder: Path, key: SigningKey | None = None, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._chain = Chain(folder, key, clock)

    def close(self) -> None:
        """Lets go of the file."""
        self._chain.close()

    def cohort(self, identities: Mapping[str, int]) -> str:
        """The digest of the cohort of those named, whom the ledger knows from then on.

        Args:
            identities: who → how many images of theirs are in it: see ``people.identities``. All of their images,
                also where fewer are looked at.
        """
        found = Cohort.of(identities, self._chain.salt)
        with self._chain.transaction() as record:
            if found.digest not in record.cohorts:
                self._chain.db.execute("INSERT INTO cohorts VALUES (?, ?)", (found.digest, found.packed))
                body = {"cohort": found.digest, "patients": len(found.members), "images": found.images}
                self._chain.append("cohort", body, found)
        return found.digest

    def reserve(
        self,
        question: Question,
        charges: Sequence[Charge],
        ahead: Sequence[Charge] = (),
        bounds: Sequence[Bound] = (),
        key: bytes | None = None,
    ) -> Reservation:
        """Sets aside what an answer costs; it is on the disk when this returns.

        The same question, with the same charges, gets the same reservation as long as its key is held: until a later
        round of the run is reserved. Whatever is worked out anew without it is charged anew.

        Args:
            ahead: what the rest of the run will cost; nothing is begun that cannot end within the bounds.
            key: for simulated noise: what it follows from, 32 bytes; None: noise is secure.

        Raises:
            PolicyError: a bound would be passed; with the arithmetic.
            PrivacyError: the ledger is damaged, or epsilon cannot be reckoned.
        """
        generator: Generator = "system" if key is None else "simulated"
        told, db = tuple(charges), self._chain.db
        with self._chain.transaction() as record:
            before = record.answering(question)
            if before is not None and (before.charges, before.generator) == (told, generator):
                held = db.execute("SELECT key FROM keys WHERE reservation = ?", (before.number,)).fetchone()
                if held is not None and key in (None, held[0]):
                    return replace(before, key=held[0], repeated=True)
            demand_within(record, question.study, told, tuple(ahead), bounds)
            given = secrets.token_bytes(KEY) if key is None else key
            number = self._chain.append("reserve", reserve_body(question, told, generator)).sequence
            db.execute("DELETE FROM keys WHERE run = ? AND round < ?", (question.run, question.round))
            db.execute("INSERT INTO keys VALUES (?, ?, ?, ?)", (number, question.run, question.round, given))
            return replace(record.reserved[number], key=given)

    def release(self, reservation: Reservation, output: str) -> None:
        """Notes what is about to leave; it may leave when this has returned.

        Args:
            output: digest of everything in the answer that depends on patients.

        Raises:
            PrivacyError: something else was released under this reservation; then this must not leave, and whoever
                asks again is charged again.
        """
        number = reservation.number
        with self._chain.transaction() as record:
            if number not in record.reserved or number in record.void:
                raise PrivacyError("nothing is reserved under this number", where=f"reservation {number}")
            before = record.released.get(number, output)
            if number not in record.released:
                self._chain.append("release", {"reservation": number, "output": output})
            elif before != output:
                self._chain.append("void", {"reservation": number, "output": output})
                self._chain.db.execute("DELETE FROM keys WHERE reservation = ?", (number,))
        if before != output:
            problem = "the same round came out differently the second time: with the same noise, this must not leave"
            raise PrivacyError(problem, where=f"reservation {number}", remedy="asked again, it is charged again")

    def record(self) -> Record:
        """Everything that the ledger says, up to date; to be looked at only."""
        with self._chain.transaction() as record:
            return record

    def head(self) -> Head:
        """(sequence, digest) of the last entry."""
        last = self.record().last
        return (last.sequence, last.digest) if last else EMPTY

    def lines(self) -> list[str]:
        """Every entry as it stands in the ledger, one line of JSON each; no patient's hash is in them."""
        return self._chain.lines()

    @property
    def signer(self) -> str:
        """The key with which entries are signed; "" if they are not."""
        return self.record().signer

    def verify(self, known: Sequence[Head | str] = ()) -> int:
        """Checks everything again, signatures included; how many entries there are.

        Args:
            known: heads, or their digests as receipts have them: the ledger must still hold them.

        Raises:
            PrivacyError: naming the first bad entry.
        """
        return self._chain.verify(known)
