"""A signed receipt of every round: what sites keep, so that nobody can tell them another story later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from polyclinic.core.signing import Signed, SigningKey, sign
from polyclinic.server.journal import Journal


def receipts(journal: Journal, key: SigningKey, after: int) -> Iterator[tuple[int, Signed]]:
    """(round, receipt) of every committed round later than ``after``."""
    run, study = journal.meta["run"], journal.meta["study"]
    for entry in journal.entries("round"):
        if entry.body["round"] > after:
            told: Mapping[str, Any] = entry.body
            document = {
                "kind": "receipt",
                "run": run,
                "study": study,
                **{name: told[name] for name in ("round", "base", "result", "record")},
                "sites": {site: {"update": r["update"], "weight": r["weight"]} for site, r in told["sites"].items()},
                "excluded": dict(told["refused"]),
                "sequence": entry.sequence,
                "digest": entry.digest,
                "time": entry.time,
            }
            yield told["round"], sign(document, key)
