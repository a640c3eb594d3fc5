"""How a site stands: its processes, its way to the coordinator, its certificate, what it decided, what is waiting."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyclinic.cli.answers import command, demand_owner, moment, span

if TYPE_CHECKING:
    from polyclinic.client.home import Home
    from polyclinic.client.outbox import Inbox

DAY = 86400.0
SOON = 30
"""Days before its end from which a certificate is worth a word."""


def opened(folder: Path, *, owner: bool = True) -> Home:
    """The site in ``folder``, with its settings read; ``owner``: nobody but the folder's owner may go on.

    Raises:
        PolicyError: there is none, or site.toml is wrong.
        TrustError: it belongs to another user.
    """
    from polyclinic.client.home import Home

    home = Home(folder.absolute())
    _ = home.settings
    if owner:
        demand_owner(home.folder)
    return home


def logs(home: Home, part: str) -> Path:
    """Where the processes of a part log: the network half may not write where the agent does."""
    return home.network / "logs" if part == "network" else home.logs


def standing(home: Home) -> dict[str, Any]:
    """Everything that can be known without asking anybody."""
    from polyclinic.cli import foreground
    from polyclinic.client.approvals import decisions
    from polyclinic.client.outbox import Inbox, Outbox
    from polyclinic.client.record import held

    inbox, settings = Inbox(home.inbox), home.settings
    hello, decided = inbox.state("hello") or {}, decisions(home)
    return {
        "site": settings.name,
        "folder": str(home.folder),
        "coordinator": f"{settings.coordinator.host}:{settings.coordinator.fleet_port}",
        "agent": {"alive": bool(held(home)), **_status(home)},
        "link": inbox.state("link"),
        "network_running": foreground.held(home.network),
        "skew": hello.get("skew"),
        "certificate_not_after": hello.get("certificate_not_after"),
        "warnings": hello.get("warnings", []),
        "approved": [_approval(d.study, d.limits.words(), home) for d in decided.values() if d.verb == "approve"],
        "undecided": sorted(path.stem for path in home.studies.glob("*.json") if path.stem not in decided),
        "waiting_to_be_told": Outbox(home.outbox).count(),
        "declined": _declined(inbox, decided),
        "alarms": [vars(alarm) for alarm in inbox.alarms()],
    }


def sentences(told: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """The same for people, what is wrong and what comes next included."""
    now = time.time()
    yield f"{told['site']}, in {told['folder']}"
    yield _agent(told["agent"], folder, now)
    yield _link(told, now)
    if told["certificate_not_after"] is not None:
        days = (told["certificate_not_after"] - now) / DAY
        soon = "it should have been renewed by itself; see the warnings" if days < SOON else "renewed by itself"
        yield f"Certificate: {days:.0f} days left, {soon}."
    if told["skew"] is not None and abs(told["skew"]) > 60:
        yield f"Clock: {told['skew']:+.0f} s off the coordinator's. Set it."
    yield from (f"Warning: {warning}" for warning in told["warnings"])
    for row in told["approved"]:
        yield f"Approved: {row['name'] or '?'} ({row['study'][:12]}), {row['limits']}."
    if told["undecided"]:
        names = ", ".join(digest[:12] for digest in told["undecided"])
        yield f"Waiting for your decision: {names}. Next: {command('site studies', folder)}"
    if told["waiting_to_be_told"]:
        yield f"{told['waiting_to_be_told']} statements are waiting for the coordinator to be reached."
    for one in told["declined"]:
        yield f"The coordinator did not take the decision about {str(one.get('study'))[:12]}: {one.get('why')}"
    for alarm in told["alarms"]:
        yield f"ALARM, {moment(alarm['at'])}: {alarm['what']}"
    if told["alarms"]:
        yield f"Ask the coordinator about it by another way than this. Check: {command('site verify', folder)}"


def _agent(agent: Mapping[str, Any], folder: Path, now: float) -> str:
    if not agent["alive"]:
        return f"Agent: not running. Next: {command('site start', folder)}"
    if agent.get("agent") == "working":
        return f"Agent: at work on round {agent.get('round')} of {agent.get('run')} for {span(now - agent['since'])}."
    done = agent.get("answered")
    last = f"; answered round {done['round']} of {done['run']} {span(now - done['at'])} ago" if done else ""
    return f"Agent: ready{last}."


def _link(told: Mapping[str, Any], now: float) -> str:
    link, where = told["link"], told["coordinator"]
    if told["network_running"] is False:
        return f"Coordinator: {where}; what faces the network is not running here."
    if link is None:
        return f"Coordinator: {where} was never reached."
    if not link.get("reached"):
        return f"Coordinator: {where} is not reached: {link.get('why')} (said at {moment(link['at'])})"
    return f"Coordinator: {where} is reached; greeted {span(now - link['at'])} ago."


def _status(home: Home) -> dict[str, Any]:
    try:
        found = json.loads(home.status.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _approval(digest: str, limits: str, home: Home) -> dict[str, Any]:
    from polyclinic.client.offer import read_offer
    from polyclinic.core.errors import PolyclinicError

    try:
        name = read_offer(home, digest).study.study.name
    except PolyclinicError:
        name = None
    return {"study": digest, "name": name, "limits": limits}


def _declined(inbox: Inbox, decided: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Decisions in force that the coordinator did not take."""
    current = {(found.study, found.sequence) for found in decided.values()}
    told = inbox.state("declined") or []
    return [one for one in told if (one.get("study"), one.get("sequence")) in current]
