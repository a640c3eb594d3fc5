"""Instruction → reply: what a site does in one round. The same function in every engine."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from polyclinic.client.cache import Cache
from polyclinic.client.data.dataset import SiteData
from polyclinic.client.evaluate import describe, outcome
from polyclinic.client.fit import fit
from polyclinic.client.keep import Keep, Kept
from polyclinic.client.policy import Kind, Policy
from polyclinic.core.errors import DataError, PolicyError, PolyclinicError, UpdateError
from polyclinic.core.messages import Instruction, Reply
from polyclinic.core.statistics.monoid import Statistic, Withheld
from polyclinic.core.study import Study
from polyclinic.core.update import Update, digest
from polyclinic.models import network
from polyclinic.models.network import Adapted, build

PERSONAL, MEMORY = "personal/", "memory/"
"""What a site keeps: tensors of its own model, and what its methods remember."""


@dataclass(frozen=True)
class Site:
    """A site: its name, its images, its rules, and what it keeps for itself."""

    name: str
    data: SiteData
    policy: Policy
    keep: Keep = field(default_factory=Keep)


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

    def frozen(self) -> nn.Module:
        """The backbone as it was pretrained, untouched by any adaptation."""
        if self._frozen is None:
            self._frozen = network.plain(self.study).backbone.to(self.device)
        return self._frozen

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
    site.policy.demand(instruction, study.digest)
    if digest(instruction.tensors) != instruction.base:
        raise UpdateError("the global state is not the one that the instruction names", where=site.name)
    kept = site.keep.before(instruction.run, instruction.round) or {}
    anchor = bench.adapted.write(instruction.tensors, _part(kept, PERSONAL) or None)
    statistics = {f"incoming/{split}": judge(bench, site, split) for split in instruction.evaluate}
    if instruction.describe and set(site.policy.tell) - {"outcome"}:
        for kind, statistic in bench.described(site).items():
            statistics[f"describe/{kind}"] = site.policy.release(kind, statistic)
    update = None
    if instruction.fit:
        images = site.data.images("train")
        if len(images.pixels) == 0:
            raise DataError("has no training images", where=site.name, remedy="leave it out, or give it some")
        at = (site.name, instruction.round)
        memory = fit(bench.adapted, bench.task, images, study, *at, anchor, _part(kept, MEMORY), bench.frozen)
        own = {f"{PERSONAL}{name}": tensor for name, tensor in bench.adapted.read_personal().items()}
        own |= {f"{MEMORY}{name}": tensor for name, tensor in memory.items()}
        site.keep.after(instruction.run, instruction.round, own)
        statistics["fitted/val"] = judge(bench, site, "val")
        update = Update(site.name, weight(study, site), bench.adapted.read())
    if not instruction.describe:
        bench.rest()
    return Reply(
        site=site.name,
        study=study.digest,
        run=instruction.run,
        round=instruction.round,
        nonce=instruction.nonce,
        base=instruction.base,
        update=update,
        statistics={name: statistic for name, statistic in statistics.items() if statistic is not None},
        sizes=site.data.sizes(),
        seconds=round(time.monotonic() - started, 3),
    )


def _part(kept: Kept, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in kept.items() if name.startswith(prefix)}


def sayable(refusal: PolyclinicError, site: str) -> str:
    """What a server may hear of a refusal: of images and files only that they are at fault; the log has it all."""
    if isinstance(refusal, PolicyError | UpdateError):
        return str(refusal)
    logging.getLogger(__name__).error("%s: %s", site, refusal)
    return "the site cannot use its images or its backbone; its own log says why"


def judge(bench: Workbench, site: Site, split: str) -> Statistic | Withheld | None:
    """How the model now does on a split, as far as the site tells it; None where there are no images."""
    images = site.data.images(split)
    if len(images.pixels) == 0:
        return None
    found = outcome(bench.adapted.network, bench.task, images, bench.study, bench.device)
    return site.policy.release("outcome", found)


def weight(study: Study, site: Site) -> int:
    """What the site's update counts."""
    images, patients = site.data.sizes()["train"]
    return {"images": images, "patients": patients, "equal": 1}[study.rounds.weight]
