"""What every statistic that leaves a site has in common: integers that add, in any order, to the same bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from operator import add, sub
from typing import Any, ClassVar, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polyclinic.core.errors import UpdateError

Json: TypeAlias = int | str | list[Any]
Ints: TypeAlias = NDArray[np.int64]
Longs: TypeAlias = NDArray[np.object_]
"""Python integers, which have no bound: for sums of what may be large, and of its squares."""
Floats: TypeAlias = NDArray[np.float64]

LIMIT = 2**34
"""Images behind one statistic, merged or not: 10^6 images from each of 10^4 sites. Sums of numbers of at most 2^28
units then stay under 2^62, so that adding two statistics within the limit cannot wrap around unseen."""


class Statistic(Protocol):
    """A commutative monoid of integers: adding is exact, so order and grouping never change a bit.

    Attributes:
        name: what it is called on the wire, such as "outcome".
        patients: distinct patients behind it; additive, since sites share no patient.
    """

    name: ClassVar[str]

    @property
    def patients(self) -> int: ...

    def __add__(self, other: Self, /) -> Self: ...

    def released(self, minimum_patients: int) -> Self:
        """The same without cells of so few patients that they may not leave."""
        ...

    def fields(self) -> dict[str, Json]:
        """Everything that travels: plain integers, nested lists of them, and words that name the configuration."""
        ...

    @classmethod
    def from_fields(cls, fields: Mapping[str, object]) -> Self:
        """The inverse of ``fields``. Raises UpdateError naming the field that is missing, unknown or impossible."""
        ...


@dataclass(frozen=True)
class Withheld:
    """Said instead of statistic ``kind`` by a site that has fewer than ``minimum`` patients to speak for."""

    kind: str
    minimum: int


def release(statistic: Statistic, minimum_patients: int) -> Statistic | Withheld:
    """What may leave of a statistic, or only word of it where it stands for fewer patients (or for nobody)."""
    enough = statistic.patients >= max(1, minimum_patients)
    return statistic.released(minimum_patients) if enough else Withheld(statistic.name, minimum_patients)


@dataclass(frozen=True, eq=False)
class Sums:
    """A statistic whose dataclass fields are integers (``int``) and arrays (``Ints``, ``Longs``), added one by one.

    Subclasses name in ``settings`` the fields that are configuration (equal in all that merge, never added) and say
    in ``check`` what any honest instance fulfils; it runs on every instance, received or computed.
    """

    name: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = ()

    patients: int

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raises UpdateError naming the field that cannot be."""
        demand(0 <= self.patients <= LIMIT, "patients", "is no possible count")

    def __add__(self, other: Self, /) -> Self:
        return self._combined(other, add)

    def __sub__(self, other: Self, /) -> Self:
        return self._combined(other, sub)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and isinstance(other, Sums) and self.fields() == other.fields()

    def __hash__(self) -> int:
        return hash(str(self.fields()))

    def released(self, minimum_patients: int) -> Self:
        """The statistic as it is: its cells are no groups of patients that share what is told of them."""
        return self

    def fields(self) -> dict[str, Json]:
        """Everything that travels, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}

    @classmethod
    def from_fields(cls, fields: Mapping[str, object]) -> Self:
        """The statistic that ``fields`` describes.

        Raises:
            UpdateError: a field is missing, unknown, of another type or shape, or contradicts the others.
        """
        return cls(**_typed(cls, fields))

    def _combined(self, other: Self, operation: Callable[[Any, Any], Any]) -> Self:
        if type(self) is not type(other):
            raise UpdateError(f"'{self.name}' does not merge with {type(other).__name__}", where=self.name)
        result: dict[str, Any] = {}
        for field in fields(self):
            one, two = getattr(self, field.name), getattr(other, field.name)
            same = one == two if field.name in self.settings else np.shape(one) == np.shape(two)
            demand(same, field.name, "has another configuration in the statistic to merge with")
            result[field.name] = one if field.name in self.settings else operation(one, two)
        return type(self)(**result)


def rest(total: Sums, one: Sums) -> Any:
    """``total`` without ``one``, exactly: what all the other sites told. Of the same type as both.

    Raises:
        UpdateError: ``one`` is no part of ``total``.
    """
    return total - one


def demand(holds: bool | np.bool_, field: str, problem: str) -> None:
    """Raises UpdateError at ``field`` unless it ``holds``."""
    if not holds:
        raise UpdateError(problem, where=field)


def demand_moments(total: int, squared: int, count: int, cap: int, unit: int, field: str) -> None:
    """Refuses Σx and Σx² (``field`` and ``field``_squared, in 2^-``unit``) that no ``count`` numbers in [0, cap] have.

    Σx² lies between (Σx)²/n and cap·Σx, up to the rounding of each number.
    """
    slack = count + 1
    demand(0 <= total <= (count * cap << unit) + slack, field, "is no possible sum")
    low, high = total**2 - 2 * slack * total, cap * total + cap * slack
    possible = squared >= 0 and low <= (squared + slack) * max(count, 1) << unit and squared <= high
    demand(possible, f"{field}_squared", f"does not fit {field}")


def fixed(values: Floats, unit: int) -> Ints:
    """``values`` in units of 2^-``unit``, each rounded once to the nearest (ties to even)."""
    return np.rint(values * float(2**unit)).astype(np.int64)


def _typed(cls: type[Sums], received: Mapping[str, object]) -> dict[str, Any]:
    known = {field.name: str(field.type) for field in fields(cls)}
    demand(isinstance(received, Mapping), cls.name, "is no table of fields")
    for name in received.keys() - known.keys():
        raise UpdateError("is no field of this statistic", where=ascii(name)[:80])
    result: dict[str, Any] = {}
    for name, kind in known.items():
        demand(name in received, name, "is missing")
        value = received[name]
        if kind == "Ints":
            result[name] = _array(name, value)
        elif kind == "Longs":
            result[name] = _long(name, value)
        else:
            demand(type(value) is {"int": int, "str": str}[kind], name, f"is no {kind}")
            result[name] = value
    return result


def _array(name: str, value: object) -> Ints:
    demand(isinstance(value, list) and _whole(value), name, "is no list of integers")
    try:
        array = np.array(value)
    except (ValueError, OverflowError) as failure:
        raise UpdateError("has rows of unequal lengths or numbers beyond bounds", where=name) from failure
    demand(array.dtype == np.int64, name, "is empty or has numbers beyond bounds")
    demand(bool(((array >= -(2**62)) & (array <= 2**62)).all()), name, "has numbers beyond bounds")
    return array


def _long(name: str, value: object) -> Longs:
    demand(isinstance(value, list) and _whole(value), name, "is no list of integers")
    try:
        array = np.array(value, dtype=np.object_)
    except ValueError as failure:
        raise UpdateError("has rows of unequal lengths", where=name) from failure
    flat = array.ravel().tolist()
    demand(bool(flat) and not any(isinstance(item, list) for item in flat), name, "has rows of unequal lengths")
    demand(all(abs(item) < 2**128 for item in flat), name, "has numbers beyond bounds")
    return array


def _whole(value: object) -> bool:
    return all(_whole(item) for item in value) if isinstance(value, list) else type(value) is int
