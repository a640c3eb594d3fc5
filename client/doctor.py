"""Everything that would keep a site from taking part, found before a round is lost to it, with what to do about it."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version

from polyclinic.client import data_checks
from polyclinic.client.credentials import DAY, credentials
from polyclinic.client.finding import Finding, looked_at
from polyclinic.client.governance import connect
from polyclinic.client.home import Home
from polyclinic.client.outbox import Inbox, Outbox
from polyclinic.client.reach import reach
from polyclinic.client.record import held
from polyclinic.core.governance.wire import CA_PATH
from polyclinic.core.pki import fingerprint
from polyclinic.core.version import VERSION

FLOWER = "1.41.0"
"""The version whose internal names the agent knows."""
RENEW_DAYS, WARN_DAYS = 30.0, 21.0
SKEW, AHEAD = 60.0, 5.0
"""Seconds by which clocks may differ; of what comes from further ahead, Flower takes nothing."""
DISK_WARNING, DISK_ERROR = 2 * 2**30, 200 * 2**20
WAITING = 100
"""Statements that may wait to be told."""


def examine(home: Home, clock: Callable[[], float] = time.time) -> list[Finding]:
    """Everything, one after another; the network's parts take up to half a minute when nobody answers.

    Raises:
        PolicyError: site.toml is wrong; nothing else can be looked at then.
    """
    _ = home.settings
    parts: dict[str, Callable[[], Iterator[Finding]]] = {
        "software": _software,
        "permissions": lambda: _permissions(home),
        "keys": lambda: _keys(home),
        "certificate": lambda: _certificate(home, clock),
        "fleet port": lambda: _fleet(home),
        "governance port": lambda: _governance_port(home),
        "governance": lambda: _governance(home, clock),
        "manifest": lambda: data_checks.manifest(home),
        "studies": lambda: data_checks.studies(home),
        "network user": lambda: data_checks.network_user(home),
        "disk": lambda: _disk(home),
        "local port": lambda: _local_port(home),
        "statements": lambda: _statements(home),
        "alarms": lambda: _alarms(home),
    }
    return [finding for name, look in parts.items() for finding in looked_at(name, look)]


def _software() -> Iterator[Finding]:
    found = version("flwr")
    remedy = "" if found == FLOWER else f"install flwr=={FLOWER}"
    yield Finding("software", "error" if remedy else "ok", f"polyclinic {VERSION} with Flower {found}", remedy)


def _permissions(home: Home) -> Iterator[Finding]:
    exposed = list(home.exposed())
    for path, remedy in exposed:
        yield Finding("permissions", "error", f"{path} is open to other users", remedy)
    if not exposed:
        yield Finding("permissions", "ok", "nobody else may read a key, or change settings and book")


def _keys(home: Home) -> Iterator[Finding]:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    key = home.key()
    yield Finding("keys", "ok", f"the signing key is {key.public[:16]}…, as site.toml names it")
    remedy = "restore network/ from a backup, or join again"
    try:
        node = load_ssh_private_key((home.network / "node.key").read_bytes(), None)
        sound = isinstance(node, ec.EllipticCurvePrivateKey)
    except (OSError, ValueError):
        sound = False
    sentence = "the Flower node's key can be read" if sound else "network/node.key is no key that Flower reads"
    yield Finding("keys", "ok" if sound else "error", sentence, "" if sound else remedy)


def _certificate(home: Home, clock: Callable[[], float]) -> Iterator[Finding]:
    days = (credentials(home).until - clock()) / DAY
    remedy = "start the site: it renews it by itself from 30 days before; look into logs/link.log if it does not"
    if days <= 0:
        yield Finding("certificate", "error", "has expired", "ask the coordinator for a new invitation")
    elif days < WARN_DAYS:
        yield Finding("certificate", "warning", f"ends in {days:.0f} days, and should have been renewed", remedy)
    else:
        yield Finding("certificate", "ok", f"fits its key and this site, for {days:.0f} days more")


def _fleet(home: Home) -> Iterator[Finding]:
    at = home.settings.coordinator
    how, authority = reach(home, at.fleet_port, CA_PATH)
    same = fingerprint(authority) == fingerprint((home.network / "ca.pem").read_bytes())
    where = at.address(at.fleet_port)
    if same:
        yield Finding("fleet port", "ok", f"{where} is reached: {how}")
    else:
        yield Finding("fleet port", "error", f"{where} names another authority", "ask the coordinator")


def _governance_port(home: Home) -> Iterator[Finding]:
    at = home.settings.coordinator
    how, _ = reach(home, at.governance_port)
    yield Finding("governance port", "ok", f"{at.address(at.governance_port)} is reached: {how}")


def _governance(home: Home, clock: Callable[[], float]) -> Iterator[Finding]:
    """What only a conversation tells: whether this site is known there, which version, which time it is."""
    client = connect(home, tries=1, clock=clock)
    try:
        before = clock()
        reply = client.hello(VERSION, before)
        skew = (before + clock()) / 2 - reply.clock
    finally:
        client.close()
    told = ascii(reply.version)[1:-1][:40]
    if reply.version == VERSION:
        yield Finding("governance", "ok", f"the coordinator knows this site, and runs polyclinic {told}")
    else:
        remedy = f"install polyclinic {told}: a study is approved for one version"
        yield Finding("governance", "error", f"the coordinator runs polyclinic {told}, this site {VERSION}", remedy)
    where = "ahead of" if skew > 0 else "behind"
    bad = skew > AHEAD or skew < -SKEW
    remedy = "set it, by NTP at best" if bad else ""
    sentence = f"this machine's is {abs(skew):.1f} s {where} the coordinator's"
    yield Finding("clock", "warning" if bad else "ok", sentence, remedy)


def _disk(home: Home) -> Iterator[Finding]:
    free = shutil.disk_usage(home.folder).free
    state = "error" if free < DISK_ERROR else "warning" if free < DISK_WARNING else "ok"
    remedy = "" if state == "ok" else "free some space: book, replies and statements need it"
    yield Finding("disk", state, f"{free / 2**30:.1f} GiB are free", remedy)  # type: ignore[arg-type]


def _local_port(home: Home) -> Iterator[Finding]:
    port = home.settings.local_port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as failure:
            if held(home):
                yield Finding("local port", "ok", f"{port} is in use: the site is running")
            else:
                remedy = "choose another local_port in site.toml"
                yield Finding("local port", "error", f"{port} cannot be used: {failure.strerror}", remedy)
            return
    yield Finding("local port", "ok", f"{port} is free")


def _statements(home: Home) -> Iterator[Finding]:
    waiting, inbox = Outbox(home.outbox).count(), Inbox(home.inbox)
    state, remedy = ("warning", "see that the site is running") if waiting > WAITING else ("ok", "")
    yield Finding("statements", state, f"{waiting} wait to be told to the coordinator", remedy)  # type: ignore[arg-type]
    link = inbox.state("link")
    if isinstance(link, dict) and link.get("reached") is False:
        yield Finding("link", "warning", f"was not through last time: {link.get('why')}", "see logs/link.log")


def _alarms(home: Home) -> Iterator[Finding]:
    alarms = Inbox(home.inbox).alarms()
    for alarm in alarms:
        yield Finding("alarms", "error", alarm.what, "ask the coordinator and the other sites, by telephone")
    if not alarms:
        yield Finding("alarms", "ok", "none: ledgers, receipts and what other sites saw agree")
