"""An audit of a study: attacks on its claim, and checks of what the claim rests on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.manifest import read_manifest, sites
from polyclinic.core.errors import DataError
from polyclinic.core.privacy.events import ADJACENCY
from polyclinic.core.privacy.plan import demand
from polyclinic.core.study import Study
from polyclinic.models import network
from polyclinic.simulations.audit.attack import Attack, attack
from polyclinic.simulations.audit.canaries import Kind
from polyclinic.simulations.audit.checks import Finding, checks
from polyclinic.simulations.audit.federation import changed


@dataclass(frozen=True)
class Audit:
    """What an audit of a study found; ``study`` is as it was audited."""

    study: Study
    attacks: tuple[Attack, ...]
    checks: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether no claim was refuted, and no check failed."""
        return all(one.passed for one in self.attacks) and all(one.passed for one in self.checks)

    def document(self) -> dict[str, Any]:
        """As JSON data."""
        privacy = demand(self.study)
        return {
            "study": self.study.digest,
            "passed": self.passed,
            "unit": privacy.unit,
            "adjacency": ADJACENCY,
            "generator": privacy.generator,
            "attacks": [one.document() for one in self.attacks],
            "checks": [one.document() for one in self.checks],
        }


def audit(
    study: Study,
    kinds: Sequence[Kind],
    canaries: int,
    *,
    data: SiteData | None = None,
    full: bool = False,
    seed: int | None = None,
    tell: Callable[[str], None] = lambda words: None,
) -> Audit:
    """Audits a study: see ``attack.attack`` and ``checks.checks``. Where the first check fails, no attack can be made.

    Args:
        seed: everything follows from it, noise included; None: coins and noise are the system's and the study's.
        tell: is told what is being done.

    Raises:
        StudyError: the study has no ``[privacy]``.
        QuorumError: a site refused a run; with its reason.
    """
    demand(study)
    if seed is not None:
        study = changed(study, {"study": {"seed": seed}, "privacy": {"generator": "simulated"}})
    rng, found = np.random.default_rng(seed), list[Finding]()
    for one in checks(study, rng):
        tell(f"checked: {one.check}")
        found.append(one)
    attacks = []
    for kind in kinds if found[0].passed else ():
        attacks.append(attack(study, kind, canaries, rng, data=data, full=full))
        tell(f"attacked: {kind} canaries")
    return Audit(study, tuple(attacks), tuple(found))


def largest(study: Study, manifest: Path) -> SiteData:
    """The site of a manifest that has most training patients.

    Raises:
        DataError: the manifest cannot be used, or nobody trains.
    """
    task = network.task(study)
    rows = read_manifest(manifest, study.data, task, study.study.seed)
    held = [SiteData(name, group, study.data, task) for name, group in sites(rows).items()]
    chosen = max(held, key=lambda data: (data.sizes()["train"][1], data.site))
    if not chosen.sizes()["train"][1]:
        raise DataError("has no training images", where=str(manifest), remedy="give it some, or leave --data out")
    return chosen
