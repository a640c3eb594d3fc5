"""A site's book in plain words, a line an entry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from polyclinic.cli.answers import moment

if TYPE_CHECKING:
    from polyclinic.core.ledger import Entry


def lines(entries: Iterable[Entry]) -> list[str]:
    """A line on each entry: its number, when, and what happened."""
    return [f"{entry.sequence + 1:>4}  {moment(entry.time)}  {words(entry)}" for entry in entries]


def words(entry: Entry) -> str:
    """What an entry tells."""
    body = entry.body
    say = {
        "joined": _joined, "approve": _approved, "withdraw": _withdrew, "answered": _answered, "refused": _refused,
        "head": _head, "alarm": _alarm, "mirror": _mirror,
    }.get(entry.kind)  # fmt: skip
    return say(body) if say else f"{entry.kind}: {_rest(body)}"


def _joined(body: Mapping[str, Any]) -> str:
    host = body.get("host") or body.get("coordinator")
    return f"joined{f' the federation of {host}' if isinstance(host, str) else ''}"


def _approved(body: Mapping[str, Any]) -> str:
    from polyclinic.client.approvals import Limits

    return f"approved study {_short(body)} for polyclinic {body.get('version')}: {Limits(**body['limits']).words()}"


def _withdrew(body: Mapping[str, Any]) -> str:
    return f"withdrew from study {_short(body)}"


def _answered(body: Mapping[str, Any]) -> str:
    told = ", ".join(body.get("statistics", ())) or "no statistics"
    what = f"trained weights (counting {body['weight']:g})" if body.get("update") else "no weights"
    size = int(body.get("bytes", 0))
    return f"round {body.get('round')} of {body.get('run')}: sent {what} and {told}; {size:,} bytes left this site"


def _refused(body: Mapping[str, Any]) -> str:
    where = f"round {body['round']} of {body['run']}" if body.get("run") else "an instruction"
    return f"refused {where}, study {_short(body)}: {body.get('why')}"


def _head(body: Mapping[str, Any]) -> str:
    what = f"ledger of {body['run']}" if body.get("run") else "book"
    line, digest = int(body.get("sequence", -1)) + 1, str(body.get("digest"))[:12]
    return f"saw the coordinator's {what} up to line {line} ({digest})"


def _alarm(body: Mapping[str, Any]) -> str:
    return f"ALARM: {body.get('what')}"


def _mirror(body: Mapping[str, Any]) -> str:
    return f"{body.get('why')} (the old one: {body.get('aside')})"


def _short(body: Mapping[str, Any]) -> str:
    return str(body.get("study"))[:12]


def _rest(body: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in body.items())
