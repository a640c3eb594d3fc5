"""What a method says of itself, and which methods go together in one chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyclinic.core.errors import StudyError

if TYPE_CHECKING:
    from polyclinic.core.config import Method


@dataclass(frozen=True)
class Facts:
    """What ``polyclinic methods`` prints, and what decides where a method may be used.

    Attributes:
        families: which of parameter, representation, objective, data, architecture it belongs to.
        paper: whose idea it is.
        exact_private: whether each patient's gradient exists on its own and can be had exactly, so that clipping it
            bounds what a patient can change.
        because: why it is or is not, in a few words.
        travels: what leaves a site because of it.
        personal: what it keeps at a site from round to round, so that sites' models differ.
        backbones: what a backbone must have for it.
        identity: whether the model begins with the outputs of the frozen one, as it is without the method.
    """

    families: tuple[str, ...]
    paper: str
    exact_private: bool
    because: str
    travels: str = "nothing"
    personal: str = "nothing"
    backbones: str = "any"
    identity: bool = True


ELSEWHERE = "polyclinic methods --family parameter lists what does"
"""Where to look for methods that adapt."""


def demand_chain(chain: Sequence[Method]) -> None:
    """Nothing, if the methods go together.

    Raises:
        StudyError: one stands twice, two change or keep the same weights, one trains only what another keeps at home,
            or none says what trains.
    """
    names = [method.method for method in chain]
    for name in sorted(set(names)):
        if names.count(name) > 1:
            raise StudyError(f"'{name}' stands twice in the chain", where="adaptation", remedy="keep one")
    if not any(method.adapts for method in chain):
        raise StudyError(
            "nothing in the chain makes an adapter", where="adaptation", remedy=f"add an [[adaptation]]: {ELSEWHERE}"
        )
    for i, method in enumerate(chain):
        for other in chain[:i]:
            for one, another in ((method, other), (other, method)):
                _demand_travel(one, another)
                _demand_place(one, another)
            if both := sorted(method.changes & other.changes):
                raise StudyError(
                    f"'{other.method}' and '{method.method}' both change the backbone's {both[0]}",
                    where="adaptation",
                    remedy="keep one of them",
                )


def _demand_travel(method: Method, keeper: Method) -> None:
    """Refuses a method of which nothing would travel, and two that keep the same at home."""
    if (method.changes and method.changes <= keeper.keeps) or method.keeps & keeper.keeps:
        kept = min(method.keeps & keeper.keeps or method.changes)
        raise StudyError(
            f"'{keeper.method}' keeps the backbone's {kept} at each site, and '{method.method}' is about them, too",
            where="adaptation",
            remedy="keep one of them",
        )


def _demand_place(method: Method, filler: Method) -> None:
    """Refuses two methods that fill one place, and one whose place another fills."""
    if taken := sorted((method.fills | method.relies_on) & filler.fills):
        raise StudyError(
            f"'{filler.method}' puts something of its own at the model's {taken[0]}, which '{method.method}' "
            + ("does, too" if taken[0] in method.fills else "needs as it is"),
            where="adaptation",
            remedy="keep one of them",
        )
