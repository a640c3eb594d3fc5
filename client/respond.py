"""Instruction → reply: what a site does in one round. The same function in every engine."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from polyclinic.client.cache import Cache
from polyclinic.client.data.dataset import SiteData
from polyclinic.client.evaluate import describe, outcome
from polyclinic.client.examples import write_examples
from polyclinic.client.fit import fit
from polyclinic.client.keep import Keep, Kept
from polyclinic.client.policy import Kind, Policy
from polyclinic.client.privacy.account import Account
from polyclinic.client.private.answer import Answer, Vault, reserved
from polyclinic.client.private.tell import Speaker, asked, enough, tell
from polyclinic.core.errors import DataError, LimitError, PolicyError, PolyclinicError, UpdateError
from polyclinic.core.messages import Instruction, Reply
from polyclinic.core.privacy.told import blanks
from polyclinic.core.statistics.monoid import Statistic, Withheld
from polyclinic.core.study import Study
from polyclinic.core.update import Update, digest
from polyclinic.models import network
from polyclinic.models.contracts import Anchor
from polyclinic.models.network import Adapted, build

PERSONAL, MEMORY = "personal/", "memory/"
"""What a site keeps: tensors of its own model, and what its methods remember."""
Told = dict[str, Statistic | Withheld | None]


@dataclass(frozen=True)
class Site:
    """A site: its name, its images, its rules, what it keeps for itself, and its privacy ledger."""

    name: str
    data: SiteData
    policy: Policy
    keep: Keep = field(default_factory=Keep)
    vault: Vault = field(default_factory=Vault)


class Workbench:
    """The loaded model of one study, shared by all sites that one process serves, one after another.

    ``cache`` is where what a frozen part of the model makes of pictures is remembered; it changes no bit.
    """

    def __init__(self, study: Study, device: torch.device | None = None, cache: Cache | None = None) -> None:
        self.study = study
        self.task = network.task(study)
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(study.training.threads)
        self.adapted: Adapted = build(study, self.device)
        if (prefix := self.adapted.network.backbone.prefix) is not None:
            prefix.shelf = cache
        self._frozen: nn.Module | None = None
        self._described: dict[SiteData, dict[Kind, Statistic]] = {}
        self._accounts: dict[Vault, Account] = {}

    def frozen(self) -> nn.Module:
        """The backbone as it was pretrained, untouched by any adaptation."""
        if self._frozen is None:
            self._frozen = network.plain(self.study).backbone.to(self.device)
        return self._frozen

    def account(self, site: Site) -> Account | None:
        """The site's privacy account for this study, opened once; None for a study without privacy."""
        if self.study.privacy is None:
            return None
        if site.vault not in self._accounts:
            self._accounts[site.vault] = site.vault.open(self.study, site.name, site.data, site.policy)
        return self._accounts[site.vault]

    def speaker(self) -> Speaker:
        """What tells a private study's figures of the model as it now is."""
        return Speaker(self.adapted.network, self.frozen, self.task, self.study, self.device)

    def described(self, site: Site) -> dict[Kind, Statistic]:
        """How a site's training images are spread, by kind; worked out once."""
        if site.data not in self._described:
            images = site.data.images("train")
            self._described[site.data] = (
                describe(self.frozen(), self.task, images, self.study, self.device) if images else {}
            )
        return self._described[site.data]

    def rest(self) -> None:
        """Lets go of what only describing needs."""
        self._frozen = None


def respond(bench: Workbench, site: Site, instruction: Instruction) -> Reply:
    """Asks the policy, judges the incoming model, trains, judges again, and tells what may be told.

    Raises:
        PolicyError: the site's rules forbid it.
        UpdateError: the global state is not what the instruction says, or does not fit the study.
        DataError: this site cannot do what is asked with the images it has.
    """
    started = time.monotonic()
    study = bench.study
    demand_allowed(study, site, instruction)
    account, kept = bench.account(site), site.keep.before(instruction.run, instruction.round) or {}
    wanted = asked(study, site.policy, instruction) if study.privacy is not None else set()
    open_ones = {what for what in wanted if enough(site.data, site.policy, what)}
    answer = None if account is None else reserved(account, instruction, based(instruction.base, kept), open_ones)
    anchor = bench.adapted.write(instruction.tensors, _part(kept, PERSONAL) or None)
    if account is None:
        statistics = before(bench, site, instruction)
    else:  # nothing leaves but what was set aside
        statistics = withheld(account, instruction, wanted - open_ones, site.policy)
        statistics |= {} if answer is None else dict(tell(answer, bench.speaker(), site.data))
    update, own = None, None
    if instruction.fit:
        own = train(bench, site, instruction, anchor, kept, answer)
        if account is None:
            statistics["fitted/val"] = judge(bench, site, "val")
        update = Update(site.name, weight(study, site), bench.adapted.sent())
    if not instruction.describe:
        bench.rest()
    told = {name: statistic for name, statistic in statistics.items() if statistic is not None}
    reply = Reply(
        site=site.name,
        study=study.digest,
        run=instruction.run,
        round=instruction.round,
        nonce=instruction.nonce,
        base=instruction.base,
        update=update,
        statistics=told,
        sizes=sizes(study, site),
        seconds=round(time.monotonic() - started, 3),
        receipt=None if answer is None else answer.note(update.tensors if update else {}, told),
    )
    if own is not None:  # of an answer that may not leave nothing is kept, either: the next round would tell of it
        site.keep.after(instruction.run, instruction.round, own)
    if not instruction.fit:
        show(bench, site)
    return reply


def demand_allowed(study: Study, site: Site, instruction: Instruction) -> None:
    """Raises PolicyError for what the site's rules forbid, UpdateError for another state than the instruction names."""
    site.policy.demand(instruction, study.digest)
    site.policy.demand_privacy(study)
    if digest(instruction.tensors) != instruction.base:
        raise UpdateError("the global state is not the one that the instruction names", where=site.name)


def based(base: str, kept: Kept) -> str:
    """What an answer is worked out from: the global state and, where there is any, what the site kept."""
    if not kept:
        return base
    own = digest({name: tensor.detach().cpu().numpy() for name, tensor in kept.items()})
    return hashlib.sha256(f"{base} {own}".encode()).hexdigest()


def sizes(study: Study, site: Site) -> dict[str, tuple[int, int]]:
    """(images, patients) of every split, as far as they may be known.

    Where patients are protected, how many images each has is theirs: every patient is then told as one image.
    """
    held = site.data.sizes()
    if study.privacy is None or study.privacy.unit == "image":
        return held
    return {split: (patients, patients) for split, (_, patients) in held.items()}


def withheld(account: Account, instruction: Instruction, wanted: set[str], policy: Policy) -> Told:
    """Word of the figures that would be told here if more patients stood behind them."""
    due = account.due(instruction.run, instruction.round, wanted)
    return {one.what: Withheld(blanks(account.study)[one.what].name, policy.minimum_patients) for one in due}


def before(bench: Workbench, site: Site, instruction: Instruction) -> Told:
    """What is told before training: how the incoming model does, and, if asked, how the data are spread."""
    found = {f"incoming/{split}": judge(bench, site, split) for split in instruction.evaluate}
    if instruction.describe and set(site.policy.tell) - {"outcome"}:
        for kind, statistic in bench.described(site).items():
            found[f"describe/{kind}"] = site.policy.release(kind, statistic)
    return found


def train(
    bench: Workbench, site: Site, instruction: Instruction, anchor: Anchor, kept: Kept, answer: Answer | None
) -> Kept:
    """Trains the model in place; what is the site's own, to be kept.

    Raises:
        DataError: there is nothing to train on.
        PolicyError: the study is private, and nothing was set aside for it.
    """
    images = site.data.images("train")
    if len(images.pixels) == 0:
        raise DataError("has no training images", where=site.name, remedy="leave it out, or give it some")
    at = (site.name, instruction.round)
    private = None if answer is None else answer.training(bench.study, site.vault.make)
    if (private is None) != (bench.study.privacy is None):
        raise PolicyError("nothing was set aside for training", where=site.name)
    memory = fit(
        bench.adapted, bench.task, images, bench.study, *at, anchor, _part(kept, MEMORY), bench.frozen, private
    )
    own = {f"{PERSONAL}{name}": tensor for name, tensor in bench.adapted.read_personal().items()}
    own |= {f"{MEMORY}{name}": tensor for name, tensor in memory.items()}
    return own


def _part(kept: Kept, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in kept.items() if name.startswith(prefix)}


def sayable(refusal: PolyclinicError, site: str) -> str:
    """What a server may hear of a refusal: of images and files only that they are at fault; the log has it all."""
    if isinstance(refusal, PolicyError | UpdateError) and not isinstance(refusal, LimitError):
        return str(refusal)
    logging.getLogger(__name__).error("%s: %s", site, refusal)
    if isinstance(refusal, LimitError):  # the arithmetic tells of who is in several cohorts
        return "a limit on ε at this site would be passed; 'polyclinic privacy show' there says what was spent"
    return "the site cannot use its images or its backbone; its own log says why"


def judge(bench: Workbench, site: Site, split: str) -> Statistic | Withheld | None:
    """How the model now does on a split, as far as the site tells it; None where there are no images."""
    images = site.data.images(split)
    if len(images.pixels) == 0:
        return None
    found = outcome(bench.adapted.network, bench.task, images, bench.study, bench.device)
    return site.policy.release("outcome", found)


def show(bench: Workbench, site: Site) -> None:
    """Leaves examples of what the last model does, for this site's eyes; they are no reason to fail."""
    images = site.data.images("val")
    images = images if len(images) else site.data.images("test")
    if site.keep.folder is None or not len(images):
        return
    try:
        given = (bench.adapted.network, bench.task, images, bench.study, site.name, bench.device)
        write_examples(site.keep.folder, *given)
    except Exception as failure:  # whatever a model makes of some picture must not show in whether the site answers
        logging.getLogger(__name__).warning("%s: no examples: %s", site.name, failure)


def weight(study: Study, site: Site) -> int:
    """What the site's update counts."""
    images, patients = site.data.sizes()["train"]
    return {"images": images, "patients": patients, "equal": 1}[study.rounds.weight]
