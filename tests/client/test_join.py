"""A site joins with keys that never leave it, believes only the authority that it was told of, and leaves no halves."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key

from polyclinic.client import join as module
from polyclinic.client.credentials import credentials
from polyclinic.client.governance import connect
from polyclinic.client.home import Home
from polyclinic.client.join import join
from polyclinic.client.link import Link
from polyclinic.client.outbox import Inbox, Outbox
from polyclinic.client.record import post
from polyclinic.core import pki
from polyclinic.core.book import Book, verify_book
from polyclinic.core.errors import DataError, EngineError, PolicyError, PolyclinicError, TrustError
from polyclinic.core.governance import governance_pb2 as pb
from polyclinic.core.governance.wire import CA_PATH, ENROL_PATH
from polyclinic.core.pki import Authority
from polyclinic.core.signing import SigningKey
from tests.client.gateway import Gateway, gateway
from tests.faults.http_proxy import ConnectProxy
from tests.server.governance.coordinator import COORDINATOR, STUDY, WEIGHTS, served


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Gateway]:
    (tmp_path / "hub").mkdir()
    with gateway(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "manifest.csv"
    path.write_text("path,label\n")
    return path


def quick(invitation: Any, folder: Path, manifest: Path, **others: Any) -> Home:
    return join(invitation, folder, manifest, sleep=lambda seconds: None, **others)


def test_a_site_is_complete_and_its_keys_are_its_own(hub: Gateway, manifest: Path, tmp_path: Path) -> None:
    home = quick(hub.invite().text(), tmp_path / "north", manifest, local_port=9999)
    settings = home.demand().settings
    assert (settings.name, settings.local_port, settings.proxy) == ("north", 9999, None)
    assert (settings.coordinator.key, settings.coordinator.fleet_port) == (COORDINATOR.public, hub.port)
    assert home.manifest == manifest
    (record,) = hub.hub.registry.sites()
    assert record.signing_key == settings.key == home.key().public
    held = credentials(home)
    assert pki.fingerprint(held.certificate) == record.certificate
    node = load_ssh_private_key((home.network / "node.key").read_bytes(), None)
    assert node.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) == record.node_key  # type: ignore[union-attr]
    (joined,) = verify_book(home.book, settings.key)
    assert (joined.kind, joined.body["coordinator"]) == ("joined", COORDINATOR.public)
    assert hub.asked == [CA_PATH, ENROL_PATH]
    secrets = [home.signing_key, home.network / "tls.key", home.network / "node.key"]
    for path in secrets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        inner = b"".join(path.read_bytes().splitlines()[1:-1])
        assert not any(inner in seen or path.read_bytes() in seen for seen in hub.seen)
    assert {path.name for path in home.folder.iterdir()} == set(module.PARTS)


def test_an_invitation_may_lie_in_a_file_and_the_folder_be_there(hub: Gateway, manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "invitation").write_text(hub.invite().file_text())
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "notes.txt").touch()
    (tmp_path / "here" / ".joining-77" / "private").mkdir(parents=True)
    home = quick(tmp_path / "invitation", tmp_path / "here", manifest)
    assert {path.name for path in home.folder.iterdir()} == {*module.PARTS, "notes.txt"}
    with pytest.raises(PolicyError, match="holds a site"):
        quick(hub.invite("south"), tmp_path / "here", manifest)


def untouched(folder: Path) -> bool:
    return not folder.exists()


@pytest.mark.parametrize("key", ["fingerprint", "server", "authority"])
def test_somebody_in_between_is_not_told_the_token(key: str, hub: Gateway, manifest: Path, tmp_path: Path) -> None:
    """He shows an authority of his own; or the right one, with a server's certificate that it did not issue."""
    if key == "fingerprint":
        invited = hub.invite(ca="0" * 64)
    else:
        other = Authority.create(tmp_path / "other", "localhost")
        invited = hub.invite(ca=pki.fingerprint(other.pem)) if key == "server" else hub.invite()
        shown = {"server": other.pem, "authority": b"no certificate"}[key]
        hub.answer = lambda path, body: (200, shown) if path == CA_PATH else hub.honest(path, body)
    with pytest.raises(TrustError, match=r"another authority|not to be trusted|no certificate"):
        quick(invited, tmp_path / "north", manifest)
    assert hub.asked == [CA_PATH]
    assert untouched(tmp_path / "north")


def test_a_coordinator_of_another_name_is_not_told_the_token(hub: Gateway, manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(TrustError, match=r"not to be trusted|mismatch"):
        quick(hub.invite(host="127.0.0.1"), tmp_path / "north", manifest)
    assert hub.asked == [CA_PATH]


def reply(hub: Gateway, **changes: Any) -> Any:
    def answered(path: str, body: bytes) -> tuple[int, bytes]:
        status, told = hub.honest(path, body)
        if path == ENROL_PATH:
            found = pb.EnrolReply.FromString(told)
            for name, value in changes.items():
                setattr(found, name, value)
            told = found.SerializeToString()
        return status, told

    return answered


def test_an_answer_that_does_not_fit_is_refused(hub: Gateway, manifest: Path, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", "localhost")
    csr = pki.request(pki.new_tls_key(), "north")
    for number, (changes, reason) in enumerate(
        [
            ({"certificate": hub.hub.authority.issue(csr, "north")}, "for another key"),
            ({"certificate": other.issue(csr, "north")}, "by another authority"),
            ({"certificate": b""}, "no certificate"),
            ({"ca": other.pem}, "another authority than the invitation"),
            ({"coordinator_key": "01" + "00" * 31}, "small order"),
            ({"coordinator_key": ""}, "64 hexadecimal digits"),
        ]
    ):
        hub.answer = reply(hub, **changes)
        with pytest.raises(TrustError, match=reason):
            quick(hub.invite(f"site{number}"), tmp_path / "north", manifest)
        assert untouched(tmp_path / "north")


@pytest.mark.parametrize(
    ("status", "body", "error", "reason"),
    [
        (
            403,
            pb.ErrorReply(problem="this invitation was used already", remedy="ask\nagain"),
            TrustError,
            "used already",
        ),
        (503, pb.ErrorReply(problem="cannot take in sites now"), EngineError, "cannot take in sites now"),
        (404, None, EngineError, "status 404"),
        (200, None, EngineError, "no sentence"),
        (307, None, EngineError, "status 307"),
    ],
)
def test_what_the_coordinator_says_is_passed_on(
    status: int, body: Any, error: type[PolyclinicError], reason: str, hub: Gateway, manifest: Path, tmp_path: Path
) -> None:
    told = b"https://elsewhere.example/\xff" if body is None else body.SerializeToString()
    told = told if status != 307 else b"https://elsewhere.example/"
    hub.answer = lambda path, asked: (status, told) if path == ENROL_PATH else hub.honest(path, asked)
    with pytest.raises(error, match=reason) as caught:
        quick(hub.invite(), tmp_path / "north", manifest)
    assert "\n" not in str(caught.value)
    assert untouched(tmp_path / "north")


def test_a_long_answer_is_not_read_to_its_end(hub: Gateway, manifest: Path, tmp_path: Path) -> None:
    hub.answer = lambda path, body: (200, bytes(2**20))
    with pytest.raises(TrustError, match="more than 16384 bytes"):
        quick(hub.invite(), tmp_path / "north", manifest)


def test_an_answer_that_got_lost_is_asked_for_again_with_the_same_keys(
    hub: Gateway, manifest: Path, tmp_path: Path
) -> None:
    lost = iter((True, True, False))

    def losing(path: str, body: bytes) -> tuple[int, bytes]:
        status, told = hub.honest(path, body)
        if path == ENROL_PATH and next(lost):
            raise ConnectionAbortedError
        return status, told

    hub.answer = losing
    home = quick(hub.invite(), tmp_path / "north", manifest)
    assert len(set(hub.seen)) == 1
    assert len(hub.seen) == 3
    (record,) = hub.hub.registry.sites()
    assert pki.fingerprint(credentials(home).certificate) == record.certificate


def test_a_failed_join_can_be_repeated_with_the_same_invitation(hub: Gateway, manifest: Path, tmp_path: Path) -> None:
    invited = hub.invite()
    hub.answer = lambda path, body: (503, pb.ErrorReply(problem="later").SerializeToString())
    with pytest.raises(EngineError):
        quick(invited, tmp_path / "north", manifest)
    hub.answer = hub.honest
    quick(invited, tmp_path / "north", manifest).demand()
    with pytest.raises(TrustError, match="used already"):
        quick(invited, tmp_path / "again", manifest)
    assert untouched(tmp_path / "again")


def test_nothing_is_asked_for_what_cannot_be(hub: Gateway, manifest: Path, tmp_path: Path) -> None:
    invited = hub.invite()
    with pytest.raises(TrustError, match="has expired"):
        quick(invited, tmp_path / "north", manifest, clock=lambda: time.time() + 601)
    with pytest.raises(DataError, match="no such manifest"):
        quick(invited, tmp_path / "north", tmp_path / "none.csv")
    with pytest.raises(PolicyError, match="proxy"):
        quick(invited, tmp_path / "north", manifest, proxy="socks://x")
    with pytest.raises(TrustError, match="damaged"):
        quick(invited.text()[:-5], tmp_path / "north", manifest)
    assert hub.asked == []
    assert untouched(tmp_path / "north")


def test_nobody_is_there(hub: Gateway, manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"localhost:9: does not answer.*--proxy"):
        quick(hub.invite(fleet_port=9), tmp_path / "north", manifest)
    assert untouched(tmp_path / "north")


@pytest.mark.parametrize("user", ["", "site"])
def test_through_a_proxy(user: str, hub: Gateway, manifest: Path, tmp_path: Path) -> None:
    """The proxy alone knows where the coordinator's name leads to."""
    with ConnectProxy(("site", "secret") if user else None, {"localhost": "127.0.0.1"}) as proxy:
        url = proxy.url("site", "secret") if user else proxy.url()
        home = quick(hub.invite(), tmp_path / "north", manifest, proxy=url)
        assert home.settings.proxy == url
        assert proxy.targets == [f"localhost:{hub.port}"] * 2
    with pytest.raises(EngineError, match="does not answer"):
        quick(hub.invite("south"), tmp_path / "south", manifest, proxy=proxy.url())


def test_a_disk_that_is_full_leaves_nothing(
    hub: Gateway, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = Path.rename

    def full(self: Path, target: Any) -> Path:
        if self.name == "site.toml":
            raise OSError(28, "No space left on device")
        return genuine(self, target)

    monkeypatch.setattr(Path, "rename", full)
    (tmp_path / "here").mkdir()
    with pytest.raises(PolyclinicError, match="No space left"):
        quick(hub.invite(), tmp_path / "here", manifest)
    assert os.listdir(tmp_path / "here") == []  # noqa: PTH208


def test_from_joining_to_a_decision_at_the_real_service(manifest: Path, tmp_path: Path) -> None:
    """Joined over HTTPS, then linked to the real governance service, which believes what the site's keys sign."""
    (tmp_path / "hub").mkdir()
    with served(tmp_path / "hub") as real, gateway(tmp_path / "hub", real) as hub:
        home = quick(hub.invite(governance_port=real.port), tmp_path / "north", manifest)
        body = {"study": STUDY, "version": "0.1.0", "backbone_sha256": WEIGHTS}
        with closing(Book(home.book, home.key())) as book:
            book.append("approve", body | {"limits": {"rounds": 3, "until": None, "hours": None}})
            book.append("refused", {"study": STUDY, "run": "tiny-1", "round": 1, "why": "not today"})
            post(home, book, home.key())
        link = Link(home, time.time)
        with closing(connect(home, tries=1)) as client:
            link.greet(client)
            link.turn(client)
            decision = real.registry.decisions(STUDY)["north"]
            assert (decision.verb, decision.limits["rounds"], decision.sequence) == ("approve", 3, 1)
            assert [refusal["why"] for refusal in real.registry.refusals("tiny-1")] == ["not today"]
            assert real.registry.statuses()["north"][0]["agent"] == "away"
            assert Inbox(home.inbox).told() == Outbox(home.outbox).untold()
            (alarm,) = Inbox(home.inbox).alarms()
            assert "book does not hold together" in alarm.what, "this service's book is not the coordinator's own"
        real.registry.revoke("north")
        with closing(connect(home, tries=1)) as client, pytest.raises(TrustError, match="this site was revoked"):
            link.greet(client)


def test_a_key_is_new_for_every_site(hub: Gateway, manifest: Path, tmp_path: Path) -> None:
    keys = {quick(hub.invite(name), tmp_path / name, manifest).settings.key for name in ("a", "b")}
    assert len(keys) == 2
    assert SigningKey.load(tmp_path / "a" / "private" / "signing.key").public in keys
