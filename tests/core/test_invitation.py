"""Invitations: whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from polyclinic.core.errors import TrustError
from polyclinic.core.invitation import Invitation, is_host, read_invitation

GOOD = Invitation("coordinator.example.org", 8443, 8444, "a1" * 32, "St Mary 2", "t_-" + "x" * 40, 1_800_000_000.5)
TEXT = GOOD.text()


def written(document: Any, *, canonical: bool = True) -> str:
    """An invitation with any content, its check sum right."""
    body = rfc8785.dumps(document) if canonical else json.dumps(document).encode()
    return f"polyclinic-invitation-1:{_base64(body)}.{hashlib.sha256(body).hexdigest()[:16]}"


def _base64(body: bytes) -> str:
    return base64.urlsafe_b64encode(body).decode().rstrip("=")


def test_round_trip_as_text_and_as_file(tmp_path: Path) -> None:
    assert read_invitation(TEXT) == read_invitation(f"  {TEXT}\n") == GOOD
    path = tmp_path / "north.invitation"
    path.write_text(GOOD.file_text())
    assert read_invitation(path) == read_invitation(str(path)) == read_invitation(GOOD.file_text()) == GOOD
    assert max(map(len, GOOD.file_text().splitlines())) <= 76


def test_form_as_documented() -> None:
    prefix, _, rest = TEXT.partition(":")
    body = base64.urlsafe_b64decode(rest.partition(".")[0] + "==")
    assert prefix == "polyclinic-invitation-1"
    assert json.loads(body) == {"v": 1, **asdict(GOOD)}


def test_expiry() -> None:
    GOOD.demand_valid(GOOD.expires - 1)
    with pytest.raises(TrustError, match="expired"):
        GOOD.demand_valid(GOOD.expires)


@given(st.integers(0, len(TEXT) - 1), st.characters(codec="utf-8"))
def test_no_changed_character_passes(place: int, other: str) -> None:
    text = TEXT[:place] + other + TEXT[place + 1 :]
    if "".join(text.split()) == TEXT:  # white space at an end
        return
    with pytest.raises(TrustError):
        read_invitation(text)


@given(st.integers(0, len(TEXT)), st.integers(0, len(TEXT)), st.text(max_size=3))
def test_no_cut_or_insertion_passes(start: int, end: int, between: str) -> None:
    text = TEXT[:start] + between + TEXT[end:]
    if "".join(text.split()) == TEXT:
        return
    with pytest.raises(TrustError):
        read_invitation(text)


@given(st.text())
def test_no_other_text_passes(text: str) -> None:
    with pytest.raises(TrustError):
        read_invitation(text)
    with pytest.raises(TrustError):
        read_invitation("polyclinic-invitation-1:" + text)


def test_too_long(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="too long"):
        read_invitation(TEXT + " " * 4096)
    path = tmp_path / "long"
    path.write_text(TEXT + "\n" * 10**6)
    with pytest.raises(TrustError, match="too long"):
        read_invitation(path)


def test_neither_invitation_nor_file(tmp_path: Path) -> None:
    for source in ("", "nowhere", str(tmp_path), "a\x00b", "x" * 5000, tmp_path / "nowhere"):
        with pytest.raises(TrustError, match="neither an invitation nor a file"):
            read_invitation(source)
    (tmp_path / "other").write_text("Dear colleague")
    with pytest.raises(TrustError, match="no invitation"):
        read_invitation(tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"v": 2}, "another version"),
        ({"v": True}, "another version"),
        ({"host": "a b"}, "neither a DNS name"),
        ({"host": "../etc"}, "neither a DNS name"),
        ({"host": "a.b/c"}, "neither a DNS name"),
        ({"host": ""}, "neither a DNS name"),
        ({"host": 7}, "neither a DNS name"),
        ({"fleet_port": 0}, "fleet_port: is no port"),
        ({"fleet_port": 65536}, "fleet_port: is no port"),
        ({"governance_port": True}, "governance_port: is no port"),
        ({"governance_port": "8443"}, "governance_port: is no port"),
        ({"ca": "a" * 63}, "ca: is not as agreed"),
        ({"ca": "A1" * 32}, "ca: is not as agreed"),
        ({"site": "../north"}, "no name for a site"),
        ({"site": None}, "no name for a site"),
        ({"token": "x" * 42}, "token: is not as agreed"),
        ({"token": "x" * 42 + "/"}, "token: is not as agreed"),
        ({"expires": -1}, "expires: is no time"),
        ({"expires": True}, "expires: is no time"),
        ({"expires": "soon"}, "expires: is no time"),
        ({"more": 1}, "other keys"),
    ],
)
def test_each_flaw_has_its_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(TrustError, match=reason):
        read_invitation(written({"v": 1, **asdict(GOOD), **changes}))


@pytest.mark.parametrize("document", [[], None, "text", 7])
def test_no_object(document: Any) -> None:
    with pytest.raises(TrustError, match="JSON"):
        read_invitation(written(document))


def test_only_one_form_of_the_same_content_passes() -> None:
    with pytest.raises(TrustError, match="canonical"):
        read_invitation(written({"v": 1, **asdict(GOOD)}, canonical=False))


@pytest.mark.parametrize("host", ["10.0.0.1", "2001:db8::1", "localhost", "a-b.example"])
def test_hosts(host: str) -> None:
    assert is_host(host)
    assert read_invitation(replace(GOOD, host=host).text()).host == host


@pytest.mark.parametrize("host", ["1.2.3", "-a.b", "a..b", "fe80::1%eth0", "a" * 64, ".".join(["abc"] * 70), "ä.de"])
def test_no_hosts(host: str) -> None:
    assert not is_host(host)
