"""systemd units for a coordinator and for the two halves of a site, as closed as their work allows."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

COORDINATOR, AGENT, NETWORK = "polyclinic-coordinator", "polyclinic-agent", "polyclinic-network"

Line = tuple[str, str]

_CLOSED: Sequence[Line] = (
    ("NoNewPrivileges", "true"),
    ("CapabilityBoundingSet", ""),
    ("ProtectSystem", "strict"),
    ("ProtectKernelTunables", "true"),
    ("ProtectKernelModules", "true"),
    ("ProtectKernelLogs", "true"),
    ("ProtectControlGroups", "true"),
    ("ProtectClock", "true"),
    ("ProtectHostname", "true"),
    ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
    ("RestrictNamespaces", "true"),
    ("RestrictRealtime", "true"),
    ("RestrictSUIDSGID", "true"),
    ("LockPersonality", "true"),
    ("SystemCallArchitectures", "native"),
)
"""What no half of anything needs. Graphics cards stay visible where there may be training (PrivateDevices is off)."""


@dataclass(frozen=True)
class Unit:
    """A systemd service.

    Attributes:
        name: without ".service".
        about: what it says of itself.
        user: as whom it runs.
        words: of the command line behind ``polyclinic``.
        unit, service: more lines of these sections, in order.
    """

    name: str
    about: str
    user: str
    words: Sequence[str]
    unit: Sequence[Line] = ()
    service: Sequence[Line] = field(default=())

    def text(self) -> str:
        """The unit file."""
        start = (
            ("Type", "exec"),
            ("User", self.user),
            ("ExecStart", command_line([*program(), *self.words])),
            ("Restart", "on-failure"),
            ("RestartSec", "5"),
            ("KillMode", "mixed"),
            ("TimeoutStopSec", "45"),
        )
        when = (("Wants", "network-online.target"), ("After", "network-online.target"), ("StartLimitIntervalSec", "0"))
        sections: Mapping[str, Sequence[Line]] = {
            "Unit": (("Description", self.about), *when, *self.unit),
            "Service": (*start, *_CLOSED, *self.service),
            "Install": (("WantedBy", "multi-user.target"),),
        }
        return "\n".join(
            f"[{title}]\n{''.join(f'{key}={value}{chr(10)}' for key, value in lines)}"
            for title, lines in sections.items()
        )


def coordinator(folder: Path, user: str) -> Sequence[Unit]:
    """The one unit of a coordinator."""
    return (
        Unit(
            COORDINATOR,
            f"Polyclinic coordinator in {said(folder)}",
            demand_user(user),
            ["coordinator", "start", "--dir", str(folder)],
            service=(("UMask", "0077"), ("ReadWritePaths", path(folder)), *_places(folder)),
        ),
    )


def site(folder: Path, user: str, network_user: str, hidden: Sequence[Path]) -> Sequence[Unit]:
    """The agent, which holds the images and reaches nothing but this machine; and the network half, which is blind.

    Args:
        hidden: folders and files of images, of which the network half sees nothing.
    """
    give = command_line([*program(), "site", "hand-over", "--dir", str(folder)])
    agent = Unit(
        AGENT,
        f"Polyclinic site in {said(folder)}: images, policy, signing key",
        demand_user(user),
        ["site", "start", "--part", "agent", "--dir", str(folder)],
        service=(
            ("ExecStartPre", f"+{give}"),  # "+": by root, who alone may give the other user what is that user's
            ("UMask", "0027"),
            ("IPAddressDeny", "any"),
            ("IPAddressAllow", "localhost"),
            ("ReadWritePaths", path(folder)),
            ("InaccessiblePaths", path(folder / "network")),
            *_places(folder, *hidden),
        ),
    )
    secret = (folder / "private", folder / "replies", *hidden)
    network = Unit(
        NETWORK,
        f"Polyclinic site in {said(folder)}: what faces the network",
        demand_user(network_user),
        ["site", "start", "--part", "network", "--dir", str(folder)],
        unit=(("Requires", f"{AGENT}.service"), ("After", f"{AGENT}.service")),  # and so they begin anew together
        service=(
            ("UMask", "0027"),
            ("PrivateDevices", "true"),
            *(("ReadWritePaths", path(folder / name)) for name in ("network", "shared/studies", "shared/inbox")),
            *(("InaccessiblePaths", _quoted(f"-{hide}")) for hide in secret),
            *_places(folder),
        ),
    )
    return agent, network


def program() -> list[str]:
    """How the installed command is called by its whole path."""
    script = Path(sys.executable).parent / "polyclinic"
    return [str(script)] if script.is_file() else [sys.executable, "-m", "polyclinic.cli.main"]


def command_line(words: Sequence[str]) -> str:
    """Words as systemd reads them: each quoted where that is needed, with nothing that it would put in."""
    return " ".join(_quoted(word).replace("$", "$$") for word in words)


def path(place: Path) -> str:
    """A path as systemd reads it in a list of paths."""
    return _quoted(str(place))


def said(place: Path) -> str:
    """A path as a description holds it."""
    return str(place).replace("%", "%%").replace("\n", " ")


def demand_user(name: str) -> str:
    """``name``, if it can be a user's.

    Raises:
        TrustError: it cannot.
    """
    from polyclinic.core.errors import TrustError

    if re.fullmatch(r"[a-z_][a-z0-9_-]{0,30}", name) is None:
        raise TrustError("is no name of a user", where=name[:80], remedy="lower-case letters, digits, _ and -")
    return name


def images(manifest: Path, folder: Path) -> list[Path]:
    """What to hide so that the images beside ``manifest`` are out of sight, without hiding the site's ``folder``."""
    beside, inner = manifest.parent, folder.resolve()
    if not inner.is_relative_to(beside.resolve()):
        return [beside]
    return sorted(found for found in beside.iterdir() if not inner.is_relative_to(found.resolve()))


def _quoted(word: str) -> str:
    plain = word.replace("%", "%%")
    if re.fullmatch(r"[A-Za-z0-9_./:=@+,%-]+", plain):
        return plain
    return '"{}"'.format(plain.replace("\\", "\\\\").replace('"', '\\"'))


def _places(*needed: Path) -> Sequence[Line]:
    """Shuts off homes and temporary files, unless something that is ``needed``, or the command itself, lies there."""
    places = [str(place) for place in (*needed, Path(program()[0]), Path(sys.prefix), Path(sys.base_prefix))]
    homely = any(place.startswith(("/home/", "/root/", "/run/user/")) for place in places)
    passing = any(place.startswith(("/tmp/", "/var/tmp/")) for place in places)
    return ("ProtectHome", "read-only" if homely else "true"), ("PrivateTmp", "false" if passing else "true")
