"""Joining: from request to certificate, and every reason why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic.core import pki
from polyclinic.core.governance import governance_pb2 as pb
from polyclinic.core.governance.wire import ENROL_LIMIT, enrol_request
from polyclinic.core.signing import SigningKey
from polyclinic.server.governance.enrol import answer
from tests.core.test_pki import request as any_request
from tests.server.governance.coordinator import COORDINATOR, SETTINGS, Coordinator, coordinator, node_key


@dataclass
class Applicant:
    """A site that wants to join."""

    token: str
    key: SigningKey
    tls_key: ec.EllipticCurvePrivateKey
    node_key: bytes
    name: str = "north"
    version: str = "0.1.7"
    csr: bytes = b""

    def request(self) -> bytes:
        csr = self.csr or pki.request(self.tls_key, self.name)
        return enrol_request(self.token, self.name, csr, self.node_key, self.key, self.version)


@pytest.fixture
def host(tmp_path: Path) -> Coordinator:
    return coordinator(tmp_path)


@pytest.fixture
def applicant(host: Coordinator) -> Applicant:
    return Applicant(host.registry.invite("north", 60.0), SigningKey.new(), pki.new_tls_key(), node_key())


def ask(host: Coordinator, request: bytes) -> tuple[int, str]:
    """Status and problem."""
    status, body = answer(request, host.registry, host.authority, SETTINGS)
    assert len(body) <= ENROL_LIMIT
    return status, "" if status == 200 else pb.ErrorReply.FromString(body).problem


def test_a_site_joins(host: Coordinator, applicant: Applicant) -> None:
    status, body = answer(applicant.request(), host.registry, host.authority, SETTINGS)
    reply = pb.EnrolReply.FromString(body)
    assert status == 200
    assert host.authority.demand(reply.certificate) == "north"
    assert pki.read_certificate(reply.certificate).public_key() == applicant.tls_key.public_key()
    assert (reply.ca, reply.coordinator_key) == (host.authority.pem, COORDINATOR.public)
    assert (reply.governance_port, reply.fleet_port) == (8444, 8443)
    site = host.registry.site("north")
    assert site is not None
    assert (site.signing_key, site.node_key) == (applicant.key.public, applicant.node_key)
    assert (site.certificate, site.pem) == (pki.fingerprint(reply.certificate), reply.certificate)
    assert site.not_after == pki.expires(reply.certificate)


def test_a_site_whose_answer_was_lost_gets_the_same_one_again(host: Coordinator, applicant: Applicant) -> None:
    first = answer(applicant.request(), host.registry, host.authority, SETTINGS)
    assert answer(applicant.request(), host.registry, host.authority, SETTINGS) == first  # a new request, the same keys
    assert len(host.registry.sites()) == 1
    host.registry.revoke("north")
    assert ask(host, applicant.request()) == (403, "this invitation was used already")


def _another(part: str) -> Callable[[Applicant], None]:
    makes: dict[str, Callable[[], Any]] = {
        "key": SigningKey.new,
        "tls_key": pki.new_tls_key,
        "node_key": node_key,
    }
    return lambda applicant: setattr(applicant, part, makes[part]())


@pytest.mark.parametrize("part", ["key", "tls_key", "node_key"])
def test_a_token_is_good_for_one_set_of_keys(host: Coordinator, applicant: Applicant, part: str) -> None:
    assert ask(host, applicant.request())[0] == 200
    _another(part)(applicant)
    assert ask(host, applicant.request()) == (403, "this invitation was used already")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"version": "0.2.0"}, "version 0.2.0 at the site and version 0.1.0 at the coordinator do not go together"),
        ({"version": "1.1.0"}, "do not go together"),
        ({"version": "0.1.0\n<b>"}, "version 0.1.0??b? at the site"),
        ({"version": ""}, "do not go together"),
        ({"token": "x" * 43}, "unknown"),
        ({"token": ""}, "unknown"),
        ({"name": "south"}, "for another site"),
        ({"node_key": b"no key"}, "no public key"),
        ({"csr": b"no request"}, "malformed"),
        ({"csr": pki.request(pki.new_tls_key(), "south")}, "for another name"),
        ({"csr": any_request(rsa.generate_private_key(65537, 2048), ["north"])}, "weak key"),
    ],
)
def test_what_is_refused_does_not_use_up_the_token(
    host: Coordinator, applicant: Applicant, changes: dict[str, Any], problem: str
) -> None:
    good = applicant.request()
    for name, value in changes.items():
        setattr(applicant, name, value)
    status, said = ask(host, applicant.request())
    assert status == 403
    assert problem in said
    assert ask(host, good)[0] == 200


def test_names_that_lead_elsewhere(host: Coordinator, applicant: Applicant) -> None:
    asked = pb.EnrolRequest.FromString(applicant.request())
    for name in ("../north", "north/../../etc", "north\x00", ""):
        asked.site = name
        assert ask(host, asked.SerializeToString()) == (403, "is no name for a site")


def test_possession_of_the_signing_key_is_proved(host: Coordinator, applicant: Applicant) -> None:
    asked = pb.EnrolRequest.FromString(applicant.request())
    stolen = SigningKey.new().public
    for field, value in (("signing_key", stolen), ("proof", b""), ("csr", asked.csr + b"\n"), ("proof", bytes(64))):
        changed = pb.EnrolRequest.FromString(asked.SerializeToString())
        setattr(changed, field, value)
        assert ask(host, changed.SerializeToString())[1] == "the request is not signed by the signing key that it names"
    asked.signing_key = "01" + "00" * 31
    assert "small order" in ask(host, asked.SerializeToString())[1]
    asked.signing_key = "../key"
    assert "64 hexadecimal" in ask(host, asked.SerializeToString())[1]


def test_keys_of_another_site(host: Coordinator, applicant: Applicant) -> None:
    assert ask(host, applicant.request())[0] == 200
    token = host.registry.invite("south", 60.0)
    thief = Applicant(token, applicant.key, pki.new_tls_key(), node_key(), "south")
    assert ask(host, thief.request()) == (403, "another site has the same signing key")
    thief.key, thief.node_key = SigningKey.new(), applicant.node_key
    assert ask(host, thief.request()) == (403, "another site has the same node key")
    thief.node_key = node_key()
    assert ask(host, thief.request())[0] == 200


def test_too_long_and_no_request(host: Coordinator) -> None:
    assert ask(host, bytes(ENROL_LIMIT + 1))[0] == 413
    assert ask(host, b"\x80\x04\x95pickle")[0] == 400
    assert ask(host, b"GET / HTTP/1.1")[0] == 400


def test_our_own_faults_stay_here(host: Coordinator, applicant: Applicant) -> None:
    host.registry.close()
    status, said = ask(host, applicant.request())
    assert (status, said) == (503, "the coordinator cannot take in sites now")


def test_no_mutation_of_a_request_is_accepted(host: Coordinator, applicant: Applicant) -> None:
    asked = pb.EnrolRequest.FromString(applicant.request())
    rest = pb.EnrolRequest(version=asked.version, node_key=asked.node_key).SerializeToString()
    asked.ClearField("version")  # its third number is free, the node's key may carry a comment
    asked.ClearField("node_key")
    good = asked.SerializeToString()

    @settings(max_examples=200, deadline=None)
    @given(st.integers(0, 10**6), st.integers(1, 255))
    def mutated(place: int, flip: int) -> None:
        message = bytearray(good)
        message[place % len(message)] ^= flip
        assert ask(host, bytes(message) + rest)[0] in (400, 403)

    mutated()
    assert host.registry.sites() == []
    assert ask(host, good + rest)[0] == 200
