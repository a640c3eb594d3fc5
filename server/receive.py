"""What arrives in one round: each reply is checked before anything is made of it; a bad one is set aside, with why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from polyclinic.core.errors import PolyclinicError, UpdateError
from polyclinic.core.messages import Instruction, Reply, decode_reply
from polyclinic.core.statistics.codec import pack
from polyclinic.core.statistics.monoid import Statistic, Withheld
from polyclinic.core.update import Manifest, digest

OVERHEAD = 2**20
"""Bytes that a safetensors header may take beyond its tensors."""

LATE = "no reply before the deadline"

TOLD = ("describe/features", "describe/kernel", "describe/intensities", "describe/labels")
"""Statistics of a site's data, kept over rounds."""

KNOWN = {*TOLD, "incoming/val", "incoming/test", "fitted/val"}
"""Everything that a site may tell; anything else is refused."""


class Receiver:
    """The replies of one round, without their tensors.

    Attributes:
        accepted: site → its reply's statistics, sizes, weight, seconds and digest.
        excluded: site → why nothing of it counted.
        refused: (site, why) of every single message that was set aside, repeats included.
        bytes_up: of all that arrived.
    """

    def __init__(self, instruction: Instruction, chosen: tuple[str, ...], expects: Manifest | None) -> None:
        self.instruction, self.chosen, self._expects = instruction, chosen, expects
        self.accepted: dict[str, dict[str, Any]] = {}
        self.excluded: dict[str, str] = {}
        self.refused: list[tuple[str, str]] = []
        self.bytes_up = 0

    def check(self, site: str, message: bytes | None, failure: str = "") -> Reply | None:
        """The reply, if it is good and the first of its site; else None, and ``excluded`` says why."""
        self.bytes_up += len(message or b"")
        try:
            if message is None:
                raise UpdateError(failure or "no reply")
            reply = decode_reply(message, None if self._expects is None else self._expects.size + OVERHEAD)
            self._demand(site, reply)
        except PolyclinicError as refusal:
            self.refused.append((site, str(refusal)))
            if site not in self.accepted:
                self.excluded[site] = str(refusal)
            return None
        self.excluded.pop(site, None)
        self.accepted[site] = {
            "statistics": dict(reply.statistics),
            "sizes": dict(reply.sizes),
            "weight": reply.update.weight if reply.update else None,
            "seconds": reply.seconds,
            "update": digest(reply.update.tensors) if reply.update else None,
        }
        return reply

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
        took_part = {site: {"update": r["update"], "weight": r["weight"]} for site, r in sorted(self.accepted.items())}
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
        if unknown := reply.statistics.keys() - KNOWN:
            raise UpdateError("statistic was not agreed on", where=ascii(min(unknown))[:80])
        if (reply.update is None) == asked.fit:
            raise UpdateError("an update was asked for and is missing" if asked.fit else "an update was not asked for")
        if reply.update is not None and self._expects is not None:
            if type(reply.update.weight) is not int or not 1 <= reply.update.weight < 2**40:
                raise UpdateError("weight is no count of images or patients")
            self._expects.check(reply.update.tensors)
