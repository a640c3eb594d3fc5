"""What a thing to fuzz is: a valid original, how it is damaged, and what must hold for whatever comes of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polyclinic.core.errors import PolyclinicError
from tests.faults.fuzzing.mutate import Rng

REFUSED, SAME, OTHER = "refused", "accepted, the same", "accepted, another"


class BrokenPromiseError(AssertionError):
    """Something was accepted, or came out, that must not."""


@dataclass(frozen=True)
class Target:
    """One thing to fuzz.

    Attributes:
        name: what it is called in reports.
        share: of all cases, in parts per hundred.
        original: valid bytes.
        damage: other bytes, from the original and a generator.
        judge: what becomes of bytes: "refused: …", ``SAME`` or ``OTHER``. Raises BrokenPromiseError, or whatever
            escapes from the product, which is a fault too.
    """

    name: str
    share: int
    original: bytes
    damage: Callable[[bytes, Rng], bytes]
    judge: Callable[[bytes], str]


def refusing(judge: Callable[[bytes], str]) -> Callable[[bytes], str]:
    """``judge``, with our own errors counted as refusals."""

    def judged(data: bytes) -> str:
        try:
            return judge(data)
        except PolyclinicError as refusal:
            str(refusal).encode()  # half a character in a reason would break the ledger
            return f"{REFUSED}: {type(refusal).__name__}"

    return judged


def demand(holds: bool, broken: str) -> None:
    """Raises BrokenPromiseError unless it ``holds``."""
    if not holds:
        raise BrokenPromiseError(broken)


def round_trip(
    original: bytes, decode: Callable[[bytes], Any], encode: Callable[[Any], bytes]
) -> Callable[[bytes], str]:
    """What decodes comes back to the byte when it is encoded, decoded and encoded again."""

    def judge(data: bytes) -> str:
        again = encode(decode(data))
        demand(encode(decode(again)) == again, "what was decoded does not survive being encoded")
        return SAME if again == original else OTHER

    return refusing(judge)


def case(target: Target, seed: int, index: int) -> bytes:
    """The bytes of one case: they depend on the seed, the target and the number alone."""
    return target.damage(target.original, random.Random(f"{seed}/{target.name}/{index}"))
