"""What the commands of coordinators and sites have in common: where they work, and how they answer."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

Folder = Annotated[
    Path,
    typer.Option(
        "--dir",
        "-d",
        metavar="DIR",
        envvar="POLYCLINIC_HOME",
        help="Its folder.",
        show_default="the current folder",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def answer(as_json: bool, told: Mapping[str, Any], sentences: Iterable[str]) -> None:
    """Says what a command found or did: one JSON object, or sentences for people."""
    if as_json:
        typer.echo(json.dumps(told, indent=1, ensure_ascii=False))
    else:
        for sentence in sentences:
            typer.echo(sentence)


def command(words: str, folder: Path) -> str:
    """How a command is called for ``folder`` from where the caller is now."""
    here = Path(os.environ.get("POLYCLINIC_HOME") or ".")
    option = "" if folder.resolve() == here.resolve() else f" --dir {shlex.quote(str(folder))}"
    return f"polyclinic {words}{option}"


def confirm(question: str, yes: bool) -> None:
    """Nothing, if somebody said yes; else the command ends, with code 1, and nothing was done.

    Raises:
        PolicyError: there is nobody to ask.
    """
    import sys

    from polyclinic.core.errors import PolicyError

    if yes:
        return
    if not sys.stdin.isatty():
        raise PolicyError("there is no terminal to ask at", remedy="look at it first, then say --yes")
    if not typer.confirm(question):
        typer.echo("Nothing was changed.")
        raise typer.Exit(1)


def demand_owner(folder: Path) -> None:
    """Nothing, if ``folder`` belongs to whoever calls: what others wrote there, its processes could not write again.

    Raises:
        TrustError: naming the user as whom the command is to be called.
    """
    from polyclinic.core.errors import TrustError

    if not folder.is_dir() or (owner := folder.stat().st_uid) == os.geteuid():
        return
    import pwd

    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"#{owner}"
    remedy = f"sudo -u {shlex.quote(name)} polyclinic …"
    raise TrustError(f"belongs to the user {name}", where=str(folder), remedy=remedy)


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of columns as wide as they must be; none without rows."""
    lines = [list(row) for row in rows]
    if not lines:
        return []
    wide = [max(len(line[i]) for line in [list(titles), *lines]) for i in range(len(titles))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(line, wide, strict=True)).rstrip() for line in [titles, *lines]]


def moment(at: float) -> str:
    """A time of day if it is today's, else a date with it; of this machine's zone."""
    then, now = time.localtime(at), time.localtime()
    return time.strftime("%H:%M:%S" if then[:3] == now[:3] else "%Y-%m-%d %H:%M", then)


def span(seconds: float) -> str:
    """ "12 s", "3 min", "2 h", "5 days"."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def listed(names: Sequence[str]) -> str:
    """ "north, south and west"; "nobody"."""
    if len(names) < 2:
        return names[0] if names else "nobody"
    return f"{', '.join(names[:-1])} and {names[-1]}"
