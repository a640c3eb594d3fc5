"""What a site says of a round's privacy: it travels with the reply."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from polyclinic.core.errors import UpdateError
from polyclinic.core.privacy.events import ADJACENCY, Generator, Unit

SIMULATED = "simulated noise: no privacy"
_HEAD = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Receipt:
    """What a round cost, and where the site's ledger then stood.

    Every epsilon is that of one unit of the study, at ``delta``, and follows from what was released alone. What a
    patient with several images has spent, or one in several studies, is in the site's ledger and stays there: it would
    tell of these patients.

    Attributes:
        unit: whose epsilon it is: what the study protects.
        adjacency: ``ADJACENCY``.
        round: epsilon of this round's releases alone.
        study: of all releases for this study so far, repeats included.
        mechanism: in words.
        head: digest of the ledger's last entry.
        generator: "simulated" noise comes from the study's seed, and gives no privacy.
    """

    unit: Unit
    delta: float
    round: float
    study: float
    mechanism: str
    head: str
    generator: Generator
    adjacency: str = ADJACENCY

    def words(self) -> str:
        """One sentence, unit and adjacency included."""
        if self.generator == "simulated":
            return f"{SIMULATED} (it would be ε = {self.study:.3g} by {self.unit})"
        return f"ε = {self.study:.3g} for the study so far (by {self.unit}, {self.adjacency}, δ = {self.delta:g})"


def encode(receipt: Receipt) -> dict[str, Any]:
    """As JSON data."""
    return asdict(receipt)


def decode(document: Mapping[str, Any]) -> Receipt:
    """Raises UpdateError for whatever is no receipt."""
    fields = dict(document)
    numbers: dict[str, Any] = {name: fields.get(name) for name in ("delta", "round", "study")}
    sound = (
        fields.keys() == Receipt.__dataclass_fields__.keys()
        and all(type(value) in (int, float) and math.isfinite(value) for value in numbers.values())
        and 0.0 < numbers["delta"] < 1.0
        and 0.0 <= numbers["round"] <= numbers["study"] * (1 + 1e-6) + 1e-9
        and fields["unit"] in get_args(Unit)
        and fields["generator"] in get_args(Generator)
        and fields["adjacency"] == ADJACENCY
        and isinstance(fields["head"], str)
        and _HEAD.fullmatch(fields["head"]) is not None
        and isinstance(fields["mechanism"], str)
        and fields["mechanism"].isprintable()
        and len(fields["mechanism"]) <= 500
    )
    if not sound:
        raise UpdateError("is no receipt of what was spent", where="receipt")
    return Receipt(**{**fields, **{name: float(value) for name, value in numbers.items()}})
