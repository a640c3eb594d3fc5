"""What sites state and report, checked key by key: nothing else is kept, shown or passed on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from polyclinic.core.errors import UpdateError
from polyclinic.core.governance.wire import STATUS_LIMIT
from polyclinic.core.signing import Signed

_DIGEST = re.compile(r"[0-9a-f]{64}")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,127}")
_WORD = re.compile(r"[\x21-\x7e]{1,128}")
_HOURS = re.compile(r"[\x20-\x7e]{1,64}")

Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Decision:
    """What a site decided about a study.

    Attributes:
        verb: "approve" or "withdraw".
        version: of Polyclinic, for which the decision holds.
        backbone_sha256: of the weights, for which it holds.
        limits: "rounds" (int), "until" (seconds since the epoch), "hours" (text); None where there is none. "epsilon",
            if any.
        time: seconds since the epoch, by the site's clock.
        sequence: grows with every decision of the site about the study.
        signed: the statement itself.
        received: when it came, by the coordinator's clock.
    """

    site: str
    study: str
    verb: Literal["approve", "withdraw"]
    version: str
    backbone_sha256: str
    limits: Mapping[str, Any]
    time: float
    sequence: int
    signed: Signed
    received: float


def decision(document: Mapping[str, Any]) -> None:
    """Raises UpdateError unless ``document`` is a decision as agreed."""
    _demand(document, _DECISION, "decision")
    limits = document["limits"]
    _demand(limits, {**_LIMITS, **(_EPSILON if "epsilon" in limits else {})}, "decision.limits")


def refusal(document: Mapping[str, Any]) -> None:
    """Raises UpdateError unless ``document`` is a refusal as agreed."""
    _demand(document, _REFUSAL, "refusal")


def head(document: Mapping[str, Any]) -> None:
    """Raises UpdateError unless ``document`` is a head, or a site's own head, as agreed."""
    _demand(document, _HEAD if document.get("kind") == "head" else _OWN_HEAD, "head")


def status(text: bytes) -> dict[str, Any]:
    """The status that a site reports.

    Raises:
        UpdateError: longer than 4 KiB, no JSON, or not as agreed.
    """
    if len(text) > STATUS_LIMIT:
        raise UpdateError(f"a status of {len(text)} bytes is longer than {STATUS_LIMIT}")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as failure:
        raise UpdateError("is no JSON", where="status") from failure
    _demand(document, _STATUS, "status")
    if document["answered"] is not None:
        _demand(document["answered"], _ANSWERED, "status.answered")
    found: dict[str, Any] = document
    return found


def _demand(document: Any, shape: Mapping[str, Check], where: str) -> None:
    if not isinstance(document, dict) or document.keys() != shape.keys():
        raise UpdateError("has other keys than agreed", where=where)
    for key, check in shape.items():
        if not check(document[key]):
            raise UpdateError("is not as agreed", where=f"{where}.{key}")


def _matches(pattern: re.Pattern[str]) -> Check:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _one_of(*values: str) -> Check:
    return lambda value: isinstance(value, str) and value in values


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**53  # no NaN, no infinity


def _time(value: Any) -> bool:
    return _number(value) and value >= 0


def _sentence(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 500 and value.isprintable()


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _or_empty(check: Check) -> Check:
    return lambda value: value == "" or check(value)


_text: Check = _matches(re.compile(r".{1,64}"))
_digest, _run, _version = _matches(_DIGEST), _matches(_RUN), _matches(_WORD)
_DECISION: Mapping[str, Check] = {
    "kind": _one_of("decision"),
    "site": _text,
    "study": _digest,
    "verb": _one_of("approve", "withdraw"),
    "version": _version,
    "backbone_sha256": _digest,
    "limits": lambda value: isinstance(value, dict),
    "time": _time,
    "sequence": _whole,
}
_LIMITS: Mapping[str, Check] = {
    "rounds": _or_none(_whole),
    "until": _or_none(_time),
    "hours": _or_none(_matches(_HOURS)),
}
_EPSILON: Mapping[str, Check] = {"epsilon": lambda value: _number(value) and value > 0}
_REFUSAL: Mapping[str, Check] = {
    "kind": _one_of("refusal"),
    "site": _text,
    "study": _or_empty(_digest),
    "run": _or_empty(_run),
    "round": _whole,
    "why": _sentence,
    "time": _time,
}
_OWN_HEAD: Mapping[str, Check] = {
    "kind": _one_of("own-head"),
    "site": _text,
    "sequence": _whole,
    "digest": _digest,
    "time": _time,
}
_HEAD: Mapping[str, Check] = {**_OWN_HEAD, "kind": _one_of("head"), "run": _or_empty(_run)}
_ANSWERED: Mapping[str, Check] = {"run": _run, "round": _whole, "at": _time}
_STATUS: Mapping[str, Check] = {
    "agent": _one_of("idle", "working", "away"),
    "study": _or_none(_or_empty(_digest)),
    "run": _or_none(_or_empty(_run)),
    "round": _or_none(_whole),
    "since": _or_none(_time),
    "answered": lambda value: value is None or isinstance(value, dict),
    "version": _version,
    "skew": _or_none(_number),
}
