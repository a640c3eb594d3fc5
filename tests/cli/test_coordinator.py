"""polyclinic coordinator, as its engineer meets it; without the processes, which tests/live runs."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import stat
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from polyclinic.cli import coordinator as cli
from polyclinic.cli import foreground, watching
from polyclinic.core import study as studies
from polyclinic.core.book import verify_book
from polyclinic.core.invitation import read_invitation
from polyclinic.core.signing import SigningKey, sign
from polyclinic.server.governance.members import SiteRecord
from polyclinic.server.live.home import Home, opened
from polyclinic.server.live.page.live import parse
from tests.cli.conftest import Call

HOST = "fed.example.org"


@pytest.fixture(autouse=True)
def no_folder_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the caller's environment says."""
    monkeypatch.delenv("POLYCLINIC_HOME", raising=False)


@pytest.fixture
def home(polyclinic: Call, tmp_path: Path, no_folder_is_meant: None, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A fresh coordinator, which every command means."""
    folder = tmp_path / "federation"
    assert polyclinic("coordinator", "init", folder, "--host", HOST).code == 0
    monkeypatch.setenv("POLYCLINIC_HOME", str(folder))
    return Home.open(folder)


@pytest.fixture
def published(home: Home, polyclinic: Call, live_study: Path) -> str:
    """Digest of a study that is published."""
    said = polyclinic("coordinator", "publish", live_study, "--json")
    assert said.code == 0, said.err
    return str(json.loads(said.out)["study"])


def joined(home: Home, name: str, study: str = "", number: int = 1) -> SigningKey:
    """A site that is registered, and has approved a study; its key."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = SigningKey.new()
    node = ec.generate_private_key(ec.SECP384R1()).public_key()
    pem = node.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with opened(home) as registry:
        registry.enrol(SiteRecord(name, key.public, pem, "c" * 64, time.time() + 20.4 * 86400, b"", time.time()))
        if study:
            limits = {"rounds": None, "until": None, "hours": None}
            decision = {
                "kind": "decision", "site": name, "study": study, "verb": "approve", "version": "0.1.0",
                "backbone_sha256": "0" * 64, "limits": limits, "time": time.time(), "sequence": number,
            }  # fmt: skip
            registry.decide(name, decision, sign(decision, key))
    return key


def object_of(text: str) -> dict[str, Any]:
    """The one JSON object that a command said, and nothing else."""
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def test_init_says_what_comes_next_and_keeps_its_keys_to_itself(home: Home, polyclinic: Call, tmp_path: Path) -> None:
    for name in ("ca.key", "server.key", "signing.key"):
        assert stat.S_IMODE((home.keys / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700
    said = polyclinic("coordinator", "init", tmp_path / "other", "--host", HOST)
    for words in (f"{HOST}, ports 8443 and 8444", "polyclinic coordinator invite SITE", "polyclinic coordinator start"):
        assert words in said.out
    assert f"--dir {tmp_path / 'other'}" in said.out, "another one is meant when no folder is named"
    assert "is not empty" in polyclinic("coordinator", "init", home.folder, "--host", HOST).complaint
    more = polyclinic("coordinator", "init", tmp_path / "third", "--host", HOST, "--fleet-port", 443, "--json")
    assert object_of(more.out)["fleet_port"] == Home.open(tmp_path / "third").settings.fleet_port == 443


def test_a_failed_init_leaves_nothing(polyclinic: Call, tmp_path: Path) -> None:
    folder = tmp_path / "federation"
    assert "no" in polyclinic("coordinator", "init", folder, "--host", "https://x/").complaint
    same = polyclinic("coordinator", "init", folder, "--host", HOST, "--page-port", 8443)
    assert same.code == 2
    assert not folder.exists()
    assert "polyclinic coordinator init" in polyclinic("coordinator", "status", "--dir", tmp_path).complaint


def test_an_invitation_is_printed_or_written_for_one_pair_of_eyes(home: Home, polyclinic: Call, tmp_path: Path) -> None:
    said = polyclinic("coordinator", "invite", "north", "--days", 2)
    text = next(line for line in said.out.splitlines() if line.startswith("polyclinic-invitation-1:"))
    printed = read_invitation(text)
    assert (printed.site, printed.host, printed.fleet_port) == ("north", HOST, 8443)
    assert 1.9 * 86400 < printed.expires - time.time() <= 2 * 86400
    path = tmp_path / "south.invitation"
    assert polyclinic("coordinator", "invite", "south", "--to", path).code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_invitation(path).site == "south"
    assert "exists already" in polyclinic("coordinator", "invite", "west", "--to", path).complaint
    told = object_of(polyclinic("coordinator", "invite", "west", "--json").out)
    assert read_invitation(told["invitation"]).token != printed.token
    assert "invited until" in polyclinic("coordinator", "sites").out


def test_a_study_is_published_named_run_stopped_resumed_and_retired(
    home: Home, published: str, polyclinic: Call, live_study: Path
) -> None:
    joined(home, "north", published)
    joined(home, "south")
    assert "no such study" in polyclinic("coordinator", "run", "other").complaint
    assert "6 digits" in polyclinic("coordinator", "run", published[:5]).complaint
    for name in ("tiny", published[:6], published.upper()[:12], published, live_study):
        said = object_of(polyclinic("coordinator", "run", name, "--json").out)
        assert said["study"] == published
        assert (said["approved"], said["undecided"], said["coordinator_running"]) == (["north"], ["south"], False)
        assert polyclinic("coordinator", "stop", said["run"]).code == 0
    run = said["run"]
    assert "is stopped already" in polyclinic("coordinator", "stop", run).out
    assert "coordinator watch" in polyclinic("coordinator", "resume", run).out
    assert object_of(polyclinic("coordinator", "stop", "--json").out) == {
        "run": run, "state": "stopped", "changed": True,
    }, "the one that is on is meant"  # fmt: skip
    assert "could be" in polyclinic("coordinator", "resume").complaint, "five are stopped"
    watched = polyclinic("coordinator", "watch", run)
    assert watched.code == 1
    assert f"polyclinic coordinator resume {run}" in watched.out
    assert "no longer offered" in polyclinic("coordinator", "retire", "tiny").out
    assert "no such study" in polyclinic("coordinator", "run", "tiny").complaint


def test_two_studies_of_one_name_must_be_told_apart(home: Home, polyclinic: Call, live_study: Path) -> None:
    other = home.folder.parent / "other.toml"
    other.write_text(live_study.read_text().replace("seed = 3", "seed = 4"))
    for path in (live_study, other):
        assert polyclinic("coordinator", "publish", path).code == 0
    both = polyclinic("coordinator", "run", "tiny").complaint
    for path in (live_study, other):
        assert studies.load(path).digest[:12] in both


def test_status_tells_sites_decisions_and_runs_to_people_and_machines(
    home: Home, published: str, polyclinic: Call
) -> None:
    assert "is not running" in polyclinic("coordinator", "status").out
    joined(home, "north", published)
    polyclinic("coordinator", "run", "tiny")
    said = polyclinic("coordinator", "status")
    assert "20 days – ends soon" in said.out
    assert published[:12] in said.out
    told = object_of(polyclinic("coordinator", "status", "--json").out)
    assert told["studies"][0]["sites"] == {"north": "approve"}
    assert told["runs"][0]["state"] == "wanted"
    assert told["run"]["name"] == told["runs"][0]["run"]
    assert told["page"].endswith(f"/?token={home.page_token}")
    assert "there is no such run" in polyclinic("coordinator", "status", "nix").complaint
    assert object_of(polyclinic("coordinator", "sites", "--json").out)["sites"][0]["site"] == "north"


def test_revoking_asks_and_is_for_good(home: Home, polyclinic: Call) -> None:
    joined(home, "north")
    assert "--yes" in polyclinic("coordinator", "revoke", "north").complaint
    assert polyclinic("coordinator", "revoke", "north", "--yes").code == 0
    assert "was revoked" in polyclinic("coordinator", "invite", "north").complaint
    assert "revoked" in polyclinic("coordinator", "sites").out
    polyclinic("coordinator", "invite", "south")
    assert "invitation is void" in polyclinic("coordinator", "revoke", "south").out
    assert "no site of this name" in polyclinic("coordinator", "revoke", "nobody", "--yes").err


def test_a_backup_fits_together_though_everything_was_being_written(
    home: Home, published: str, polyclinic: Call, tmp_path: Path
) -> None:
    joined(home, "north", published)
    polyclinic("coordinator", "run", "tiny")
    done = threading.Event()

    def busy() -> None:
        with opened(home) as registry:
            while not done.is_set():
                registry.invite("south", 60.0)
                time.sleep(0.005)

    writer = threading.Thread(target=busy)
    writer.start()
    try:
        file = tmp_path / "backup.tar"
        said = polyclinic("coordinator", "backup", file)
    finally:
        done.set()
        writer.join()
    assert said.code == 0, said.err
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "exists already" in polyclinic("coordinator", "backup", file).complaint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.tar", "federation"], "nothing is left beside it"
    restored = tmp_path / "restored"
    with tarfile.open(file) as tar:
        tar.extractall(restored, filter="data")
    again = Home.open(restored)
    assert stat.S_IMODE((again.keys / "ca.key").stat().st_mode) == 0o600
    invited = sum(entry.kind == "invited" for entry in verify_book(again.book, home.signing_key().public))
    with sqlite3.connect(again.registry) as db:
        kept, waiting = (db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ("invitations", "notes"))
    assert kept == invited + waiting > 0, "registry and book are of one moment"
    assert polyclinic("coordinator", "verify", "--dir", restored).code == 0


def test_verify_names_every_fault_not_only_the_first(home: Home, published: str, polyclinic: Call) -> None:
    good = polyclinic("coordinator", "verify")
    assert good.code == 0
    assert "all in order" in good.out
    run = object_of(polyclinic("coordinator", "run", "tiny", "--json").out)
    Path(run["folder"], "ledger.jsonl").write_text("{}\n")
    ledger = home.book / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace('"kind":"published"', '"kind":"punished"'))
    said = polyclinic("coordinator", "verify")
    assert said.code == 1
    assert said.out.count("WRONG: ") == 2
    told = object_of(polyclinic("coordinator", "verify", "--json").out)
    assert told["ok"] is False
    assert sum(not check["fine"] for check in told["checks"]) == 2


def test_an_alarm_of_a_site_is_no_clean_bill(home: Home, polyclinic: Call) -> None:
    key = joined(home, "north")
    with opened(home) as registry:
        registry.alarm("north", "", "north saw another line", sign({"kind": "head"}, key))
    said = polyclinic("coordinator", "verify")
    assert said.code == 1
    assert "north saw another line" in said.out


def test_start_is_refused_where_one_runs_or_a_port_is_taken(home: Home, polyclinic: Call) -> None:
    with foreground.alone(home.folder, what="this coordinator", remedy="-"):
        assert foreground.held(home.folder)
        assert "is running already" in polyclinic("coordinator", "start").complaint
    assert not foreground.held(home.folder)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = (home.folder / "coordinator.toml").read_text()
        (home.folder / "coordinator.toml").write_text(text.replace("8480", str(port)))
        assert f"port {port} (page_port)" in polyclinic("coordinator", "start").complaint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_nobody_but_the_owner_writes_there(home: Home, polyclinic: Call) -> None:
    os.chown(home.folder, 1, 1)
    assert "sudo -u daemon polyclinic" in polyclinic("coordinator", "sites").complaint


def test_the_service_is_printed_or_written(home: Home, polyclinic: Call, tmp_path: Path) -> None:
    printed = polyclinic("coordinator", "service", "--user", "fed")
    assert printed.out.splitlines()[1] == "[Unit]"
    assert f"ReadWritePaths={home.folder}" in printed.out
    assert "User=fed" in printed.out
    written = polyclinic("coordinator", "service", "--to", tmp_path)
    assert (tmp_path / "polyclinic-coordinator.service").is_file()
    assert "systemctl enable --now polyclinic-coordinator" in written.out
    told = object_of(polyclinic("coordinator", "service", "--json").out)
    assert list(told["units"]) == ["polyclinic-coordinator.service"]
    assert "no name of a user" in polyclinic("coordinator", "service", "--user", "a b").complaint


def test_news_are_told_once_and_alarms_as_such(home: Home) -> None:
    said: list[str] = []
    with opened(home) as registry:
        registry.event("", "joined", "of old")
        news = cli.News(registry, said.append)
        registry.event("", "joined", "north has joined")
        registry.event("", "alarm", "two histories")
        for _ in range(3):
            assert news() is False
            news._looked = 0.0
    assert said == ["north has joined", "ALARM: two histories"]


def live(phase: str, number: int, events: list[tuple[str, str, str]], why: str = "") -> Any:
    told = [{"at": 1.0 + i, "kind": k, "round": number, "site": s, "text": t} for i, (k, s, t) in enumerate(events)]
    sites = {"north": {"state": "working", "since": 90.0}, "south": {"state": "answered"}}
    found = {"run": "r", "study": "s", "phase": phase, "why": why, "round": number, "rounds": 3, "sites": sites}
    return parse(json.dumps(found | {"events": told, "deadline": 3700.0, "updated": 100.0, "left": 240.0}))


def test_watching_tells_what_is_new_and_repeats_nothing(tmp_path: Path) -> None:
    lines = watching.Lines(tmp_path)

    def new(*state: Any) -> list[str]:
        return [line.partition("  ")[2] for line in lines.new(live(*state))]

    events = [("site", "north", "refused: not approved"), ("excluded", "north", "not approved")]
    assert new("running", 1, events) == ["round 1: north: refused: not approved", "round 1 of 3 began"]
    assert new("running", 1, events) == []
    events += [("alarm", "", "too few")]
    assert new("paused", 1, events, "too few") == ["ALARM: round 1: too few"], "and not a second time as the phase"
    events += [*events, ("done", "", "round 1 is committed")]
    assert new("running", 2, events) == ["round 1 is committed", "round 2 of 3 began"]
    assert "north working for 10 s" in watching.now_line(live("running", 2, []), 100.0)
    assert "the round ends in 60 min at the latest; about 4 min left" in watching.now_line(
        live("running", 2, []), 100.0
    )


def test_what_a_site_wrote_cannot_move_the_cursor() -> None:
    line = watching.event_line(live("running", 1, [("site", "north", "x\x1b[2Jy\nz")]).events[0])
    assert "\x1b" not in line
    assert "\n" not in line
