"""Invitations and sites: who may join, once, and who may no longer."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from polyclinic.core.errors import TrustError
from polyclinic.core.pki import Authority, new_tls_key, request
from polyclinic.core.signing import SigningKey
from polyclinic.server.governance.members import node_digest
from polyclinic.server.governance.registry import Registry, SiteRecord
from tests.server.governance.coordinator import node_key

NOW = 1_790_000_000.0


class Clock:
    """Time that a test sets."""

    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book() -> list[tuple[str, Any]]:
    return []


@pytest.fixture
def registry(tmp_path: Path, clock: Clock, book: list[tuple[str, Any]]) -> Registry:
    return Registry(tmp_path / "registry.db", clock, lambda kind, body: book.append((kind, body)))


def record(name: str) -> SiteRecord:
    """A site that is about to join."""
    return SiteRecord(
        name, SigningKey.new().public, node_key(), hashlib.sha256(name.encode()).hexdigest(), 9e9, b"", NOW
    )


def test_a_token_is_kept_as_its_hash_alone(registry: Registry, tmp_path: Path, book: list[tuple[str, Any]]) -> None:
    token = registry.invite("north", 60.0)
    assert len(token) == 43
    assert registry.invited() == [("north", NOW + 60.0)]
    registry.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert token.encode() not in kept
    assert hashlib.sha256(token.encode()).hexdigest().encode() in kept
    assert book == [("invited", {"site": "north", "expires": NOW + 60.0})]


def test_each_reason_to_refuse_a_token(registry: Registry, clock: Clock) -> None:
    token, other, third = registry.invite("north", 60.0), registry.invite("north", 60.0), registry.invite("north", 60.0)
    with pytest.raises(TrustError, match="unknown"):
        registry.redeem("x" * 43, "north")
    with pytest.raises(TrustError, match="another site"):
        registry.redeem(token, "south")
    registry.redeem(token, "north")
    with pytest.raises(TrustError, match="used already"):
        registry.redeem(token, "north")
    registry.enrol(record("north"))
    with pytest.raises(TrustError, match="joined already"):
        registry.redeem(other, "north")
    registry.revoke("north")
    with pytest.raises(TrustError, match="was revoked"):
        registry.redeem(other, "north")
    clock.now += 60.0
    with pytest.raises(TrustError, match="expired"):
        registry.redeem(third, "north")


def test_a_failed_attempt_does_not_use_up_the_token(registry: Registry, clock: Clock) -> None:
    token = registry.invite("north", 60.0)
    with pytest.raises(TrustError):
        registry.redeem(token, "south")

    def fails() -> bytes:
        raise TrustError("no certificate today")

    with pytest.raises(TrustError, match="today"):
        registry.admit(token, record("north"), b"", fails)
    assert registry.site("north") is None
    registry.redeem(token, "north")


def test_two_processes_at_once_redeem_a_token_once(registry: Registry, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from polyclinic.core.errors import TrustError\n"
        "from polyclinic.server.governance.registry import Registry\n"
        "registry = Registry(Path(sys.argv[1]), lambda: 1.79e9)\n"
        "print('ready', flush=True)\n"
        "for token in sys.stdin.readline().split():\n"
        "    try: registry.redeem(token, 'north'); print('won')\n"
        "    except TrustError as failure: print(failure.problem)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "registry.db")]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    tokens = [registry.invite("north", 60.0) for _ in range(40)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write(" ".join(tokens) + "\n")
        racer.stdin.flush()
    told = [racer.communicate(timeout=60)[0].splitlines() for racer in racers]
    for one, other in zip(*told, strict=True):
        assert sorted((one, other)) == ["this invitation was used already", "won"]
    assert len(told[0]) == 40


@pytest.mark.parametrize("name", ["../north", "a/b", "", "..", "é", "north\n", "a" * 65])
def test_names_that_are_none(registry: Registry, name: str) -> None:
    for call in (
        lambda: registry.invite(name, 60.0),
        lambda: registry.enrol(record(name)),
        lambda: registry.revoke(name),
    ):
        with pytest.raises(TrustError, match="no name for a site"):
            call()


def test_names_that_are_taken_or_nearly_so(registry: Registry) -> None:
    registry.enrol(record("north"))
    with pytest.raises(TrustError, match="joined already"):
        registry.invite("north", 60.0)
    with pytest.raises(TrustError, match="almost this name"):
        registry.invite("North", 60.0)
    registry.revoke("north")
    with pytest.raises(TrustError, match="was revoked"):
        registry.invite("north", 60.0)
    with pytest.raises(TrustError, match="was revoked"):
        registry.enrol(record("north"))


def test_a_site_that_lost_its_keys_joins_anew_under_its_name(
    registry: Registry, book: list[tuple[str, Any]], tmp_path: Path
) -> None:
    authority = Authority.create(tmp_path / "keys", "localhost")

    def admit(token: str, new: SiteRecord) -> bytes:
        key = new_tls_key()
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return registry.admit(token, new, spki, lambda: authority.issue(request(key, "north"), "north"))

    registry.enrol(record("north"))
    before = registry.site("north")
    assert before is not None
    token = registry.invite("north", 60.0, again=True)
    admit(token, replace(record("north"), signing_key=SigningKey.new().public, node_key=node_key()))
    after = registry.site("north")
    assert after is not None
    assert after.signing_key != before.signing_key
    with pytest.raises(TrustError, match="not the one that the site was given last"):
        registry.known("north", before.certificate)
    assert [kind for kind, _ in book][-2:] == ["joins anew", "enrolled"]
    with pytest.raises(TrustError, match="used already"):
        registry.redeem(token, "north")
    registry.revoke("north")
    with pytest.raises(TrustError, match="was revoked"):  # once revoked, always
        registry.invite("north", 60.0, again=True)


def test_keys_are_one_sites_alone(registry: Registry) -> None:
    north, south = record("north"), record("south")
    registry.enrol(north)
    with pytest.raises(TrustError, match="same signing key"):
        registry.enrol(replace(south, signing_key=north.signing_key))
    with pytest.raises(TrustError, match="same node key"):
        registry.enrol(replace(south, node_key=north.node_key + b" a comment"))
    spelt = load_ssh_public_key(north.node_key).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(TrustError, match="same node key"):  # the same key, written otherwise
        registry.enrol(replace(south, node_key=spelt))
    registry.revoke("north")
    with pytest.raises(TrustError, match="same signing key"):  # a revoked key does not come back under another name
        registry.enrol(replace(south, signing_key=north.signing_key))
    registry.enrol(south)
    assert [site.name for site in registry.sites()] == ["north", "south"]


def test_node_keys_are_on_p384() -> None:
    rsa_key, small = (
        rsa.generate_private_key(65537, 2048).public_key(),
        ec.generate_private_key(ec.SECP256R1()).public_key(),
    )
    for key in (
        rsa_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        small.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
        small.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    ):
        with pytest.raises(TrustError, match="P-384"):
            node_digest(key)
    for key in (b"", b"ecdsa-sha2-nistp384 AAAA", b"\x80\x04"):
        with pytest.raises(TrustError, match="no public key"):
            node_digest(key)
    with pytest.raises(TrustError, match="too long"):
        node_digest(b"a" * 5000)


def test_renewal_keeps_the_old_certificate_until_the_new_one_is_used(registry: Registry) -> None:
    registry.enrol(record("north"))
    old = registry.sites()[0].certificate
    assert registry.known("north", old).not_after == 9e9
    registry.renewed("north", "1" * 64, 9.5e9)
    assert registry.known("north", old).certificate == old  # the answer may have been lost
    registry.renewed("north", "2" * 64, 9.6e9)
    with pytest.raises(TrustError, match="given last"):
        registry.known("north", "1" * 64)
    now = registry.known("north", "2" * 64)
    assert (now.certificate, now.not_after) == ("2" * 64, 9.6e9)
    with pytest.raises(TrustError, match="given last"):
        registry.known("north", old)


def test_who_is_unknown_or_revoked(registry: Registry, clock: Clock, book: list[tuple[str, Any]]) -> None:
    with pytest.raises(TrustError, match="not joined"):
        registry.known("north", "0" * 64)
    with pytest.raises(TrustError, match="no site of this name"):
        registry.revoke("north")
    registry.enrol(record("north"))
    clock.now += 5
    registry.revoke("north")
    registry.revoke("north")  # again changes nothing
    found = registry.site("north")
    assert found is not None
    assert found.revoked == NOW + 5
    with pytest.raises(TrustError, match="revoked"):
        registry.known("north", found.certificate)
    with pytest.raises(TrustError, match="revoked"):
        registry.renewed("north", "1" * 64, 9.5e9)
    assert [kind for kind, _ in book] == ["enrolled", "revoked"]
    assert [event.kind for event in registry.events()] == ["joined", "revoked"]


def test_an_invitation_can_be_taken_back(registry: Registry) -> None:
    token = registry.invite("north", 60.0)
    registry.revoke("north")
    with pytest.raises(TrustError, match="unknown or was withdrawn"):
        registry.redeem(token, "north")
    registry.redeem(registry.invite("north", 60.0), "north")  # nobody had joined under it
