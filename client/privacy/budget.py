"""How much may be spent, and the arithmetic that is shown when it would be more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polyclinic.client.privacy.record import Charge, Record
from polyclinic.core.errors import LimitError

SLACK = 1e-9
"""By what share of it a bound may be passed: so much floating point is."""


@dataclass(frozen=True)
class Bound:
    """The most that may be spent on any patient of the site.

    Attributes:
        whose: in words, such as "this site's limit".
        study: digest of the study whose releases alone count; "": everything that the site ever released.
    """

    epsilon: float
    delta: float
    whose: str
    study: str = ""


def demand_within(
    record: Record, study: str, charges: Sequence[Charge], ahead: Sequence[Charge], bounds: Sequence[Bound]
) -> None:
    """Nothing, if the ``charges`` of a study, and what lies ``ahead`` after them, fit into every bound.

    Raises:
        LimitError: with what was spent, what this would add, and where the run would end.
    """
    for bound in bounds:
        if bound.study not in ("", study):
            continue
        spent = record.charged(bound.study)
        end = record.epsilon([*spent, *charges, *ahead], bound.delta)
        if end <= bound.epsilon * (1 + SLACK):
            continue
        before, after = record.epsilon(spent, bound.delta), record.epsilon([*spent, *charges], bound.delta)
        scope = "for this study" if bound.study else "for all that the site ever released"
        raise LimitError(
            f"{bound.whose} is ε = {bound.epsilon:g} for a patient {scope} (δ = {bound.delta:g}). "
            f"Spent: {before:.3f}. With this round: {after:.3f}. At the end of the run: {end:.3f}",
            where="privacy",
            remedy="more noise, fewer rounds or a higher limit; polyclinic privacy plan shows what fits",
        )
