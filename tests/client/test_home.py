"""A site's folder: its settings survive being written, wrong ones are named, and nothing secret is open to others."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyclinic.client.home import Home
from polyclinic.client.settings import Coordinator, DataPlace, Rules, Settings
from polyclinic.core.book import Book
from polyclinic.core.errors import PolicyError, TrustError
from polyclinic.core.signing import SigningKey

KEY = SigningKey.new()


def settings(**others: object) -> Settings:
    at = Coordinator(host="hub.example", fleet_port=9092, governance_port=9093, key="c" * 64)
    given_ = {"name": "north", "key": KEY.public, "coordinator": at, "data": DataPlace(manifest="data/m.csv")}
    return Settings(**{**given_, **others})  # type: ignore[arg-type]


def home(tmp_path: Path, **others: object) -> Home:
    made = Home.create(tmp_path / "north", settings(**others))
    KEY.save(made.signing_key)
    return made


@pytest.mark.parametrize(
    "others",
    [{}, {"proxy": "http://proxy:3128", "network_user": "net", "local_port": 9, "policy": Rules(tell=("outcome",))}],
)
def test_settings_come_back_as_they_were_written(others: dict[str, object], tmp_path: Path) -> None:
    made = home(tmp_path, **others)
    assert Home(made.folder).demand().settings == settings(**others)
    assert made.manifest == made.folder / "data" / "m.csv"
    assert made.key().public == KEY.public


@given(st.text(min_size=1))
def test_any_path_can_be_written(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        return
    text = settings(data=DataPlace(manifest=path)).render()
    assert tomllib.loads(text)["data"]["manifest"] == path


def test_every_key_is_explained() -> None:
    text = settings(proxy="http://p:1", network_user="net").render().splitlines()
    for number, line in enumerate(text):
        name = line.split(" = ")[0]
        if " = " in line and not line.startswith("#") and name not in ("fleet_port", "governance_port", "host"):
            assert text[number - 1].startswith("#"), line


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("local_port = 9480", "local_port = 0", "local_port"),
        ("local_port = 9480", "localport = 1", "did you mean 'local_port'"),
        ('name = "north"', 'name = "../x"', "name"),
        ('name = "north"', "", "'name' is missing"),
        ("minimum_patients = 10", "minimum_patients = 0", "minimum_patients"),
        ('"acquisition"]', '"everything"]', "tell"),
        ('# proxy = "http:', 'proxy = "ftp:', "proxy"),
        ("[data]", "[data", "cannot be read"),
    ],
)
def test_wrong_settings_are_refused_with_their_place(old: str, new: str, reason: str, tmp_path: Path) -> None:
    made = home(tmp_path)
    made.config.write_text(made.config.read_text().replace(old, new, 1))
    with pytest.raises(PolicyError, match=rf"site\.toml.*{reason}"):
        made.demand()


def test_a_folder_without_a_site(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="holds no site"):
        Home(tmp_path).demand()


@pytest.mark.parametrize(
    ("name", "mode", "remedy"),
    [
        ("private", 0o750, "chmod 700"),
        ("private/signing.key", 0o640, "chmod 600"),
        ("network/tls.key", 0o644, "chmod 600"),
        ("network/node.key", 0o604, "chmod 600"),
        ("replies", 0o701, "chmod 700"),
        ("book", 0o777, "chmod go-w"),
        ("site.toml", 0o666, "chmod go-w"),
    ],
)
def test_what_is_open_to_others_is_refused(name: str, mode: int, remedy: str, tmp_path: Path) -> None:
    made = home(tmp_path)
    for key in ("tls.key", "node.key"):
        (made.network / key).touch(0o600)
    made.demand()
    (made.folder / name).chmod(mode)
    with pytest.raises(TrustError, match=rf"{name}: is open to other users \({remedy}"):
        made.demand()
    subprocess.run(next(advice for _, advice in made.exposed()), shell=True, check=True)
    made.demand()


def test_another_key_is_refused(tmp_path: Path) -> None:
    made = home(tmp_path)
    SigningKey.new().save(made.signing_key)
    with pytest.raises(TrustError, match="is not the key that site"):
        made.key()


def test_an_unknown_network_user_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match=r"no user 'nobody-at-all'.*useradd"):
        home(tmp_path, network_user="nobody-at-all").hand_over()
    home(tmp_path / "other").hand_over()


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="only root can give files away")
def test_the_network_user_reads_what_it_needs_and_nothing_else() -> None:
    with TemporaryDirectory() as folder:  # pytest's own are closed to others
        Path(folder).chmod(0o755)
        look_as_nobody(home(Path(folder), network_user="nobody"))


def look_as_nobody(made: Home) -> None:
    KEY.save(made.network / "tls.key")
    Book(made.book, KEY).append("start", {})
    made.status.write_text("{}")
    made.hand_over()
    made.demand()
    script = f"""
import os
from pathlib import Path
home = Path({str(made.folder)!r})
def may(what):
    try:
        what()
    except OSError:
        return "no"
    return "yes"
print(may(lambda: (home / "private" / "signing.key").read_bytes()), may(lambda: list((home / "replies").iterdir())),
      may(lambda: (home / "site.toml").write_text("")), may(lambda: (home / "book" / "ledger.jsonl").open("ab")),
      may(lambda: (home / "shared" / "outbox.db").touch()), may(lambda: (home / "book" / "new").touch()))
print(may(lambda: (home / "site.toml").read_bytes()), may(lambda: (home / "network" / "tls.key").read_bytes()),
      may(lambda: (home / "book" / "ledger.jsonl").read_bytes()), may(lambda: (home / "shared/status.json").open()),
      may(lambda: (home / "shared/studies/x").touch()), may(lambda: (home / "shared/inbox/x").touch()))
"""
    found = pwd.getpwnam("nobody")
    told = subprocess.run(
        ["/usr/bin/env", "python3", "-c", script],
        user=found.pw_uid, group=found.pw_gid, extra_groups=[], capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    assert told.stdout.split() == ["no"] * 6 + ["yes"] * 6
