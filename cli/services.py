"""Hands out systemd units: printed, or written to where systemd looks for them."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from polyclinic.cli.answers import answer
from polyclinic.cli.units import Unit

if TYPE_CHECKING:
    from polyclinic.client.home import Home


def hand_out(units: Sequence[Unit], to: Path | None, as_json: bool, before: Sequence[str]) -> None:
    """Writes the units into ``to``, or prints them so that the output is nothing but units.

    Args:
        before: what must be so before they are started, a sentence each.

    Raises:
        RunError: the folder cannot be written.
    """
    from polyclinic.core import files

    names = [f"{unit.name}.service" for unit in units]
    told = {"units": {name: unit.text() for name, unit in zip(names, units, strict=True)}, "written_to": None}
    enable = f"Next: systemctl daemon-reload && systemctl enable --now {' '.join(unit.name for unit in units)}"
    if to is not None:
        for name, unit in zip(names, units, strict=True):
            files.write(to / name, unit.text())
            (to / name).chmod(0o644)
        answer(as_json, told | {"written_to": str(to)}, (
            f"Wrote {' and '.join(str(to / name) for name in names)}.", *before, enable,
            f"What happens is told by: journalctl -u {units[0].name} -f",
        ))  # fmt: skip
        return
    answer(as_json, told, [f"# {name}\n{unit.text()}" for name, unit in zip(names, units, strict=True)])
    if not as_json:
        typer.echo("These are printed only: --to /etc/systemd/system writes them there.", err=True)
        for sentence in before:
            typer.echo(sentence, err=True)


def set_network_user(home: Home, name: str) -> None:
    """Names the user who faces the network in site.toml, if another or none stands there; comments stay as they are.

    Raises:
        RunError: the file cannot be written.
    """
    from polyclinic.client.home import Home
    from polyclinic.core import files

    if home.settings.network_user == name:
        return
    line, before = f'network_user = "{name}"', home.config.stat()
    text, found = re.subn(
        r"^#? ?network_user = .*$", line, home.config.read_text(encoding="utf-8"), count=1, flags=re.M
    )
    files.write(home.config, text if found else f"{line}\n{text}")
    with files.explained(home.config):
        os.chown(home.config, before.st_uid, before.st_gid)
        home.config.chmod(stat.S_IMODE(before.st_mode))
    assert Home(home.folder).settings.network_user == name


def hand_over(home: Home) -> None:
    """See ``Home.hand_over``."""
    home.hand_over()
