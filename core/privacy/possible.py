"""Which studies may be private: decided by what methods say of themselves, never by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyclinic.core.errors import StudyError

if TYPE_CHECKING:
    from polyclinic.core.config import Method
    from polyclinic.core.study import Study


def demand_private(study: Study) -> None:
    """Nothing, if the study asks for no privacy, or if what it says of it would hold.

    Raises:
        StudyError: naming what stands against it, and why.
    """
    if (privacy := study.privacy) is None:
        return
    for where, method in (("task", study.task), *(("adaptation", method) for method in study.adaptation)):
        _demand_exact(where, method, silence="says nothing of whether each patient's gradient is exact")
    for where, method in (("strategy", study.strategy), ("server_step", study.server_step)):
        _demand_exact(where, method, silence="")  # what it sees has left the sites already
    if study.training.steps is None:
        raise StudyError(
            "a private study says how many steps a round has; an epoch is as long as a site's patients make it",
            where="training",
            remedy="give training.steps in place of epochs",
        )
    public = ("equal", f"{privacy.unit}s")
    if study.rounds.weight not in public:
        raise StudyError(
            f"the number of {study.rounds.weight} is no public figure where the {privacy.unit} is protected",
            where="rounds.weight",
            remedy=" or ".join(f'"{one}"' for one in public),
        )


def _demand_exact(where: str, method: Method, silence: str) -> None:
    facts = method.facts
    why = silence if facts is None else "" if facts.exact_private else facts.because
    if why:
        remedy = "polyclinic methods says which can be private; or leave out [privacy]"
        raise StudyError(f"'{method.method}' cannot be private: {why}", where=where, remedy=remedy)
