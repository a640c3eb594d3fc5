"""Sites that one workbench answers for, one after another, in this process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from polyclinic.client.respond import Site, Workbench, respond, sayable
from polyclinic.core.errors import PolyclinicError
from polyclinic.core.messages import decode_instruction, encode_reply
from polyclinic.server.receive import Delivery


class InTurn:
    """See ``polyclinic.server.rounds.Sites``."""

    def __init__(self, bench: Workbench, sites: Mapping[str, Site], *, hurried: bool = True) -> None:
        self._bench, self._sites, self._hurried = bench, sites, hurried

    def names(self) -> Sequence[str]:
        """Sites, sorted."""
        return sorted(self._sites)

    def send(self, message: bytes, to: Sequence[str], deadline: float) -> Iterator[Delivery]:
        """The deadline is looked at between two sites."""
        end = time.monotonic() + deadline
        for name in to:
            if self._hurried and time.monotonic() > end:
                return
            yield answer(self._bench, self._sites[name], message)


def answer(bench: Workbench, site: Site, message: bytes) -> Delivery:
    """What a site gives back for an instruction's bytes: the bytes of its reply, or its refusal."""
    try:
        return Delivery(site.name, encode_reply(respond(bench, site, decode_instruction(message))))
    except PolyclinicError as refusal:
        return Delivery(site.name, failure=sayable(refusal, site.name))
