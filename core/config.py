"""Strict, frozen configuration: unknown keys, wrong types and wrong units are refused with the key's place."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from polyclinic.core import registry
from polyclinic.core.errors import PluginError, StudyError
from polyclinic.core.facts import Facts

if TYPE_CHECKING:
    from polyclinic.core.study import Study

_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class Config(BaseModel):
    """Base of every section of a study: frozen, strict, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Method(Config):
    """Base of every plugin's configuration; ``method`` is the name under which it is registered."""

    facts: ClassVar[Facts | None] = None
    """What it says of itself; every adaptation has them."""
    adapts: ClassVar[bool] = False
    """Whether it says what trains: a chain needs one that does."""
    changes: ClassVar[frozenset[str]] = frozenset()
    """Which weights of the backbone it trains or wraps, such as its norms; two that share a kind are refused."""
    keeps: ClassVar[frozenset[str]] = frozenset()
    """Which of these kinds stay at a site as its own: refused beside a method that trains nothing else."""
    fills: ClassVar[frozenset[str]] = frozenset()
    """Which of the model's places (entry, neck, head) hold something of its own; two that share one are refused."""
    relies_on: ClassVar[frozenset[str]] = frozenset()
    """Which of these must stay what the study's task and backbone make of them: refused beside one that fills them."""
    demands: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})
    """What else a study must say for it, section by section: printed by ``polyclinic methods``, held by ``check``."""
    low_rank: ClassVar[bool] = False
    """Whether it trains both low-rank factors of a product at once, which factor-aware strategies need."""
    alternates: ClassVar[bool] = False
    """Whether what trains changes from round to round, so that a site's way in one is not that of all its weights."""
    refactors: ClassVar[bool] = False
    """Whether it lives by products B·A that the server factors anew every round, or is the strategy that does so."""
    discloses: ClassVar[bool] = False
    """Whether a task's outcome can be told under privacy: see ``polyclinic.models.contracts.Disclosing``."""
    sums: ClassVar[bool] = False
    """Of a strategy: that all it makes of updates is their sum, tensor by tensor, so that what one site changes is no
    longer than what it sends: what noise at the server is measured by."""
    merges: ClassVar[bool] = True
    """Whether what it trains can be merged into the backbone's own weights."""

    method: str

    @classmethod
    def fits(cls, task: type[Method]) -> bool:
        """Whether it makes sense with a kind of task; asked by reading a study and by ``polyclinic methods``."""
        return True

    def averages(self) -> bool:
        """Whether a strategy gives the weighted mean of every tensor, and a server step takes it as it is."""
        return False

    def check(self, study: Study) -> None:
        """Refuses, with a StudyError, any study in which this method's promise would not hold."""

    def explain(self) -> str:
        """One plain sentence for ``polyclinic study explain``."""
        return f"{self.method}."


C = TypeVar("C", bound=Config)


def parse(kind: type[C], document: Mapping[str, Any], where: str) -> C:
    """``document`` (plain TOML or JSON data) as a ``kind``.

    Raises:
        StudyError: listing every key that is unknown, missing or wrong, each with its place.
    """
    try:
        text = json.dumps(document, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as failure:
        raise StudyError(f"only text, numbers, true/false and lists are allowed: {failure}", where=where) from failure
    try:
        return kind.model_validate_json(text)
    except ValidationError as failure:
        problems = [_sentence(kind, detail) for detail in failure.errors()]
        raise StudyError("; ".join(problems), where=where) from failure


def resolve(group: str, table: Any, where: str) -> Method:
    """The plugin configuration that ``table`` (with its key ``method``) describes."""
    if isinstance(table, Method):
        return table
    if not isinstance(table, dict) or not isinstance(table.get("method"), str):
        choices = ", ".join(registry.names(group))
        raise StudyError("needs a key 'method'", where=where, remedy=f"one of: {choices}")
    try:
        kind = registry.load(group, table["method"])
    except PluginError as failure:
        raise StudyError(failure.problem, where=f"{where}.method", remedy=failure.remedy) from failure
    config: Method = parse(kind, table, where)
    return config


def _sentence(kind: type[BaseModel], detail: ErrorDetails) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _known_keys(kind, detail["loc"][:-1])
        near = get_close_matches(str(detail["loc"][-1]), known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
        return f"unknown key '{place}': {hint}"
    if detail["type"] == "missing":
        return f"key '{place}' is missing"
    return f"key '{place}': {detail['msg']}, not {json.dumps(detail['input'], default=str)[:80]}"


def _known_keys(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    here: Any = kind
    for part in path:
        fields = getattr(here, "model_fields", {})
        here = fields[part].annotation if part in fields else None
        sections = [one for one in get_args(here) if hasattr(one, "model_fields")]  # of "Section | None"
        here = sections[0] if sections else here
    return sorted(getattr(here, "model_fields", {}))


def _seconds(value: object) -> object:
    """Seconds from a duration with its unit, such as ``"90 s"``, ``"30 min"``, ``"4 h"`` or ``"2 d"``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h|d)", value) if isinstance(value, str) else None
    if match is None:
        raise PydanticCustomError("duration", 'should be a duration with its unit, such as "90 s", "30 min" or "4 h"')
    return float(match[1]) * _SECONDS[match[2]]


Duration = Annotated[float, BeforeValidator(_seconds)]
