"""Calls over mutual TLS: what comes back, what each refusal becomes, and the way through a proxy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from polyclinic.client.credentials import begin_renewal, credentials, finish_renewal, settle
from polyclinic.client.governance import Client, DeclinedError, connect
from polyclinic.client.home import Home
from polyclinic.core.errors import EngineError, TrustError
from polyclinic.core.pki import Authority, load_tls_key, read_certificate
from polyclinic.core.signing import SigningKey, sign
from tests.client.coordinator import Hub, serving
from tests.faults.http_proxy import ConnectProxy


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serving(Hub(tmp_path / "hub", time.time)) as running:
        yield running


@pytest.fixture
def home(hub: Hub, tmp_path: Path) -> Home:
    return hub.site(tmp_path)


def test_every_call_brings_back_what_was_said(hub: Hub, home: Home) -> None:
    signed = sign({"kind": "refusal"}, SigningKey.new())
    hub.play(2, {})
    hub.offers, hub.withdrawn, hub.heads, hub.signers = [signed], ["b"], [signed], {"south": "k"}
    client = connect(home)
    assert abs(client.hello("0.1.0", time.time()).clock - time.time()) < 5
    client.tell(signed)
    client.report(b"{}")
    assert (hub.told, hub.statuses) == ([signed], [b"{}"])
    assert list(client.studies().withdrawn) == ["b"]
    assert client.receipts("tiny-1", 1) == (hub.receipts["tiny-1"][1:], False)
    assert client.heads() == ([signed], {"south": "k"})
    assert client.lines("tiny-1", 1, 1) == hub.ledgers["tiny-1"][1:2]
    assert next(client.events(4)).sequence == 5
    client.close()
    assert set(hub.certificates) == {credentials(home).certificate}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("UNAUTHENTICATED", TrustError),
        ("PERMISSION_DENIED", DeclinedError),
        ("FAILED_PRECONDITION", DeclinedError),
        ("INVALID_ARGUMENT", DeclinedError),
        ("RESOURCE_EXHAUSTED", EngineError),
        ("UNAVAILABLE", EngineError),
        ("INTERNAL", EngineError),
        ("UNKNOWN", EngineError),
    ],
)
def test_a_refusal_comes_with_the_coordinators_own_sentence(
    hub: Hub, home: Home, code: str, kind: type[Exception]
) -> None:
    hub.failing["Hello"] = (grpc.StatusCode[code], "north: this is why\n")
    client = connect(home, tries=1)
    with pytest.raises(kind, match="north: this is why") as caught:
        client.hello("0.1.0", 0.0)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    client.close()


def test_what_got_no_answer_is_tried_again_with_pauses_up_to_ten_seconds(hub: Hub, home: Home) -> None:
    held, pauses = credentials(home), []
    pair = grpc.ssl_channel_credentials(held.authority, held.key, held.certificate)
    hub.failing["Report"] = (grpc.StatusCode.UNAVAILABLE, "later")
    client = Client(grpc.secure_channel(f"127.0.0.1:{hub.port}", pair), "hub", tries=8, sleep=pauses.append)
    with pytest.raises(EngineError, match="later"):
        client.report(b"{}")
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    hub.failing["Report"] = (grpc.StatusCode.INVALID_ARGUMENT, "never")
    with pytest.raises(DeclinedError):
        client.report(b"{}")
    assert len(pauses) == 7
    client.close()


def test_a_coordinator_that_does_not_answer_is_given_up(home: Home, hub: Hub) -> None:
    hub._enter = lambda name, context: time.sleep(2)  # type: ignore[method-assign]
    client = connect(home, tries=1, deadline=0.3)
    with pytest.raises(EngineError, match="deadline exceeded"):
        client.hello("0.1.0", 0.0)
    client.close()


def test_nobody_is_there(home: Home, hub: Hub) -> None:
    text = home.config.read_text().replace(f"governance_port = {hub.port}", "governance_port = 9")
    home.config.write_text(text)
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9: does not answer"):
        connect(Home(home.folder), tries=1).hello("0.1.0", 0.0)


def test_a_coordinator_by_another_authority_is_not_trusted(home: Home, hub: Hub, tmp_path: Path) -> None:
    """Somebody stands in between with a certificate of his own making."""
    with serving(Hub(tmp_path / "other", time.time)) as other:
        text = home.config.read_text().replace(f"governance_port = {hub.port}", f"governance_port = {other.port}")
        home.config.write_text(text)
        client = connect(Home(home.folder), tries=1)
        with pytest.raises(TrustError, match="a certificate that this site's authority did not issue"):
            client.hello("0.1.0", 0.0)
        assert other.calls == []
        client.close()


def test_an_expired_certificate_is_told_of_before_anything_is_sent(hub: Hub, home: Home) -> None:
    until = credentials(home).until
    connect(home, clock=lambda: until - 1.0).close()
    with pytest.raises(TrustError, match=r"tls\.pem: this site's certificate has expired"):
        connect(home, clock=lambda: until)


@pytest.mark.parametrize("user", ["", "site"])
def test_through_a_proxy_and_only_through_it(hub: Hub, tmp_path: Path, user: str) -> None:
    """The proxy alone knows where the coordinator's name leads to; with a password, if the site was given one."""
    hub.authority.serve("coordinator.example")
    with serving(hub) as running, ConnectProxy(
        ("site", "secret") if user else None, {"coordinator.example": "127.0.0.1"}
    ) as proxy:  # fmt: skip
        home = running.site(tmp_path, "north", proxy=proxy.url("site", "secret") if user else proxy.url())
        home.config.write_text(home.config.read_text().replace('host = "127.0.0.1"', 'host = "coordinator.example"'))
        client = connect(Home(home.folder), tries=1)
        client.hello("0.1.0", 0.0)
        client.report(b"{}")
        client.close()
        assert proxy.targets == [f"coordinator.example:{running.port}"]
        assert hub.statuses == [b"{}"]


def test_a_proxy_that_refuses_is_told_of(hub: Hub, tmp_path: Path) -> None:
    with ConnectProxy(("site", "secret")) as proxy:
        client = connect(hub.site(tmp_path, proxy=proxy.url()), tries=1)
        with pytest.raises(EngineError, match=r"127\.0\.0\.1"):
            client.hello("0.1.0", 0.0)
        assert set(proxy.refusals) == {407}
        client.close()


def test_credentials_must_fit_each_other_and_the_site(hub: Hub, tmp_path: Path) -> None:
    home, south = hub.site(tmp_path), hub.site(tmp_path, "south")
    other = Authority.create(tmp_path / "other", "127.0.0.1")
    sound = credentials(home)
    for name, content, reason in (
        ("tls.pem", credentials(south).certificate, "for another key"),
        ("tls.key", credentials(south).key, "for another key"),
        ("ca.pem", other.pem, "by another authority"),
        ("tls.pem", b"nothing", "no certificate"),
        ("tls.key", b"nothing", "no private key"),
    ):
        before = (home.network / name).read_bytes()
        (home.network / name).write_bytes(content)
        with pytest.raises(TrustError, match=reason):
            credentials(home)
        (home.network / name).write_bytes(before)
    home.config.write_text(home.config.read_text().replace('name = "north"', 'name = "west"'))
    with pytest.raises(TrustError, match="is for 'north', this site is 'west'"):
        credentials(Home(home.folder))
    (home.network / "tls.pem").unlink()
    with pytest.raises(TrustError, match=r"tls\.pem: cannot be read"):
        credentials(Home(home.folder))
    assert sound.until == pytest.approx(time.time() + 90 * 86400, abs=60)


def test_a_renewed_pair_takes_the_place_of_the_old_one_at_any_crash(hub: Hub, home: Home) -> None:
    """Every state between the steps of ``settle`` is brought to the new pair; before them, the old pair holds."""
    old = credentials(home)
    csr = begin_renewal(home)
    assert credentials(home) == old
    new = hub.authority.issue(csr, "north")
    files = {name: home.network / name for name in ("tls.key", "tls.pem", "next.key", "next.pem")}
    key = files["next.key"].read_bytes()
    files["next.pem"].write_bytes(new)
    before = {name: path.read_bytes() for name, path in files.items()}
    for gone in ((), ("next.pem",), ("next.pem", "next.key")):
        for name, content in before.items():
            files[name].write_bytes(content)
            files[name].chmod(0o600)
        if "next.pem" in gone:
            files["next.pem"].replace(files["tls.pem"])
        if "next.key" in gone:
            files["next.key"].replace(files["tls.key"])
        found = credentials(home)
        assert (found.key, found.certificate) == (key, new), gone
        settle(home)
        assert {path.name for path in home.network.iterdir()} == {
            "tls.key",
            "tls.pem",
            "ca.pem",
            "node.key",
            "node.pub",
        }


def test_a_renewal_with_a_foreign_certificate_changes_nothing(hub: Hub, home: Home) -> None:
    old = credentials(home)
    begin_renewal(home)
    for wrong in (old.certificate, b"nothing", hub.authority.pem):
        with pytest.raises(TrustError):
            finish_renewal(home, wrong)
        assert credentials(home) == old
    csr = begin_renewal(home)
    finish_renewal(home, hub.authority.issue(csr, "north"))
    found = credentials(home)
    assert found.key != old.key
    assert read_certificate(found.certificate).public_key() == load_tls_key(home.network / "tls.key").public_key()


def test_the_node_key_is_what_a_supernode_reads(home: Home) -> None:
    import argparse

    from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication as read

    given: dict[str, Any] = {"auth_supernode_private_key": str(home.network / "node.key")}
    private, public = read(argparse.Namespace(**given, auth_supernode_public_key=None)) or (None, None)
    assert private is not None
    assert private.curve.name == "secp384r1"
    text = (home.network / "node.pub").read_bytes()
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    assert load_ssh_public_key(text) == public
