"""polyclinic site, as a hospital's engineer meets it; without the processes, which tests/live runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import click
import pytest
import typer.main

from polyclinic.cli import foreground
from polyclinic.cli.main import app
from polyclinic.client.approvals import decisions
from polyclinic.client.credentials import make_node_key
from polyclinic.client.home import Home
from polyclinic.client.offer import signed_text
from polyclinic.client.outbox import Inbox, Outbox
from polyclinic.client.settings import Coordinator, DataPlace, Settings
from polyclinic.core import study as studies
from polyclinic.core.book import Book
from polyclinic.core.pki import Authority, new_tls_key, request, save_tls_key
from polyclinic.core.signing import SigningKey
from polyclinic.server.live.publish import publish
from tests.cli.conftest import Call, environment, process
from tests.cli.test_coordinator import object_of
from tests.conftest import write_images

GUIDES = ("docs/coordinator.md", "docs/site.md", "README.md")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_folder_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the caller's environment says."""
    monkeypatch.delenv("POLYCLINIC_HOME", raising=False)


@pytest.fixture(scope="module")
def coordinator() -> SigningKey:
    """The key of the coordinator that the site has joined."""
    return SigningKey.new()


@pytest.fixture(scope="module")
def joined(coordinator: SigningKey, live_study: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, str]:
    """A site that has joined, with images, and a study that is offered to it: its folder and the digest."""
    folder = tmp_path_factory.mktemp("hospital")
    manifest, key = write_images(folder / "images", {"north": 48}), SigningKey.new()
    at = Coordinator(host="localhost", fleet_port=9, governance_port=9, key=coordinator.public)
    data = DataPlace(manifest=str(manifest))
    home = Home.create(folder / "site", Settings(name="north", key=key.public, coordinator=at, data=data))
    key.save(home.signing_key)
    authority, tls = Authority.create(folder / "authority", "localhost"), new_tls_key()
    save_tls_key(tls, home.network / "tls.key")
    (home.network / "tls.pem").write_bytes(authority.issue(request(tls, "north"), "north"))
    (home.network / "ca.pem").write_bytes(authority.pem)
    make_node_key(home)
    with closing(Book(home.book, key)) as book:
        book.append("joined", {"host": "localhost"})
    study = studies.load(live_study)
    signed, _ = publish(study, folder / "initial", coordinator)
    (home.studies / f"{study.digest}.json").write_text(signed_text(signed))
    (home.studies / f"{study.digest}.toml").write_text(study.toml())
    return home, study.digest


@pytest.fixture
def site(joined: tuple[Home, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A copy of that site, which every command means."""
    home = Home(tmp_path / "site")
    shutil.copytree(joined[0].folder, home.folder)
    monkeypatch.setenv("POLYCLINIC_HOME", str(home.folder))
    return home


@pytest.fixture
def digest(joined: tuple[Home, str]) -> str:
    """Of the study."""
    return joined[1]


def test_a_study_is_listed_shown_approved_with_limits_and_withdrawn(site: Home, digest: str, polyclinic: Call) -> None:
    assert re.search(rf"tiny +{digest[:12]} +not decided", polyclinic("site", "studies").out)
    shown = polyclinic("site", "show", "tiny").out
    for words in ("What leaves this site", "What does not leave this site", digest, "was not approved here"):
        assert words in shown
    assert "--yes" in polyclinic("site", "approve", digest[:6]).complaint, "there is nobody to ask"
    assert not decisions(site)
    limits = ("--rounds", 2, "--until", "2099-12-31", "--hours", "20:00-06:00")
    said = polyclinic("site", "approve", digest[:6], *limits, "--yes")
    assert said.out.index("What leaves this site") < said.out.index("Approved tiny"), "the words come first"
    found = decisions(site)[digest]
    assert (found.verb, found.limits.rounds, found.limits.hours) == ("approve", 2, "20:00-06:00")
    assert Outbox(site.outbox).count() == 1
    rows = object_of(polyclinic("site", "studies", "--json").out)["studies"]
    assert (rows[0]["decision"], rows[0]["name"]) == ("approved", "tiny")
    assert "at most 2 rounds of training" in rows[0]["limits"]
    told = object_of(polyclinic("site", "show", digest, "--json").out)
    assert told["decision"] == "approved"
    assert "What leaves this site" in told["words"]
    assert "from this moment on" in polyclinic("site", "withdraw", "tiny").out
    assert decisions(site)[digest].verb == "withdraw"
    assert Outbox(site.outbox).count() == 2
    assert "withdrawn already" in polyclinic("site", "withdraw", "tiny").err
    again = object_of(polyclinic("site", "approve", "tiny", "--yes", "--json").out)
    assert again["sequence"] == 3


def test_a_study_that_is_no_longer_offered_can_still_be_withdrawn(site: Home, digest: str, polyclinic: Call) -> None:
    assert polyclinic("site", "approve", "tiny", "--yes").code == 0
    (site.studies / f"{digest}.json").unlink()
    assert "is no longer offered" in polyclinic("site", "studies").out
    assert polyclinic("site", "withdraw", digest[:8]).code == 0


def test_what_cannot_be_meant_is_named(site: Home, digest: str, polyclinic: Call) -> None:
    assert "6 digits" in polyclinic("site", "approve", digest[:5]).complaint
    assert "polyclinic site studies" in polyclinic("site", "show", "other").complaint
    assert "nothing to take back" in polyclinic("site", "withdraw", "tiny").err
    for option, value in (("--rounds", "0"), ("--until", "soon"), ("--hours", "25:00-26:00")):
        assert value in polyclinic("site", "approve", "tiny", option, value, "--yes").complaint
    assert not decisions(site)


def test_an_offer_that_was_touched_is_not_to_be_approved(site: Home, digest: str, polyclinic: Call) -> None:
    path = site.studies / f"{digest}.json"
    path.write_text(path.read_text().replace("rank = 2", "rank = 3"))
    assert polyclinic("site", "approve", digest, "--yes").code == 1
    assert "signature is wrong" in polyclinic("site", "studies").out
    assert not decisions(site)


def test_the_log_is_the_book_in_plain_words(site: Home, digest: str, polyclinic: Call) -> None:
    polyclinic("site", "approve", "tiny", "--rounds", 3, "--yes")
    key = site.key()
    with closing(Book(site.book, key)) as book:
        body = {"study": digest, "run": "tiny-1", "round": 1, "base": "1" * 64, "update": "2" * 64, "weight": 24}
        book.append("answered", body | {"statistics": ["fitted/val"], "bytes": 12345})
        book.append("refused", {"study": digest, "run": "tiny-1", "round": 2, "why": "too late in the day"})
        book.append("head", {"run": "", "sequence": 4, "digest": "ab" * 32})
        book.append("alarm", {"what": "two histories", "at": 1.0})
        book.append("unheard-of", {"x": 1})
    lines = polyclinic("site", "log").out.splitlines()
    for line, words in zip(lines, (
        "joined the federation of localhost",
        f"approved study {digest[:12]} for polyclinic 0.1.0: at most 3 rounds of training",
        "round 1 of tiny-1: sent trained weights (counting 24) and fitted/val; 12,345 bytes left this site",
        f"refused round 2 of tiny-1, study {digest[:12]}: too late in the day",
        "saw the coordinator's book up to line 5 (abababababab)",
        "ALARM: two histories",
        "unheard-of: x 1",
    ), strict=True):  # fmt: skip
        assert line.endswith(words)
    assert len(polyclinic("site", "log", "--last", 2).out.splitlines()) == 2
    entries = object_of(polyclinic("site", "log", "--json").out)["entries"]
    assert [entry["kind"] for entry in entries][:2] == ["joined", "approve"]
    assert polyclinic("site", "log", "--json", "--follow").code == 2


def test_the_log_is_followed(site: Home) -> None:
    command = [sys.executable, "-m", "polyclinic.cli.main", "site", "log", "--follow"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    assert running.stdout is not None
    try:
        assert "joined" in running.stdout.readline()
        with closing(Book(site.book, site.key())) as book:
            book.append("alarm", {"what": "now"})
        assert running.stdout.readline().endswith("ALARM: now\n")
    finally:
        running.kill()
        running.communicate()


def test_verify_finds_an_altered_book_and_tells_alarms(site: Home, digest: str, polyclinic: Call) -> None:
    polyclinic("site", "approve", "tiny", "--yes")
    good = polyclinic("site", "verify")
    assert good.code == 0, good.out
    Inbox(site.inbox).alarm("the ledger is shorter than it was", time.time())
    ledger = site.book / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace("approve", "applaud"))
    said = polyclinic("site", "verify")
    assert said.code == 1
    assert said.out.count("WRONG: ") == 2
    assert "shorter than it was" in said.out
    told = object_of(polyclinic("site", "verify", "--json").out)
    assert not told["ok"]
    assert "ALARM" in polyclinic("site", "status").out


def test_status_says_what_is_wrong_and_what_to_do(site: Home, digest: str, polyclinic: Call) -> None:
    said = polyclinic("site", "status").out
    assert "Agent: not running. Next: polyclinic site start" in said
    assert f"Waiting for your decision: {digest[:12]}" in said
    polyclinic("site", "approve", "tiny", "--yes")
    Inbox(site.inbox).set_state("hello", {"skew": 600.0, "certificate_not_after": time.time() + 5e5, "warnings": ["w"]})
    Inbox(site.inbox).set_state("link", {"reached": False, "why": "the line is cut", "at": time.time()})
    with foreground.alone(site.network, what="this site", remedy="-"):
        said = polyclinic("site", "status").out
        told = object_of(polyclinic("site", "status", "--json").out)
    for words in ("the line is cut", "+600 s off", "6 days left", "Warning: w", "1 statements are waiting", "tiny"):
        assert words in said
    assert told["agent"]["alive"] is False
    assert told["approved"][0]["study"] == digest


def test_the_images_are_checked_for_the_study_that_is_offered(site: Home, digest: str, polyclinic: Call) -> None:
    good = polyclinic("site", "data", "check")
    assert good.code == 0, good.out
    assert "north train: 24 images" in good.out
    assert "labels and settings were not checked" not in good.out, "the study was found"
    assert object_of(polyclinic("site", "data", "check", digest[:6], "--quick", "--json").out)["ok"]
    manifest = site.manifest.read_text()
    try:
        site.manifest.write_text(manifest.replace(",north,1,", ",north,perhaps,", 1))
        assert polyclinic("site", "data", "check").code == 1
    finally:
        site.manifest.write_text(manifest)


def test_the_doctor_names_what_keeps_the_site_away(site: Home, polyclinic: Call) -> None:
    said = polyclinic("site", "doctor")
    assert said.code == 1
    assert "error: governance" in said.out
    assert "keep this site from taking part" in said.out
    told = object_of(polyclinic("site", "doctor", "--json").out)
    assert {finding["name"] for finding in told["findings"]} > {"keys", "manifest"}


def test_a_second_start_is_refused_whichever_half(site: Home, polyclinic: Call) -> None:
    with foreground.alone(site.network, what="this site", remedy="-"):
        for part in ("all", "network"):
            assert "is running already" in polyclinic("site", "start", "--part", part).complaint


def test_the_units_are_printed_or_written_with_the_second_user(site: Home, polyclinic: Call, tmp_path: Path) -> None:
    before = site.config.read_text()
    printed = polyclinic("site", "service")
    assert [line for line in printed.out.splitlines() if line.startswith("# ")] == [
        "# polyclinic-agent.service", "# polyclinic-network.service",
    ]  # fmt: skip
    assert site.config.read_text() == before, "printing changes nothing"
    assert f"InaccessiblePaths=-{site.manifest.parent}" in printed.out
    units = tmp_path / "units"
    units.mkdir()
    said = polyclinic("site", "service", "--user", "agent", "--network-user", "net", "--to", units)
    assert said.code == 0, said.err
    assert "useradd --system agent" in said.out
    assert sorted(path.name for path in units.iterdir()) == ["polyclinic-agent.service", "polyclinic-network.service"]
    assert Home(site.folder).settings.network_user == "net"
    assert stat.S_IMODE(site.config.stat().st_mode) == 0o640
    lines = [line for line in site.config.read_text().splitlines() if "network_user" not in line]
    assert lines == [line for line in before.splitlines() if "network_user" not in line], "comments stay as they are"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_nobody_but_the_owner_decides(site: Home, polyclinic: Call) -> None:
    os.chown(site.folder, 1, 1)
    assert "sudo -u daemon polyclinic" in polyclinic("site", "approve", "tiny", "--yes").complaint
    assert polyclinic("site", "log").code == 0, "reading is for whoever may"


def test_a_folder_without_a_site_says_how_to_get_one(tmp_path: Path, polyclinic: Call) -> None:
    assert "polyclinic site join" in polyclinic("site", "status", "--dir", tmp_path).complaint
    bad = polyclinic("site", "join", "nothing", "--data", tmp_path / "m.csv", "--dir", tmp_path)
    assert "neither an invitation nor a file" in bad.complaint


def said_in(guide: Path) -> list[str]:
    """Every command of ours in a guide's blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", guide.read_text(encoding="utf-8"), flags=re.DOTALL)
    blocks = [re.sub(r"\$\(.*?\)", "x", block) for block in blocks]
    lines = [line.partition("#")[0] for block in blocks for line in block.splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip().startswith("polyclinic ")]


@pytest.mark.parametrize("guide", GUIDES)
def test_guides_tell_commands_that_there_are(guide: str) -> None:
    commands = said_in(ROOT / guide)
    assert commands
    root = typer.main.get_command(app)
    for command in commands:
        words, found = shlex.split(command)[1:], root
        context = click.Context(root)
        while isinstance(found, click.Group):
            name = words.pop(0)
            inner = found.get_command(context, name)
            assert inner is not None, command
            found = inner
        found.make_context(found.name, words)  # refuses what it does not know


@pytest.mark.slow
def test_the_live_demo_runs_by_itself_and_leaves_no_process(tmp_path: Path) -> None:
    said = process("live-demo", "demo", "--rounds", "1", cwd=tmp_path)
    assert said.code == 0, said.out + said.err
    assert said.out.count("checks: all in order") == 4
    report = Path(said.out.rpartition("Report:")[2].split()[0])
    assert report.is_file()
    for role in ("coordinator", "old_scanner"):
        assert "Stopped." in (tmp_path / "demo" / f"{role}.log").read_text()
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False).stdout
    assert str(tmp_path) not in left
    again = process("live-demo", tmp_path, cwd=tmp_path)
    assert "holds something else than a live demo" in again.complaint
