"""A site's folder: what stands where, what is set in site.toml, and who may read what.

Two operating-system users may share it. The agent's owns everything and alone reads ``private/``; the other, which
faces the network, owns ``network/`` and what the link writes, reads the book and the outbox, and needs no image.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from polyclinic.client.settings import Settings
from polyclinic.core import files
from polyclinic.core.config import parse
from polyclinic.core.errors import PolicyError, StudyError, TrustError
from polyclinic.core.signing import SigningKey


@dataclass(frozen=True)
class Home:
    """A site's folder: ``create`` makes one, ``demand`` refuses what is none."""

    folder: Path

    @property
    def config(self) -> Path:
        """The site's settings."""
        return self.folder / "site.toml"

    @property
    def private(self) -> Path:
        """Folder of what only agent and command line read."""
        return self.folder / "private"

    @property
    def signing_key(self) -> Path:
        """The key under which the site signs (PEM)."""
        return self.private / "signing.key"

    @property
    def network(self) -> Path:
        """Folder of the keys with which the site logs in: tls.key, tls.pem, ca.pem, node.key, node.pub."""
        return self.folder / "network"

    @property
    def shared(self) -> Path:
        """Folder in which agent and command line leave what the link reads."""
        return self.folder / "shared"

    @property
    def status(self) -> Path:
        """What the agent is doing (JSON)."""
        return self.shared / "status.json"

    @property
    def outbox(self) -> Path:
        """Statements that the link is to carry; written by agent and command line."""
        return self.shared / "outbox.db"

    @property
    def studies(self) -> Path:
        """Folder of offers, DIGEST.json, with their studies, DIGEST.toml; written by the link."""
        return self.shared / "studies"

    @property
    def inbox(self) -> Path:
        """What the link brought: receipts, ledger lines, others' heads, alarms."""
        return self.shared / "inbox" / "inbox.db"

    @property
    def book(self) -> Path:
        """Folder of the site's signed ledger."""
        return self.folder / "book"

    @property
    def replies(self) -> Path:
        """Folder of replies that may be asked for again."""
        return self.folder / "replies"

    @property
    def own(self) -> Path:
        """Folder of what this site's model keeps for itself, by study, run and round."""
        return self.folder / "own"

    @property
    def privacy(self) -> Path:
        """Folder of the site's privacy ledger."""
        return self.private / "privacy"

    @property
    def cache(self) -> Path:
        """Folder of what is remembered of this site's images, so that it need not be worked out again."""
        return self.folder / "cache"

    @property
    def logs(self) -> Path:
        """Folder of the processes' logs."""
        return self.folder / "logs"

    @property
    def manifest(self) -> Path:
        """The manifest that site.toml names."""
        return self.folder / self.settings.data.manifest

    @property
    def quarantine(self) -> Path | None:
        """The list of images to leave out that site.toml names, if any."""
        listed = self.settings.data.quarantine
        return None if listed is None else self.folder / listed

    @cached_property
    def settings(self) -> Settings:
        """What site.toml says, read once.

        Raises:
            PolicyError: it cannot be read, or has an unknown, missing or wrong key.
        """
        path = str(self.config)
        try:
            return parse(Settings, tomllib.loads(self.config.read_text(encoding="utf-8")), path)
        except FileNotFoundError as failure:
            remedy = "give the folder that 'polyclinic site join' made"
            raise PolicyError("holds no site", where=str(self.folder), remedy=remedy) from failure
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as failure:
            raise PolicyError(f"cannot be read: {failure}", where=path) from failure
        except StudyError as failure:
            raise PolicyError(failure.problem, where=failure.where) from failure

    @staticmethod
    def create(folder: Path, settings: Settings) -> Home:
        """A new site's folder; keys and certificates are put there by ``join``."""
        home = Home(folder)
        with files.explained(folder):
            for path, mode in home._folders():
                path.mkdir(parents=True, exist_ok=True)
                path.chmod(mode)
            files.write(home.config, settings.render())
            home.config.chmod(0o640)
        return home

    def key(self) -> SigningKey:
        """The site's signing key, which must be the one that site.toml names; TrustError."""
        found = SigningKey.load(self.signing_key)
        if found.public != self.settings.key:
            remedy = "restore the file that belongs to this site"
            raise TrustError("is not the key that site.toml names", where=str(self.signing_key), remedy=remedy)
        return found

    def hand_over(self) -> None:
        """Gives the user who faces the network what is that user's, and no more; nothing if site.toml names none.

        Raises:
            TrustError: there is no such user, or only root may do this.
        """
        if (name := self.settings.network_user) is None:
            return
        import pwd

        try:
            user = pwd.getpwnam(name)
            for path in (self.network, *self.network.iterdir()):
                os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
            ours = self.folder.stat().st_gid  # the agent reads what the link brings
            for path in (self.studies, *self.studies.iterdir(), self.inbox.parent, *self.inbox.parent.iterdir()):
                os.chown(path, user.pw_uid, ours, follow_symlinks=False)
            readable = [self.config, self.shared, self.book, *self.shared.glob("*.*"), *self.book.iterdir()]
            for path in readable:
                os.chown(path, -1, user.pw_gid, follow_symlinks=False)
            for path in (self.shared, self.book, self.studies, self.inbox.parent):
                path.chmod(path.stat().st_mode | stat.S_ISGID)  # what is made there belongs to the group, too
        except KeyError as failure:
            remedy = f"make it: useradd --system {name}"
            raise TrustError(f"there is no user '{name}'", where="network_user", remedy=remedy) from failure
        except OSError as failure:
            problem = f"cannot be given to {name}: {failure.strerror or failure}"
            raise TrustError(problem, where=str(self.folder), remedy="start the site as root") from failure

    def exposed(self) -> Iterator[tuple[Path, str]]:
        """(path, remedy) of everything that others may read or change and must not."""
        secrets = [self.signing_key, self.network / "tls.key", self.network / "node.key"]
        for path in (self.private, self.replies, self.own, *secrets):
            if (mode := _mode(path)) is not None and mode & 0o077:
                yield path, f"chmod {mode & 0o700:o} {path}"
        for path in (self.folder, self.config, self.book, self.shared):
            if (mode := _mode(path)) is not None and mode & 0o022:
                yield path, f"chmod go-w {path}"

    def demand(self) -> Home:
        """This site, if its settings are sound and nothing is open to others that must not be.

        Raises:
            PolicyError: site.toml is wrong.
            TrustError: naming the first path that others may read or change.
        """
        _ = self.settings
        for path, remedy in self.exposed():
            raise TrustError("is open to other users", where=str(path), remedy=remedy)
        return self

    def _folders(self) -> list[tuple[Path, int]]:
        writable = [(self.studies, 0o770), (self.inbox.parent, 0o770)]
        secret = [(self.private, 0o700), (self.network, 0o700), (self.replies, 0o700), (self.own, 0o700)]
        return [(self.folder, 0o755), (self.shared, 0o750), *writable, *secret, (self.book, 0o750), (self.logs, 0o750)]


def _mode(path: Path) -> int | None:
    """Its permissions; None if it is not there, or not ours to look at."""
    try:
        return path.stat().st_mode
    except OSError:
        return None
