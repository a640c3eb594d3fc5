"""The coordinator's folder: its settings, its keys, and where everything stands."""

from __future__ import annotations

import os
import secrets
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from pydantic import Field

from polyclinic.core import files
from polyclinic.core.book import Book
from polyclinic.core.config import Config, Duration, parse
from polyclinic.core.errors import RunError
from polyclinic.core.invitation import Invitation
from polyclinic.core.pki import Authority, fingerprint
from polyclinic.core.signing import SigningKey, write_secret
from polyclinic.server.governance.registry import Registry

SETTINGS = """\
# A coordinator of Polyclinic. Sites reach `host` on two ports, and nothing else of this machine.
host = {host}
bind = {bind}            # the address of this machine on which both ports listen
fleet_port = {fleet_port}          # adapters (Flower, TLS 1.3) and enrolment
governance_port = {governance_port}     # studies, approvals, receipts (gRPC, mutual TLS 1.3)
page_port = {page_port}           # the live page, on loopback alone
private_port = {private_port}        # between this machine's own processes, on loopback alone
absence = {absence}          # a site that was not heard of for so long is not waited for any more
"""


class Settings(Config):
    """coordinator.toml. ``absence`` is one of three time-outs; the others are a study's deadline and 30 s a call."""

    host: str
    bind: str = "0.0.0.0"
    fleet_port: int = Field(default=8443, ge=1, le=65535)
    governance_port: int = Field(default=8444, ge=1, le=65535)
    page_port: int = Field(default=8480, ge=1, le=65535)
    private_port: int = Field(default=8481, ge=1, le=65535)
    absence: Duration = 300.0


@dataclass(frozen=True)
class Home:
    """A coordinator's folder."""

    folder: Path

    @staticmethod
    def create(folder: Path, settings: Settings) -> Home:
        """A new coordinator: authority, keys and secrets are made here and never leave.

        Raises:
            RunError: the folder holds something already, or cannot be written.
            TrustError: ``settings.host`` is no host.
        """
        if folder.exists() and any(folder.iterdir()):
            raise RunError("is not empty", where=str(folder), remedy="choose another folder for the coordinator")
        home = Home(folder.absolute())
        with files.explained(folder):
            for part in (home.folder, home.keys, home.runs, home.logs, home.book):
                part.mkdir(mode=0o700, parents=True, exist_ok=True)
        Authority.create(home.keys, settings.host)
        SigningKey.new().save(home.keys / "signing.key")
        write_secret(home.folder / "private.token", secrets.token_urlsafe(32).encode())
        write_secret(home.folder / "page.token", secrets.token_urlsafe(24).encode())
        told = settings.model_dump() | {"absence": _duration(settings.absence)}
        shown = {key: tomli_w.dumps({"x": value})[4:].strip() for key, value in told.items()}
        files.write(home.folder / "coordinator.toml", SETTINGS.format(**shown))  # last: now it is a coordinator
        return home

    @staticmethod
    def open(folder: Path) -> Home:
        """An existing coordinator.

        Raises:
            RunError: there is none in ``folder``.
        """
        if not (folder / "coordinator.toml").is_file():
            raise RunError("holds no coordinator", where=str(folder), remedy="make one: polyclinic coordinator init")
        return Home(folder.absolute())

    @property
    def settings(self) -> Settings:
        """coordinator.toml.

        Raises:
            StudyError: it has an unknown or wrong key.
        """
        path = self.folder / "coordinator.toml"
        try:
            return parse(Settings, tomllib.loads(path.read_text(encoding="utf-8")), str(path))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as failure:
            raise RunError(f"cannot be read: {failure}", where=str(path)) from failure

    @property
    def keys(self) -> Path:
        """Keys and certificates."""
        return self.folder / "keys"

    @property
    def runs(self) -> Path:
        """Folder of run folders."""
        return self.folder / "runs"

    @property
    def book(self) -> Path:
        """The coordinator's own ledger."""
        return self.folder / "book"

    @property
    def logs(self) -> Path:
        """One file a process."""
        return self.folder / "logs"

    @property
    def registry(self) -> Path:
        """Sites, invitations, studies, decisions, receipts, runs."""
        return self.folder / "registry.db"

    @property
    def superlink(self) -> Path:
        """Flower's state; it may be lost."""
        return self.folder / "superlink.db"

    @property
    def secret(self) -> str:
        """Shared by this machine's own processes."""
        return (self.folder / "private.token").read_text(encoding="ascii")

    @property
    def door(self) -> str:
        """The SuperLink's loopback listener, as Flower's clients name it."""
        return f"127.0.0.1:{self.settings.private_port}/{self.secret}"

    @property
    def page_token(self) -> str:
        """For whoever may see the live page."""
        return (self.folder / "page.token").read_text(encoding="ascii")

    def signing_key(self) -> SigningKey:
        """The key under which the coordinator speaks."""
        return SigningKey.load(self.keys / "signing.key")

    def invitation(self, site: str, token: str, expires: float) -> Invitation:
        """What ``site`` needs to join."""
        settings = self.settings
        ca = fingerprint((self.keys / "ca.pem").read_bytes())
        return Invitation(settings.host, settings.fleet_port, settings.governance_port, ca, site, token, expires)

    def new_run(self, name: str) -> Path:
        """A fresh folder for a run of the study ``name``."""
        stem = name.lower().replace(" ", "-")
        while (folder := self.runs / f"{stem}-{os.urandom(4).hex()}").exists():
            pass
        return folder


@contextmanager
def opened(home: Home) -> Iterator[Registry]:
    """The coordinator's registry, whose changes are also written into its book."""
    book = Book(home.book, home.signing_key())
    with closing(book), closing(Registry(home.registry, note=book.append)) as registry:
        yield registry


def _duration(seconds: float) -> str:
    return f"{seconds:.12g} s" if seconds % 60 else f"{seconds / 60:.12g} min"
