"""systemd units: sound to systemd itself, and as closed as promised."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from polyclinic.cli import units
from polyclinic.cli.units import Unit
from polyclinic.core.errors import TrustError

ODD = 'a b 100% of $HOME "it\'s" back\\slash'


def lines(unit: Unit, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit.text(), flags=re.MULTILINE)


def site(folder: Path, *hidden: Path) -> Sequence[Unit]:
    return units.site(folder, "polyclinic", "polyclinic-net", hidden)


@pytest.fixture(autouse=True)
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Polyclinic stood where servers have it, except where systemd looks for the command itself."""
    monkeypatch.setattr(sys, "prefix", "/opt/polyclinic")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    if "systemd" not in request.node.name:
        monkeypatch.setattr(units, "program", lambda: ["/opt/polyclinic/bin/polyclinic"])


def test_the_agent_reaches_nobody_outside_and_the_network_half_sees_no_image() -> None:
    agent, network = site(Path("/srv/site"), Path("/srv/images"))
    assert lines(agent, "User") == ["polyclinic"]
    assert lines(network, "User") == ["polyclinic-net"]
    assert lines(agent, "IPAddressDeny") == ["any"]
    assert lines(agent, "IPAddressAllow") == ["localhost"]
    assert lines(agent, "InaccessiblePaths") == ["/srv/site/network"]
    assert set(lines(network, "InaccessiblePaths")) == {"-/srv/site/private", "-/srv/site/replies", "-/srv/images"}
    assert set(lines(network, "ReadWritePaths")) == {
        f"/srv/site/{name}" for name in ("network", "shared/studies", "shared/inbox")
    }
    assert lines(network, "Requires") == ["polyclinic-agent.service"], "both begin anew together"


@pytest.mark.parametrize("which", [0, 1, 2])
def test_every_unit_is_hardened_and_comes_back(which: int) -> None:
    unit = [*units.coordinator(Path("/srv/c"), "polyclinic"), *site(Path("/srv/s"))][which]
    for key, value in (
        ("NoNewPrivileges", "true"), ("ProtectSystem", "strict"), ("PrivateTmp", "true"), ("CapabilityBoundingSet", ""),
        ("Restart", "on-failure"), ("RestrictSUIDSGID", "true"), ("StartLimitIntervalSec", "0"),
    ):  # fmt: skip
        assert lines(unit, key) == [value], key
    assert lines(unit, "ExecStart")[0].startswith(" ".join(units.program()))
    assert lines(unit, "WantedBy") == ["multi-user.target"]


def test_homes_stay_readable_only_where_something_needed_lies_there() -> None:
    agent, network = site(Path("/srv/site"), Path("/home/radiology/images"))
    assert lines(agent, "ProtectHome") == ["read-only"]
    assert lines(network, "ProtectHome") == ["true"]
    (there,) = units.coordinator(Path("/tmp/c"), "polyclinic")
    assert lines(there, "PrivateTmp") == ["false"], "or its own folder would be out of sight"


def test_hiding_the_images_never_hides_the_site(tmp_path: Path) -> None:
    (tmp_path / "apart").mkdir()
    (tmp_path / "beside" / "site").mkdir(parents=True)
    for name in ("manifest.csv", "pictures"):
        (tmp_path / "beside" / name).mkdir()
    assert units.images(tmp_path / "apart" / "manifest.csv", tmp_path / "beside" / "site") == [tmp_path / "apart"]
    assert units.images(tmp_path / "beside" / "manifest.csv", tmp_path / "beside" / "site") == [
        tmp_path / "beside" / "manifest.csv",
        tmp_path / "beside" / "pictures",
    ]


@pytest.mark.parametrize("name", ["", "Root", "a b", "x\nExecStart=/bin/sh", "%u", "-x", "a" * 40])
def test_what_is_no_user_is_refused(name: str) -> None:
    with pytest.raises(TrustError, match="no name of a user"):
        units.coordinator(Path("/srv/c"), name)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
@pytest.mark.parametrize("name", ["plain", ODD])
def test_systemd_takes_them_whatever_the_folder_is_called(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    made = [
        *units.coordinator(folder, "root"),
        *units.site(folder, "root", "daemon", [tmp_path / f"images {name}"]),
    ]
    files = []
    for unit in made:
        files.append(tmp_path / f"{unit.name}.service")
        files[-1].write_text(unit.text())
    done = subprocess.run(["systemd-analyze", "verify", *map(str, files)], capture_output=True, text=True, check=False)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "polyclinic-" in line]
    assert not ours
    assert done.returncode == 0, done.stderr


def test_a_command_line_is_read_back_as_it_was_meant() -> None:
    """By the rules of systemd.syntax and systemd.service: quotes, then backslashes, then % and $ doubled."""
    said = units.command_line(["/bin/x", ODD])
    quoted = said.partition(" ")[2]
    assert quoted[0] == quoted[-1] == '"'
    inner = re.sub(r"\\(.)", r"\1", quoted[1:-1])
    assert inner.replace("%%", "%").replace("$$", "$") == ODD
