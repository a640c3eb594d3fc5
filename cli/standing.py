"""How a coordinator stands: its registry, opened for one command, and what that knows of sites, studies and runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyclinic.cli.answers import demand_owner, moment, span, table

if TYPE_CHECKING:
    from polyclinic.server.governance.registry import Registry, Run
    from polyclinic.server.live.home import Home

DAY = 86400.0
SOON = 30
"""Days before its end from which a certificate is worth a word."""


@contextmanager
def desk(folder: Path, *, writing: bool = True) -> Iterator[tuple[Home, Registry]]:
    """The coordinator in ``folder`` and its registry, whose changes go to its book.

    Args:
        writing: else the book is not opened, and so is not mended before it was looked at.

    Raises:
        RunError: there is none.
        TrustError: it belongs to another user.
    """
    from polyclinic.server.governance.registry import Registry
    from polyclinic.server.live.home import Home, opened

    home = Home.open(folder)
    demand_owner(home.folder)
    with opened(home) if writing else closing(Registry(home.registry)) as registry:
        yield home, registry


def page(home: Home) -> str:
    """The address of the live page, with its token."""
    return f"http://127.0.0.1:{home.settings.page_port}/?token={home.page_token}"


def server_days(home: Home) -> float:
    """Days until the end of the certificate that sites are shown; it is made anew at a start."""
    from polyclinic.core.pki import expires

    return round((expires((home.keys / "server.pem").read_bytes()) - time.time()) / DAY, 1)


def site_rows(registry: Registry, now: float | None = None) -> list[dict[str, Any]]:
    """What is known of every site that ever joined."""
    now, statuses = time.time() if now is None else now, registry.statuses()
    rows = []
    for site in registry.sites():
        status, seen = statuses.get(site.name, ({}, None))
        rows.append({
            "site": site.name,
            "joined": site.enrolled,
            "revoked": site.revoked,
            "certificate_days": round((site.not_after - now) / DAY, 1),
            "seen": seen,
            **{key: status.get(key) for key in ("agent", "run", "round", "version", "skew")},
        })  # fmt: skip
    return rows


def columns(rows: Sequence[Mapping[str, Any]], invited: Sequence[tuple[str, float]]) -> list[str]:
    """The same for people."""
    now = time.time()
    cells = [
        (
            row["site"],
            "revoked" if row["revoked"] else _doing(row, now),
            "never" if row["seen"] is None else f"{span(now - row['seen'])} ago",
            f"{row['certificate_days']:.0f} days" + (" – ends soon" if row["certificate_days"] < SOON else ""),
            row["version"] or "",
        )
        for row in rows
    ]
    joined = {row["site"] for row in rows}
    cells += [(name, f"invited until {moment(end)}", "never", "", "") for name, end in invited if name not in joined]
    return table(("site", "state", "heard of", "certificate", "version"), cells)


def study_rows(registry: Registry) -> list[dict[str, Any]]:
    """What is published, and what each site that is not revoked decided about it."""
    from polyclinic.core.signing import canonical

    members = [site.name for site in registry.sites() if site.revoked is None]
    rows = []
    for signed in registry.offers():
        offer = canonical(signed.document)
        decided = {site: found.verb for site, found in registry.decisions(offer["study"]).items()}
        said = {site: decided.get(site, "undecided") for site in members}
        rows.append({"study": offer["study"], "name": offer["name"], "version": offer["version"], "sites": said})
    return rows


def run_rows(registry: Registry) -> list[dict[str, Any]]:
    """All runs, the oldest first, each with how far it is."""
    from polyclinic.server.live import state

    rows = []
    for run in registry.runs():
        live = state.read(Path(run.folder))
        rows.append({
            "run": run.name, "study": run.study, "state": run.state, "why": run.why, "created": run.created,
            "round": live.get("round", 0), "rounds": live.get("rounds"), "folder": run.folder,
        })  # fmt: skip
    return rows


def known_studies(registry: Registry) -> dict[str, str]:
    """Digest → name, of all that is published."""
    return {row["study"]: row["name"] for row in study_rows(registry)}


def pick(registry: Registry, wanted: str | None, states: Sequence[str], look: str) -> Run:
    """The run that is named; without a name, the only one in one of ``states``, or the latest if none is.

    Raises:
        RunError: there is no run, no such run, or more than one that could be meant.
    """
    from polyclinic.cli import naming
    from polyclinic.core.errors import RunError

    runs = registry.runs()
    if wanted is not None:
        name = naming.run(wanted, [run.name for run in runs], look=look)
        return next(run for run in runs if run.name == name)
    meant = [run for run in runs if run.state in states] or runs[-1:]
    if not meant:
        raise RunError("there is no run yet", remedy="polyclinic coordinator run STUDY")
    if len(meant) > 1:
        raise RunError(f"could be {', '.join(run.name for run in meant)}", where="RUN", remedy="say which")
    return meant[0]


def _doing(row: Mapping[str, Any], now: float) -> str:
    if row["seen"] is None:
        return "joined"
    if now - row["seen"] > 60:
        return "away"
    if row["agent"] == "working" and row["round"]:
        return f"at work on round {row['round']}"
    return {"idle": "ready", "working": "at work", "away": "link is there, agent is not"}.get(row["agent"], "there")
