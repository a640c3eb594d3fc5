"""Kills processes at seeded moments, also while they write, and takes the time until the killed are back at work."""

from __future__ import annotations

import ctypes
import json
import os
import random
import select
import statistics
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from polyclinic.server.governance.runs import Run
from polyclinic.simulations.live import Local, until
from tests.live.harness import gateway_answers, live_json, started, statuses
from tests.live.processes import Process, descendants, roles

COORDINATOR = ("supervisor", "gateway", "runner", "page", "machine")
SITE = ("supervisor", "supernode", "agent", "link", "machine")
"""What is killed; "machine": the supervisor and all its processes at once, as in a power cut."""
PLACES = ("journal", "ledger", "book", "registry", "live.json")
SITE_PLACES = ("book", "replies", "shared", "inbox")
"""Where a write may be the moment of a kill."""
RESTART = 1.0
"""Seconds after which a killed supervisor is started again, as systemd does it."""
SPREAD = 2.5
"""Seconds within which a random moment lies."""
PATIENCE = 60.0
"""Seconds after which a role that is not back never will be."""
ON = ("running", "finishing", "finished")
_MODIFY, _CREATE, _MOVED = 0x2, 0x100, 0x80


@dataclass(frozen=True)
class Plan:
    """One kill.

    Attributes:
        owner: "coordinator" or a site.
        role: see ``COORDINATOR`` and ``SITE``.
        trigger: a folder or file whose next change is the moment; "": a moment by chance.
        wait: seconds until the kill, or from which on a change is waited for.
        after: seconds from the change to the kill.
        alone: whether everything is to be back before the next one.
    """

    owner: str
    role: str
    trigger: str
    wait: float
    after: float
    alone: bool


@dataclass(frozen=True)
class Kill:
    """A kill that was carried out: seconds until the role was back at work, and until the run got on."""

    number: int
    owner: str
    role: str
    trigger: str
    recovered: float
    progressed: float


def plans(seed: int, sites: Sequence[str], count: int) -> list[Plan]:
    """The same seed gives the same kills; every role has its turn before any has a second one."""
    rng = random.Random(f"nemesis/{seed}")
    everyone = [("coordinator", role) for role in COORDINATOR] + [(site, role) for site in sites for role in SITE]
    found: list[Plan] = []
    while len(found) < count:
        rng.shuffle(everyone)
        for owner, role in everyone:
            places = PLACES if owner == "coordinator" else SITE_PLACES
            trigger = rng.choice((*places, *[""] * len(places)))
            after = 0.0 if rng.random() < 0.5 else rng.uniform(0.0, 0.02)
            found.append(Plan(owner, role, trigger, rng.uniform(0.0, SPREAD), after, rng.random() < 0.8))
    return found[:count]


def groups(found: Sequence[Plan]) -> list[list[Plan]]:
    """Kills that come before the ones before are recovered from stand together."""
    together: list[list[Plan]] = [[]]
    for plan in found:
        together[-1].append(plan)
        if plan.alone:
            together.append([])
    return [group for group in together if group]


class Nemesis:
    """Carries plans out on a federation in which a run is on.

    Args:
        tell: told what is done.
    """

    def __init__(self, local: Local, tell: Callable[[str], None] = print) -> None:
        self._local, self._tell = local, tell
        self.kills: list[Kill] = []
        self.seen: set[Process] = set()

    def strike(self, group: Sequence[Plan], run: Run) -> None:
        """Kills one after another, before the ones before are back, and waits until everything is back.

        Raises:
            EngineError: something is not back in time.
        """
        begun: list[tuple[Plan, list[Process], float]] = []
        before = progress(run)
        for plan in group:
            until(lambda plan=plan: self._ready(plan, run), PATIENCE, f"{plan.owner}'s {plan.role}")  # type: ignore[misc]
            self._await(plan, run)
            victims, before = self._victims(plan), progress(run)
            if not victims:  # the run has ended meanwhile, and its runner with it
                continue
            for victim in victims:
                victim.kill()
            begun.append((plan, victims, time.time()))
            number = len(self.kills) + len(begun)
            self._tell(f"kill {number}: {plan.owner}'s {plan.role} ({plan.trigger or 'by chance'}), {time.time():.1f}")
        took: dict[int, float] = {}

        def all_back() -> bool:
            for place, (plan, victims, at) in enumerate(begun):
                if place not in took and back(self._local, plan, run, victims, at):
                    took[place] = time.time() - at
            return len(took) == len(begun)

        what = " and ".join(f"{plan.owner}'s {plan.role}" for plan, _, _ in begun)
        until(all_back, PATIENCE, f"the recovery of {what}")
        until(lambda: progress(run) > before or ended(self._local, run), 2 * PATIENCE, f"progress after {what} ended")
        now = time.time()
        for place, (plan, _, at) in enumerate(begun):
            kill = Kill(len(self.kills) + 1, plan.owner, plan.role, plan.trigger, took[place], now - at)
            self._tell(f"   {kill.role} back after {kill.recovered:.1f} s, progress after {kill.progressed:.1f} s")
            self.kills.append(kill)

    def _ready(self, plan: Plan, run: Run) -> bool:
        if plan.role == "runner" and ended(self._local, run):
            return True
        return ("supervisor" if plan.role == "machine" else plan.role) in roles(self._local, plan.owner)

    def _victims(self, plan: Plan) -> list[Process]:
        here = roles(self._local, plan.owner)
        self.seen |= set(here.values())
        if plan.role == "machine":
            supervisor = here["supervisor"]
            return [supervisor, *descendants(supervisor.pid)]
        return [here[plan.role]] if plan.role in here else []

    def _await(self, plan: Plan, run: Run) -> None:
        time.sleep(plan.wait)
        if plan.trigger:
            changed([place(self._local, plan, run)], seconds=SPREAD)
            time.sleep(plan.after)


class Systemd:
    """Starts supervisors again that have died, a second later, as the generated units have it; a context manager."""

    def __init__(self, local: Local) -> None:
        self._local, self._stop = local, threading.Event()
        self._thread = threading.Thread(target=self._watch, name="systemd", daemon=True)

    def __enter__(self) -> Systemd:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            for owner, process in [*self._local.processes.items()]:
                if process.poll() is not None and not self._stop.wait(RESTART):
                    started(self._local, owner)


def place(local: Local, plan: Plan, run: Run) -> Path:
    """The file or folder that a trigger means."""
    if plan.owner == "coordinator":
        folder = Path(run.folder)
        return {
            "journal": folder / "journal",
            "ledger": folder / "ledger.jsonl",
            "book": local.coordinator.book,
            "registry": local.coordinator.folder / "registry.db",
            "live.json": folder / "live.json",
        }[plan.trigger]
    home = local.sites[plan.owner]
    return {"book": home.book, "replies": home.replies, "shared": home.shared, "inbox": home.inbox.parent}[plan.trigger]


def changed(paths: Sequence[Path], seconds: float) -> bool:
    """Waits, without looking again and again, until something is written at one of ``paths``; whether it was."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        wanted = {}
        for path in paths:
            folder = path if path.is_dir() else path.parent
            watch = libc.inotify_add_watch(handle, os.fsencode(folder), _MODIFY | _CREATE | _MOVED)
            wanted[watch] = "" if path.is_dir() else path.name
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and select.select([handle], [], [], left)[0]:
            read = os.read(handle, 2**16)
            while read:
                watch, _, _, size = struct.unpack_from("iIII", read)
                name = read[16 : 16 + size].rstrip(b"\0").decode()
                read = read[16 + size :]
                if name.startswith(wanted[watch]):  # SQLite's journal beside it counts, too
                    return True
        return False
    finally:
        os.close(handle)


def progress(run: Run) -> int:
    """Grows with every round and every site that has answered."""
    told = live_json(run)
    answered = sum(row.get("state") == "answered" for row in told.get("sites", {}).values())
    return 1000 * int(told.get("round", 0)) + answered


def ended(local: Local, run: Run) -> bool:
    """Whether a run is over."""
    return live_json(run).get("phase") in ("finished", "failed", "stopped")


def back(local: Local, plan: Plan, run: Run, victims: Sequence[Process], at: float) -> bool:
    """Whether what was killed at ``at`` is there again and does what it is for."""
    here = roles(local, plan.owner)
    wanted = {"supervisor": COORDINATOR[:-1] if plan.owner == "coordinator" else SITE[:-1]}
    names = wanted.get("supervisor" if plan.role == "machine" else plan.role, (plan.role,))
    if plan.role == "agent":
        names = ("agent", "supernode")  # they begin anew together
    over = ended(local, run)
    for name in names:
        if name == "runner" and over:
            continue
        if name not in here or here[name] in victims or not works(local, plan.owner, name, run, at):
            return False
    return True


def works(local: Local, owner: str, role: str, run: Run, at: float) -> bool:
    """Whether a role has done something since ``at``."""
    return {
        "supervisor": lambda: True,
        "gateway": lambda: gateway_answers(local.coordinator),
        "runner": lambda: live_json(run).get("phase") in ON and live_json(run).get("updated", 0.0) > at,
        "page": lambda: page_answers(local),
        "supernode": lambda: online(local, owner, at),
        "agent": lambda: _written(local.sites[owner].status) > at,
        "link": lambda: statuses(local).get(owner, ({}, 0.0))[1] > at,
    }[role]()


def page_answers(local: Local) -> bool:
    """Whether the live page is served."""
    home = local.coordinator
    try:
        where = f"http://127.0.0.1:{home.settings.page_port}/?token={home.page_token}"
        return httpx.get(where, timeout=2.0, trust_env=False, follow_redirects=True).status_code == 200
    except httpx.HTTPError:
        return False


def online(local: Local, site: str, since: float) -> bool:
    """Whether Flower's SuperLink counts a site's node as online, and as activated after ``since``."""
    import sqlite3
    from datetime import datetime

    try:
        uri = f"{local.coordinator.superlink.as_uri()}?mode=ro"
        db = sqlite3.connect(uri, uri=True, timeout=5.0)
        query = "SELECT status, online_until, last_activated_at FROM node WHERE name = ? AND status != 'unregistered'"
        rows = db.execute(query, (site,)).fetchall()
        db.close()
    except sqlite3.Error:
        return False
    return any(
        state == "online" and float(end) > time.time() and datetime.fromisoformat(activated).timestamp() > since
        for state, end, activated in rows
    )


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def table(kills: Sequence[Kill]) -> str:
    """Median, 95th percentile and maximum of the recovery by role, for people."""
    lines = [f"{'what was killed':<28}{'kills':>6}{'median s':>10}{'p95 s':>8}{'max s':>8}{'progress p95 s':>16}"]
    names = sorted({_name(kill) for kill in kills})
    for name in [*names, "all"]:
        chosen = [kill for kill in kills if name in ("all", _name(kill))]
        times, progressed = [kill.recovered for kill in chosen], [kill.progressed for kill in chosen]
        lines.append(
            f"{name:<28}{len(chosen):>6}{statistics.median(times):>10.1f}{quantile(times):>8.1f}{max(times):>8.1f}"
            f"{quantile(progressed):>16.1f}"
        )
    return "\n".join(lines)


def _name(kill: Kill) -> str:
    return f"{'coordinator' if kill.owner == 'coordinator' else 'site'}'s {kill.role}"


def quantile(values: Sequence[float], share: float = 0.95) -> float:
    """The smallest value that at least ``share`` of all do not pass."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


def as_json(seed: int, kills: Sequence[Kill]) -> str:
    """All of it, for machines."""
    times = [kill.recovered for kill in kills]
    told = {
        "seed": seed,
        "kills": len(kills),
        "recovery_median_s": statistics.median(times),
        "recovery_p95_s": quantile(times),
        "recovery_max_s": max(times),
        "each": [asdict(kill) for kill in kills],
    }
    return json.dumps(told)
