"""What a site allows, whatever a server asks."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field

from polyclinic.core.config import Config, parse
from polyclinic.core.errors import PolicyError, StudyError
from polyclinic.core.messages import Instruction
from polyclinic.core.statistics.monoid import Statistic, Withheld, release
from polyclinic.core.study import Study

CACHE_MB = 2048
"""MiB that remembered features take on a disk unless something else is said."""

Kind = Literal["outcome", "features", "kernel", "intensities", "labels", "acquisition"]


class Policy(Config):
    """A site's rules.

    ``minimum_patients`` is the number of patients under which no figure leaves; ``tell`` lists the kinds of statistics
    that may leave at all; ``studies`` lists the digests of approved studies ("any" in a simulation). ``epsilon`` is
    the most that may ever be spent on any patient, over all studies, at ``delta``; nothing then leaves without privacy.
    """

    minimum_patients: int = Field(default=10, ge=1)
    tell: tuple[Kind, ...] = ("outcome", "features", "kernel", "intensities", "labels", "acquisition")
    studies: Literal["any"] | tuple[str, ...] = "any"
    epsilon: float | None = Field(default=None, gt=0.0)
    delta: float = Field(default=1e-5, gt=0.0, lt=1.0)

    def demand(self, instruction: Instruction, study_digest: str) -> None:
        """Nothing, if this site may do what the instruction asks.

        Raises:
            PolicyError: another study than the one in force here, or one that was not approved.
        """
        if instruction.study != study_digest:
            raise PolicyError("the instruction is for another study than the one in force at this site")
        if self.studies != "any" and instruction.study not in self.studies:
            raise PolicyError("this study was not approved here", remedy="approve its digest first")

    def demand_privacy(self, study: Study) -> None:
        """Nothing, if the study has privacy, or this site sets no limit to it.

        Raises:
            PolicyError: what left would have no epsilon, and any limit would be passed.
        """
        if self.epsilon is not None and study.privacy is not None and study.privacy.generator == "simulated":
            raise PolicyError(
                f"this site allows ε = {self.epsilon:g} for a patient, and noise from a seed gives no privacy at all",
                where="privacy.generator",
                remedy='a study with generator = "system"',
            )
        if self.epsilon is not None and study.privacy is None:
            raise PolicyError(
                f"this site allows ε = {self.epsilon:g} for a patient, and a study without [privacy] has no ε at all",
                remedy="a study with [privacy], or no epsilon in this site's policy",
            )

    def release(self, kind: Kind, statistic: Statistic) -> Statistic | Withheld | None:
        """What may leave: the statistic, word that it is withheld, or nothing."""
        return release(statistic, self.minimum_patients) if kind in self.tell else None


def read_policy(path: Path) -> Policy:
    """A site's policy from a TOML file.

    Raises:
        PolicyError: it cannot be read, or has an unknown or wrong key.
    """
    try:
        return parse(Policy, tomllib.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as failure:
        raise PolicyError(f"cannot be read: {failure}", where=str(path)) from failure
    except StudyError as failure:
        raise PolicyError(failure.problem, where=failure.where) from failure
