"""The authority, against cryptography's own path validation and OpenSSL's handshake."""

from __future__ import annotations

import base64
import hashlib
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA384, HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import DNSName, PolicyBuilder, Store, VerificationError

from polyclinic.core import pki
from polyclinic.core.errors import TrustError
from polyclinic.core.pki import Authority

NOW = 1_790_000_000.0
DAY = 86400.0


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authority(tmp_path: Path, clock: Clock) -> Authority:
    return Authority.create(tmp_path / "keys", "coordinator.example.org", clock)


def request(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | Ed25519PrivateKey,
    names: list[str],
    *,
    extension: x509.ExtensionType | None = None,
    digest: HashAlgorithm | None = SHA384(),  # noqa: B008
) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    draft = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if extension is not None:
        draft = draft.add_extension(extension, critical=False)
    return draft.sign(key, digest).public_bytes(Encoding.PEM)  # type: ignore[arg-type]


def policy(authority: Authority, days: float = 0) -> PolicyBuilder:
    at = datetime.fromtimestamp(NOW + days * DAY, UTC)
    return PolicyBuilder().store(Store([authority.certificate])).time(at)


def test_certificates_pass_independent_path_validation(authority: Authority) -> None:
    site = x509.load_pem_x509_certificate(authority.issue(pki.request(pki.new_tls_key(), "St Mary 2"), "St Mary 2"))
    found = policy(authority).build_client_verifier().verify(site, [])
    assert found.subjects == [x509.UniformResourceIdentifier("polyclinic:site:St%20Mary%202")]
    server = x509.load_pem_x509_certificate((authority.folder / "server.pem").read_bytes())
    policy(authority).build_server_verifier(DNSName("coordinator.example.org")).verify(server, [])
    for wrong in (policy(authority, 90.1), policy(authority, -1)):
        with pytest.raises(VerificationError):
            wrong.build_client_verifier().verify(site, [])
    with pytest.raises(VerificationError):  # a site cannot pass for the coordinator
        policy(authority).build_server_verifier(DNSName("coordinator.example.org")).verify(site, [])
    with pytest.raises(VerificationError):  # nor the coordinator's server for a site
        policy(authority).build_client_verifier().verify(server, [])


def test_lifetimes(authority: Authority) -> None:
    pem = authority.issue(pki.request(pki.new_tls_key(), "north"), "north")
    assert pki.expires(pem) == NOW + 90 * DAY
    assert pki.expires((authority.folder / "server.pem").read_bytes()) == NOW + 397 * DAY
    assert pki.expires(authority.pem) == NOW + 3650 * DAY


def test_nothing_outlives_the_authority(authority: Authority, clock: Clock) -> None:
    clock.now = NOW + 3640 * DAY
    assert pki.expires(authority.issue(pki.request(pki.new_tls_key(), "north"), "north")) == NOW + 3650 * DAY
    clock.now = NOW + 3651 * DAY
    with pytest.raises(TrustError, match="authority has expired"):
        authority.issue(pki.request(pki.new_tls_key(), "north"), "north")


def test_handshake(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "keys", "127.0.0.1")
    key = pki.new_tls_key()
    pki.save_tls_key(key, tmp_path / "tls.key")
    (tmp_path / "tls.pem").write_bytes(authority.issue(pki.request(key, "north"), "north"))
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    server.load_cert_chain(authority.folder / "server.pem", authority.folder / "server.key")
    client.load_cert_chain(tmp_path / "tls.pem", tmp_path / "tls.key")
    server.verify_mode = ssl.CERT_REQUIRED
    for side in (server, client):
        side.load_verify_locations(authority.folder / "ca.pem")
        side.verify_flags |= ssl.VERIFY_X509_STRICT
    shown = _handshake(server, client, "127.0.0.1")
    assert pki.site_of(ssl.DER_cert_to_PEM_cert(shown).encode()) == "north"
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(server, client, "127.0.0.2")


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> bytes:
    """What the server sees of the client's certificate (DER)."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    one, other = client.wrap_bio(down, up, server_hostname=name), server.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (one, other):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    shown = other.getpeercert(binary_form=True)
    assert shown is not None
    return shown


def test_files_are_private_and_load_again(authority: Authority, clock: Clock) -> None:
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((authority.folder / name).stat().st_mode) == 0o600
    again = Authority.load(authority.folder, clock)
    assert again.pem == authority.pem
    pem = again.issue(pki.request(pki.new_tls_key(), "north"), "north")
    assert authority.demand(pem) == "north"


def test_an_authority_is_made_once(authority: Authority, clock: Clock) -> None:
    with pytest.raises(TrustError, match="holds an authority already"):
        Authority.create(authority.folder, "coordinator.example.org", clock)


def test_folders_that_do_not_load(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="cannot be read"):
        Authority.load(tmp_path / "nowhere")
    pki.save_tls_key(pki.new_tls_key(), authority.folder / "ca.key")
    with pytest.raises(TrustError, match="do not belong together"):
        Authority.load(authority.folder)
    (authority.folder / "ca.pem").unlink()
    with pytest.raises(TrustError, match="cannot be read"):
        Authority.load(authority.folder)
    (authority.folder / "ca.key").chmod(0o644)
    with pytest.raises(TrustError, match="read by others"):
        Authority.load(authority.folder)


def test_the_servers_certificate_is_made_anew_when_needed(authority: Authority, clock: Clock) -> None:
    host, pem = "coordinator.example.org", authority.folder / "server.pem"
    assert not authority.serve(host)
    clock.now = NOW + 366 * DAY
    assert not authority.serve(host)
    clock.now = NOW + 368 * DAY  # 29 days are left
    assert authority.serve(host)
    assert pki.expires(pem.read_bytes()) == clock.now + 397 * DAY
    assert authority.serve("10.0.0.7")
    assert not authority.serve("10.0.0.7")
    pki.save_tls_key(pki.new_tls_key(), authority.folder / "server.key")  # as if killed between the two files
    assert authority.serve("10.0.0.7")
    pem.write_bytes(b"")
    assert authority.serve("10.0.0.7")
    with pytest.raises(TrustError, match="neither a DNS name"):
        authority.serve("a b")


def test_a_request_for_anothers_name(authority: Authority) -> None:
    for names in (["south"], [], ["north", "south"], ["North"]):
        with pytest.raises(TrustError, match="for another name"):
            authority.issue(request(pki.new_tls_key(), names), "north")


def test_a_request_with_more_than_a_name(authority: Authority) -> None:
    for extension in (
        x509.BasicConstraints(ca=True, path_length=None),
        x509.SubjectAlternativeName([x509.DNSName("coordinator.example.org")]),
    ):
        with pytest.raises(TrustError, match="more than a name"):
            authority.issue(request(pki.new_tls_key(), ["north"], extension=extension), "north")


def test_weak_keys(authority: Authority) -> None:
    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256K1())):
        with pytest.raises(TrustError, match="weak key"):
            authority.issue(request(key, ["north"]), "north")
    with pytest.raises(TrustError, match="weak key"):
        authority.issue(request(Ed25519PrivateKey.generate(), ["north"], digest=None), "north")


def test_a_request_that_is_not_signed_by_its_key(authority: Authority) -> None:
    der = bytearray(x509.load_pem_x509_csr(pki.request(pki.new_tls_key(), "north")).public_bytes(Encoding.DER))
    der[-1] ^= 1
    pem = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)
    with pytest.raises(TrustError, match="not signed by its own key"):
        authority.issue(pem, "north")


def test_no_request(authority: Authority) -> None:
    good = pki.request(pki.new_tls_key(), "north")
    for pem in (b"", b"no request", good[: len(good) // 2], authority.pem, good.replace(b"M", b"N", 5)):
        with pytest.raises(TrustError, match="malformed"):
            authority.issue(pem, "north")
    with pytest.raises(TrustError, match="too long"):
        authority.issue(good + b"\n" * pki.LIMIT, "north")
    with pytest.raises(TrustError, match="no name for a site"):
        authority.issue(good, "../north")


def test_no_flipped_bit_of_a_request_gets_a_certificate_for_another(authority: Authority) -> None:
    key = pki.new_tls_key()
    der = x509.load_pem_x509_csr(pki.request(key, "north")).public_bytes(Encoding.DER)
    passed = 0
    for place in range(len(der)):
        changed = der[:place] + bytes([der[place] ^ 1]) + der[place + 1 :]
        text = base64.encodebytes(changed).decode()
        pem = f"-----BEGIN CERTIFICATE REQUEST-----\n{text}-----END CERTIFICATE REQUEST-----\n"
        try:
            given = x509.load_pem_x509_certificate(authority.issue(pem.encode(), "north"))
        except TrustError:
            continue
        passed += 1
        assert given.public_key() == key.public_key()
    assert passed <= 1  # the number of bits that the signature does not use is not looked at; it changes nothing


def test_no_flipped_bit_of_a_certificate_lets_anybody_in(authority: Authority) -> None:
    good = x509.load_pem_x509_certificate(authority.issue(pki.request(pki.new_tls_key(), "north"), "north"))
    der = good.public_bytes(Encoding.DER)
    passed = 0
    for place in range(len(der)):
        changed = der[:place] + bytes([der[place] ^ 1]) + der[place + 1 :]
        try:
            authority.demand(ssl.DER_cert_to_PEM_cert(changed).encode())
        except TrustError:
            continue
        passed += 1
        assert x509.load_der_x509_certificate(changed).tbs_certificate_bytes == good.tbs_certificate_bytes
    # a signature whose last bit is 0 may say that it does not use it: the same certificate under another fingerprint,
    # which the registry does not know
    assert passed <= 1


def test_who_is_let_in(authority: Authority, clock: Clock, tmp_path: Path) -> None:
    pem = authority.issue(pki.request(pki.new_tls_key(), "north"), "north")
    assert authority.demand(pem) == "north"
    clock.now = NOW + 91 * DAY
    with pytest.raises(TrustError, match="not in force"):
        authority.demand(pem)
    clock.now = NOW - 2 * 3600
    with pytest.raises(TrustError, match="not in force"):
        authority.demand(pem)
    clock.now = NOW
    other = Authority.create(tmp_path / "other", "localhost", clock)
    with pytest.raises(TrustError, match="by another authority"):
        authority.demand(other.issue(pki.request(pki.new_tls_key(), "north"), "north"))
    with pytest.raises(TrustError, match="for no site"):
        authority.demand((authority.folder / "server.pem").read_bytes())
    with pytest.raises(TrustError, match="no certificate"):
        authority.demand(b"-----BEGIN CERTIFICATE-----\n")


def test_a_clock_that_is_ten_minutes_behind_takes_a_new_certificate(authority: Authority, clock: Clock) -> None:
    pem = authority.issue(pki.request(pki.new_tls_key(), "north"), "north")
    clock.now = NOW - 600
    assert authority.demand(pem) == "north"


def test_names_in_a_certificate_must_agree(authority: Authority) -> None:
    key = pki.new_tls_key()
    good = x509.load_pem_x509_certificate(authority.issue(pki.request(key, "north"), "north"))
    draft = x509.CertificateBuilder().subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "south")]))
    draft = draft.issuer_name(good.issuer).public_key(key.public_key()).serial_number(7)
    draft = draft.not_valid_before(good.not_valid_before_utc).not_valid_after(good.not_valid_after_utc)
    for extension in good.extensions:
        draft = draft.add_extension(extension.value, extension.critical)
    with pytest.raises(TrustError, match="for no site"):
        pki.site_of(draft.sign(key, SHA384()).public_bytes(Encoding.PEM))


def test_fingerprint_is_of_the_der_form(authority: Authority) -> None:
    der = ssl.PEM_cert_to_DER_cert(authority.pem.decode())
    assert pki.fingerprint(authority.pem) == hashlib.sha256(der).hexdigest()


def test_keys_load_again(tmp_path: Path) -> None:
    key = pki.new_tls_key()
    pki.save_tls_key(key, tmp_path / "tls.key")
    assert pki.load_tls_key(tmp_path / "tls.key").public_key() == key.public_key()
    assert timedelta(days=pki.RENEW_DAYS) < timedelta(days=pki.SITE_DAYS)
