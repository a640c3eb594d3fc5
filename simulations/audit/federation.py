"""A private federation in memory, through the code that hospitals run, and all that its coordinator sees of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from polyclinic.client.data.dataset import SiteData
from polyclinic.client.policy import Policy
from polyclinic.client.private.answer import Vault
from polyclinic.client.private.step import Make
from polyclinic.client.respond import Site, Workbench
from polyclinic.core.config import parse
from polyclinic.core.messages import Reply, decode_instruction, decode_reply
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors
from polyclinic.server import rounds
from polyclinic.server.journal import Journal
from polyclinic.server.receive import Delivery
from polyclinic.simulations.in_turn import InTurn


@dataclass(frozen=True)
class Exchange:
    """One site's part in one round: the global state that was sent, and the reply as it arrived."""

    site: str
    round: int
    sent: Tensors
    reply: Reply

    @property
    def moved(self) -> dict[str, Any]:
        """Weight → sent − received, along the gradient; empty where no training was asked for."""
        update = self.reply.update
        return {} if update is None else {name: self.sent[name] - update.tensors[name] for name in update.tensors}


class Watched(InTurn):
    """Sites in this process; ``seen`` is what went to them and came back, decoded from the bytes."""

    def __init__(self, bench: Workbench, sites: Mapping[str, Site]) -> None:
        super().__init__(bench, sites, hurried=False)
        self.seen: list[Exchange] = []

    def send(self, message: bytes, to: Sequence[str], deadline: float) -> Iterator[Delivery]:
        """See ``polyclinic.server.rounds.Sites``."""
        asked = decode_instruction(message)
        for delivery in super().send(message, to, deadline):
            if delivery.message is not None:
                reply = decode_reply(delivery.message)
                self.seen.append(Exchange(delivery.site, asked.round, asked.tensors, reply))
            yield delivery


def federate(
    bench: Workbench, data: Mapping[str, SiteData], make: Mapping[str, Make], *, judged: bool = False
) -> list[Exchange]:
    """All rounds of the bench's study, and, if ``judged``, the evaluation after them; ledgers end with it.

    Args:
        data: site → its images.
        make: site → how it makes private steps.

    Raises:
        QuorumError: a site refused; with its reason.
        DivergedError: the server step left the bounds.
    """
    initial, going = bench.adapted.read(), rounds.run if judged else rounds.train
    with (
        TemporaryDirectory(prefix="polyclinic-") as folder,
        closing(Journal.create(None, {"run": uuid.uuid4().hex})) as journal,
    ):
        vaults = {name: Vault(Path(folder, name), make=make[name]) for name in data}
        sites = {name: Site(name, held, Policy(), vault=vaults[name]) for name, held in data.items()}
        watched = Watched(bench, sites)
        try:
            going(bench.study, watched, initial, journal, lambda event: None)
        finally:
            for site in sites.values():
                if (account := bench.account(site)) is not None:
                    account.ledger.close()
    return watched.seen


def changed(study: Study, sections: Mapping[str, Mapping[str, Any]]) -> Study:
    """The study with some settings changed: section → setting → value.

    Raises:
        StudyError: such a study is impossible.
    """
    document = study.model_dump(mode="json")
    for section, settings in sections.items():
        document[section] = document[section] | settings
    return parse(Study, document, "audit")
