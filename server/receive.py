"""What arrives in one round: each reply is checked before anything is made of it; a bad one is set aside, with why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from polyclinic.core.errors import PolyclinicError, UpdateError
from polyclinic.core.ledger import fingerprint
from polyclinic.core.messages import Instruction, Reply, decode_reply
from polyclinic.core.privacy import receipt as receipts
from polyclinic.core.privacy.told import blanks
from polyclinic.core.statistics.codec import pack
from polyclinic.core.statistics.monoid import Statistic, Withheld
from polyclinic.core.study import Study
from polyclinic.core.update import Manifest, digest

OVERHEAD = 2**20
"""Bytes that a safetensors header may take beyond its tensors."""

LATE = "no reply before the deadline"

SITE_LIMIT = 2**20
"""Images behind one site's statistic: sums over 2^14 sites stay within what a statistic may count."""

TOLD = tuple(f"describe/{kind}" for kind in ("features", "kernel", "intensities", "labels", "acquisition"))
"""Statistics of a site's data, kept over rounds."""

KNOWN = {name: name.removeprefix("describe/") for name in TOLD} | dict.fromkeys(
    ("incoming/val", "incoming/test", "fitted/val"), "outcome"
)
"""Everything that a site may tell, and of which kind it is; anything else is refused.

Of which kind an outcome is, its task says: see ``rounds.blanks``."""


@dataclass(frozen=True)
class Delivery:
    """What came back from one site: the bytes of its reply, or why there is none.

    ``proof`` is what the site signed, and its signature, where replies are signed.
    """

    site: str
    message: bytes | None = None
    failure: str = ""
    proof: str = ""


class Receiver:
    """The replies of one round, without their tensors.

    Attributes:
        accepted: site → its reply's statistics, sizes, weight, seconds, digest and, where there is one, receipt of
            privacy.
        excluded: site → why nothing of it counted.
        refused: (site, why) of every single message that was set aside, repeats included.
        totals: name → sum of what was told under it, beside a blank of the study's own configuration.
        bytes_up: of all that arrived.

    Args:
        expects: what an update must be; None if none is asked for.
        totals: what statistics must be able to merge with: blanks, and what was told in earlier rounds.
    """

    def __init__(
        self,
        study: Study,
        instruction: Instruction,
        chosen: tuple[str, ...],
        expects: Manifest | None,
        totals: Mapping[str, Any],
    ) -> None:
        self._study, self.instruction, self.chosen, self._expects = study, instruction, chosen, expects
        self.totals: dict[str, Any] = dict(totals)
        self.accepted: dict[str, dict[str, Any]] = {}
        self.excluded: dict[str, str] = {}
        self.refused: list[tuple[str, str]] = []
        self.bytes_up = 0

    def check(self, delivery: Delivery) -> Reply | None:
        """The reply, if it is good and the first of its site; else None, and ``excluded`` says why."""
        site, message, failure = delivery.site, delivery.message, delivery.failure
        self.bytes_up += len(message or b"")
        try:
            if message is None:
                raise UpdateError(failure or "no reply")
            reply = decode_reply(message, 0 if self._expects is None else self._expects.size + OVERHEAD)
            self._demand(site, reply)
            totals = self._merged(reply)
        except PolyclinicError as refusal:
            self.set_aside(site, str(refusal))
            return None
        self.totals |= totals
        self.excluded.pop(site, None)
        self.accepted[site] = {
            "statistics": dict(reply.statistics),
            "sizes": dict(reply.sizes),
            "weight": reply.update.weight if reply.update else None,
            "seconds": reply.seconds,
            "update": digest(reply.update.tensors) if reply.update else None,
            "proof": delivery.proof,
            "privacy": receipts.encode(reply.receipt) if reply.receipt else None,
        }
        return reply

    def set_aside(self, site: str, why: str) -> None:
        """Notes that a message of ``site`` does not count."""
        why = sayable(why)
        self.refused.append((site, why))
        if site not in self.accepted:
            self.excluded[site] = why

    def undo(self, site: str, why: str) -> None:
        """Takes back what was accepted of ``site``: its update cannot be folded."""
        del self.accepted[site]
        self.set_aside(site, why)

    def close(self) -> None:
        """Names those who never answered."""
        for site in self.chosen:
            if site not in self.accepted:
                if site not in self.excluded:
                    self.refused.append((site, LATE))
                self.excluded.setdefault(site, LATE)

    def told(self) -> Iterator[tuple[str, str, bytes]]:
        """(site, name, encoded statistic) of what was told about the sites' data."""
        for site, reply in self.accepted.items():
            for name in TOLD:
                if name in reply["statistics"]:
                    yield site, name, pack(reply["statistics"][name])

    def statistics(self, name: str) -> Mapping[str, Statistic | Withheld]:
        """Site → what it told under ``name``, by site."""
        found = {site: reply["statistics"].get(name) for site, reply in sorted(self.accepted.items())}
        return {site: statistic for site, statistic in found.items() if statistic is not None}

    def entry(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The ledger's entry: who took part with which digest and weight, who was set aside and why."""
        kept = {key: record[key] for key in ("round", "base", "result") if key in record}
        took_part = {
            site: {key: r[key] for key in ("update", "weight", "proof") if key != "proof" or r[key]}
            for site, r in sorted(self.accepted.items())
        }
        if "sites" in record:
            kept["record"] = fingerprint(record)
        return {**kept, "sites": took_part, "refused": [list(pair) for pair in sorted(self.refused)]}

    def _demand(self, site: str, reply: Reply) -> None:
        asked = self.instruction
        if site not in self.chosen:
            raise UpdateError("was not asked in this round")
        if site in self.accepted:
            raise UpdateError("answered twice in one round")
        for name in ("study", "run", "round", "nonce", "base"):
            if getattr(reply, name) != getattr(asked, name):
                raise UpdateError(f"reply is to another {name}")
        if reply.site != site:
            raise UpdateError("reply carries another site's name")
        agreed = KNOWN.keys() if self._study.privacy is None else blanks(self._study).keys()
        if unknown := reply.statistics.keys() - agreed:
            raise UpdateError("statistic was not agreed on", where=ascii(min(unknown))[:80])
        if not 0 <= reply.seconds < 2**31:
            raise UpdateError("is no possible time", where="seconds")
        if (reply.update is None) == asked.fit:
            raise UpdateError("an update was asked for and is missing" if asked.fit else "an update was not asked for")
        if reply.update is not None and self._expects is not None:
            images, patients = reply.sizes.get("train", (0, 0))
            due = {"images": images, "patients": patients, "equal": 1}[self._study.rounds.weight]
            if not 1 <= reply.update.weight == due:
                raise UpdateError(f"weight {reply.update.weight} is not the {due} that its own counts give")
            self._expects.check(reply.update.tensors)
        self._demand_receipt(reply)

    def _demand_receipt(self, reply: Reply) -> None:
        """What a private study tells comes with a receipt in the study's own terms; what it says is the site's word."""
        privacy, receipt = self._study.privacy, reply.receipt
        told = any(not isinstance(one, Withheld) for one in reply.statistics.values())
        if receipt is None:
            if privacy is not None and (reply.update is not None or told):
                raise UpdateError("what a private study tells comes with a receipt", where="receipt")
        elif privacy is None:
            raise UpdateError("a receipt of privacy was not asked for", where="receipt")
        elif (receipt.unit, receipt.delta, receipt.generator) != (privacy.unit, privacy.delta, privacy.generator):
            raise UpdateError("is in other terms than the study's", where="receipt")

    def _merged(self, reply: Reply) -> dict[str, Any]:
        """The totals with what this reply tells; UpdateError for another kind or configuration than agreed."""
        merged: dict[str, Any] = {}
        for name, statistic in reply.statistics.items():
            kind = statistic.kind if isinstance(statistic, Withheld) else statistic.name
            agreed = self.totals[name].name if name in self.totals else KNOWN[name]
            if kind != agreed:
                raise UpdateError(f"is a statistic of another kind: {kind}", where=name)
            if not isinstance(statistic, Withheld):
                if getattr(statistic, "images", statistic.patients) > SITE_LIMIT:
                    raise UpdateError(f"counts more than the {SITE_LIMIT} images that one site may have", where=name)
                merged[name] = self.totals[name] + statistic if name in self.totals else statistic
        return merged


def sayable(why: str) -> str:
    """What a stranger gave as a reason, fit for ledgers and terminals: printable, and of at most 500 characters."""
    shown = (char if char.isprintable() else char.encode("unicode_escape").decode() for char in why[:500])
    return "".join(shown)[:500]
