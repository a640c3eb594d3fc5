"""A site joins: its keys are made here and stay here; what travels is their public halves and a one-time token."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from polyclinic.client import web
from polyclinic.client.credentials import demand_certificate, make_node_key
from polyclinic.client.home import Home
from polyclinic.client.settings import LOCAL_PORT, Settings
from polyclinic.core import files
from polyclinic.core.book import Book
from polyclinic.core.config import parse
from polyclinic.core.errors import DataError, EngineError, PolicyError, StudyError, TrustError
from polyclinic.core.governance import governance_pb2 as pb
from polyclinic.core.governance.wire import enrol_request
from polyclinic.core.invitation import Invitation, read_invitation
from polyclinic.core.pki import fingerprint, new_tls_key, request, save_tls_key
from polyclinic.core.signing import SigningKey, demand_key
from polyclinic.core.version import VERSION

TRIES = 3
"""How often the request is sent if the answer gets lost: the same keys get the same answer."""
PARTS = ("private", "network", "shared", "book", "replies", "logs", "site.toml")
"""What a site's folder is made of, in the order in which it comes to be."""
_DRAFT = ".joining-"


def join(
    invitation: str | Path | Invitation,
    folder: Path,
    manifest: Path,
    *,
    proxy: str | None = None,
    local_port: int = LOCAL_PORT,
    network_user: str | None = None,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Home:
    """Makes a site in ``folder`` out of an invitation (its text, or a file with it). A failure leaves nothing there.

    Args:
        manifest: of the site's images; it is read where it lies.
        proxy: the HTTP proxy to the outside, as "http://HOST:PORT".
        local_port: free, for use between this machine's own processes.
        network_user: the operating-system user who is to face the network.

    Raises:
        TrustError: the invitation, the coordinator's authority or its answer are not to be trusted; or it declines.
        PolicyError: the folder holds a site already, or a setting is wrong.
        DataError: there is no such manifest.
        EngineError: the coordinator is not reached; the invitation can be used again.
    """
    invited = invitation if isinstance(invitation, Invitation) else read_invitation(invitation)
    invited.demand_valid(clock())
    if not manifest.is_file():
        raise DataError("there is no such manifest", where=str(manifest), remedy="give the CSV that lists the images")
    options = {"proxy": proxy, "local_port": local_port, "network_user": network_user}
    key = SigningKey.new()
    settings = _settings(invited, key, manifest, options)
    place = _demand_free(folder.absolute())
    created, draft = not place.exists(), place / f"{_DRAFT}{os.getpid()}"
    try:
        home = Home.create(draft, settings)
        key.save(home.signing_key)  # before the token is used: a disk that is full afterwards would waste it
        _enrol(home, key, invited, sleep)
        _begin_book(Home(draft), key, clock)
        _move(draft, place, created)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if created and place.is_dir() and not any(place.iterdir()):
            place.rmdir()
    return Home(place)


def _settings(invited: Invitation, key: SigningKey, manifest: Path, options: dict[str, Any]) -> Settings:
    """What is known before the coordinator has answered; its key is not."""
    at = {name: getattr(invited, name) for name in ("host", "fleet_port", "governance_port")}
    document = {"name": invited.site, "key": key.public, "coordinator": {**at, "key": "0" * 64}, **options}
    try:
        return parse(Settings, {**document, "data": {"manifest": str(manifest.absolute())}}, "join")
    except StudyError as failure:
        raise PolicyError(failure.problem) from failure


def _demand_free(place: Path) -> Path:
    """``place``, if no site is there; what a join that was killed left behind is removed."""
    taken = [name for name in PARTS if (place / name).exists()]
    if taken:
        remedy = "choose another folder, or remove what is there"
        raise PolicyError(f"holds a site, or a part of one: {', '.join(taken)}", where=str(place), remedy=remedy)
    for left in place.glob(f"{_DRAFT}*") if place.is_dir() else ():
        shutil.rmtree(left, ignore_errors=True)
    return place


def _enrol(home: Home, key: SigningKey, invited: Invitation, sleep: Callable[[float], None]) -> None:
    """Has the coordinator certify the site's keys, and completes the folder with what it answers."""
    settings = home.settings
    address, proxy = settings.coordinator.address(invited.fleet_port), settings.proxy
    authority = web.fetch_authority(address, invited.ca, proxy)
    tls = new_tls_key()
    save_tls_key(tls, home.network / "tls.key")
    csr = request(tls, invited.site)
    body = enrol_request(invited.token, invited.site, csr, make_node_key(home), key, VERSION)
    reply = _answer(lambda: web.enrol(address, body, authority, proxy), sleep)
    demand_certificate(reply.certificate, authority, tls, invited.site)
    if fingerprint(reply.ca) != invited.ca:
        raise TrustError("answers with another authority than the invitation names", where=address)
    at = settings.coordinator.model_copy(update={"key": demand_key(reply.coordinator_key)})
    files.write(home.network / "tls.pem", reply.certificate)
    files.write(home.network / "ca.pem", authority)
    files.write(home.config, settings.model_copy(update={"coordinator": at}).render())
    home.config.chmod(0o640)


def _answer(ask: Callable[[], pb.EnrolReply], sleep: Callable[[float], None]) -> pb.EnrolReply:
    for pause in (1.0,) * (TRIES - 1):
        try:
            return ask()
        except EngineError:
            sleep(pause)
    return ask()


def _begin_book(home: Home, key: SigningKey, clock: Callable[[], float]) -> None:
    settings = home.settings
    authority = fingerprint((home.network / "ca.pem").read_bytes())
    told = {"site": settings.name, "key": key.public, "host": settings.coordinator.host, "authority": authority}
    with closing(Book(home.book, key, clock)) as book:
        book.append("joined", told | {"coordinator": settings.coordinator.key, "version": VERSION})


def _move(draft: Path, place: Path, created: bool) -> None:
    """Puts everything in its place, site.toml last: with it, it is a site."""
    moved: list[Path] = []
    with files.explained(place):
        try:
            for name in PARTS:
                (draft / name).rename(place / name)
                moved.append(place / name)
        except OSError:
            for path in moved:
                shutil.rmtree(path, ignore_errors=True)
            raise
        place.chmod(0o755 if created else place.stat().st_mode & ~0o022)
        files.sync_folder(place)
