"""The coordinator's own certificate authority, and what a site needs of certificates. EC keys only."""

from __future__ import annotations

import hashlib
import ipaddress
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from polyclinic.core import files
from polyclinic.core.errors import TrustError
from polyclinic.core.invitation import demand_host
from polyclinic.core.signing import demand_site, load_private_key, write_secret

CA_DAYS, SERVER_DAYS, SITE_DAYS = 3650, 397, 90
RENEW_DAYS = 30
"""A server's certificate with fewer days left is issued anew."""
LIMIT = 16 * 2**10
"""Bytes of a certificate or a signing request that anybody reads."""
_EARLY = timedelta(hours=1)
"""A certificate holds from this long before it was issued, for clocks that are behind."""
_URI = "polyclinic:site:"
_MALFORMED = (
    *(ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion),
    *(x509.DuplicateExtension, x509.ExtensionNotFound, x509.UnsupportedGeneralNameType),
)
"""What cryptography raises over a certificate or a request that is not as it should be."""
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)

Clock = Callable[[], float]


@dataclass(frozen=True)
class Authority:
    """The coordinator's certificate authority: ``create`` once, ``load`` ever after.

    Attributes:
        folder: holds ca.key, ca.pem, server.key, server.pem.
        certificate: the authority's own.
    """

    folder: Path
    certificate: x509.Certificate
    _key: ec.EllipticCurvePrivateKey
    _clock: Clock

    @staticmethod
    def create(folder: Path, host: str, clock: Clock = time.time) -> Authority:
        """A new authority in ``folder``, and a server certificate for ``host`` (a DNS name or an address).

        Raises:
            TrustError: there is one already, or ``host`` is none.
        """
        if (folder / "ca.pem").exists():
            raise TrustError("holds an authority already", where=str(folder))
        demand_host(host)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = new_tls_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Polyclinic coordinator")])
        draft = _draft(name, name, key.public_key(), clock(), timedelta(days=CA_DAYS), None)
        for extension in (x509.BasicConstraints(ca=True, path_length=0), _usage(signs_certificates=True)):
            draft = draft.add_extension(extension, critical=True)
        certificate = draft.sign(key, SHA384())
        save_tls_key(key, folder / "ca.key")
        files.write(folder / "ca.pem", certificate.public_bytes(Encoding.PEM))
        authority = Authority(folder, certificate, key, clock)
        authority.serve(host)
        return authority

    @staticmethod
    def load(folder: Path, clock: Clock = time.time) -> Authority:
        """The authority in ``folder``.

        Raises:
            TrustError: there is none, its files do not belong together, or the key may be read by others.
        """
        key = load_tls_key(folder / "ca.key")
        try:
            certificate = read_certificate((folder / "ca.pem").read_bytes())
        except OSError as failure:
            where = str(folder / "ca.pem")
            raise TrustError(f"cannot be read: {failure.strerror or failure}", where=where) from failure
        if certificate.public_key() != key.public_key():
            raise TrustError("ca.key and ca.pem do not belong together", where=str(folder))
        return Authority(folder, certificate, key, clock)

    @property
    def pem(self) -> bytes:
        """The authority's certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    def serve(self, host: str) -> bool:
        """Sees to it that server.key and server.pem are good for ``host``; whether new ones had to be made.

        They are, if they are missing, for another host, by another authority, or have fewer than 30 days left.
        """
        if self._serves(demand_host(host)):
            return False
        key = new_tls_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
        alternative = x509.SubjectAlternativeName([_general(host)])
        certificate = self._issue(name, key.public_key(), alternative, ExtendedKeyUsageOID.SERVER_AUTH, SERVER_DAYS)
        save_tls_key(key, self.folder / "server.key")
        files.write(self.folder / "server.pem", certificate)
        return True

    def issue(self, csr: bytes, site: str, days: float = SITE_DAYS) -> bytes:
        """A certificate (PEM) with which ``site``, which made the signing request ``csr``, logs in for ``days``.

        Raises:
            TrustError: the request is malformed, for another name, badly signed, by a weak key, or wants more than
                a name.
        """
        key = demand_request(csr, site)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
        alternative = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(_uri(site))])
        return self._issue(name, key, alternative, ExtendedKeyUsageOID.CLIENT_AUTH, days)

    def demand(self, certificate: bytes) -> str:
        """The site that ``certificate`` (PEM) names, if this authority issued it and it is in force.

        Raises:
            TrustError: issued by another authority, not yet in force, expired, or for no site.
        """
        found = read_certificate(certificate)
        try:
            found.verify_directly_issued_by(self.certificate)
        except (*_MALFORMED, InvalidSignature) as failure:
            raise TrustError("the certificate is by another authority") from failure
        now = datetime.fromtimestamp(self._clock(), UTC)
        if not found.not_valid_before_utc <= now <= found.not_valid_after_utc:
            raise TrustError("the certificate is not in force: expired, or a clock is wrong")
        return site_of(certificate)

    def _issue(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePublicKey,
        alternative: x509.SubjectAlternativeName,
        use: x509.ObjectIdentifier,
        days: float,
    ) -> bytes:
        left = self.certificate.not_valid_after_utc - datetime.fromtimestamp(self._clock(), UTC)
        if left <= timedelta(0):
            raise TrustError("the coordinator's authority has expired", where=str(self.folder))
        life = min(timedelta(days=days), left)
        draft = _draft(name, self.certificate.subject, key, self._clock(), life, self.certificate)
        draft = draft.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        draft = draft.add_extension(_usage(signs_certificates=False), critical=True)
        draft = draft.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        return draft.add_extension(alternative, critical=False).sign(self._key, SHA384()).public_bytes(Encoding.PEM)

    def _serves(self, host: str) -> bool:
        try:
            certificate = read_certificate((self.folder / "server.pem").read_bytes())
            certificate.verify_directly_issued_by(self.certificate)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            same = certificate.public_key() == load_tls_key(self.folder / "server.key").public_key()
        except (OSError, TrustError, InvalidSignature, *_MALFORMED):
            return False
        left = certificate.not_valid_after_utc.timestamp() - self._clock()
        return same and list(names) == [_general(host)] and left >= RENEW_DAYS * 86400


def new_tls_key() -> ec.EllipticCurvePrivateKey:
    """A fresh key on P-384."""
    return ec.generate_private_key(ec.SECP384R1())


def save_tls_key(key: ec.EllipticCurvePrivateKey, path: Path) -> None:
    """Writes ``key`` (PEM) so that its owner alone may read it."""
    write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def load_tls_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Raises TrustError if ``path`` cannot be read, is no EC key, or may be read by others."""
    key = load_private_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TrustError("is no key on an elliptic curve", where=str(path))
    return key


def request(key: ec.EllipticCurvePrivateKey, site: str) -> bytes:
    """A signing request (PEM) for ``site``; the private key stays where it is."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, demand_site(site))])
    return x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, SHA384()).public_bytes(Encoding.PEM)


def demand_request(csr: bytes, site: str) -> ec.EllipticCurvePublicKey:
    """The key of the signing request ``csr`` (PEM), if it asks for nothing but the name ``site``.

    Raises:
        TrustError: it is malformed, for another name, badly signed, by a weak key, or wants more than a name.
    """
    demand_site(site)
    try:
        found = x509.load_pem_x509_csr(csr) if len(csr) <= LIMIT else None
        if found is None:
            raise TrustError("the signing request is too long")
        key, sound, digest = found.public_key(), found.is_signature_valid, found.signature_hash_algorithm
        names, more = [(a.oid, a.value) for a in found.subject], len(found.extensions) + len(found.attributes)
    except _MALFORMED as failure:
        raise TrustError("the signing request is malformed") from failure
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise TrustError("the signing request has a weak key", remedy="use an EC key on P-256, P-384 or P-521")
    if not sound or not isinstance(digest, (SHA256, SHA384, SHA512)):
        raise TrustError("the signing request is not signed by its own key")
    if names != [(NameOID.COMMON_NAME, site)]:
        raise TrustError("the signing request is for another name", remedy=f"its subject must be CN={site} alone")
    if more:
        raise TrustError("the signing request wants more than a name")
    return key


def read_certificate(pem: bytes) -> x509.Certificate:
    """Raises TrustError if ``pem`` is no certificate."""
    try:
        if len(pem) > LIMIT:
            raise TrustError("the certificate is too long")
        return x509.load_pem_x509_certificate(pem)
    except _MALFORMED as failure:
        raise TrustError("this is no certificate") from failure


def fingerprint(pem: bytes) -> str:
    """SHA-256 of the certificate's DER form, in hexadecimal digits."""
    return hashlib.sha256(read_certificate(pem).public_bytes(Encoding.DER)).hexdigest()


def expires(pem: bytes) -> float:
    """Until when the certificate is in force, in seconds since the epoch."""
    return read_certificate(pem).not_valid_after_utc.timestamp()


def site_of(pem: bytes) -> str:
    """The site that a certificate names, twice and both times the same.

    Raises:
        TrustError: it names none; who issued it is not looked at.
    """
    found = read_certificate(pem)
    try:
        names = list(found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        uses = list(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        subject = [(a.oid, a.value) for a in found.subject]
    except _MALFORMED as failure:
        raise TrustError("the certificate is for no site") from failure
    site = demand_site(subject[0][1] if len(subject) == 1 else None)
    named = subject == [(NameOID.COMMON_NAME, site)] and names == [x509.UniformResourceIdentifier(_uri(site))]
    if not named or uses != [ExtendedKeyUsageOID.CLIENT_AUTH]:
        raise TrustError("the certificate is for no site")
    return site


def _uri(site: str) -> str:
    return _URI + urllib.parse.quote(site, safe="")


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _draft(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: float,
    life: timedelta,
    authority: x509.Certificate | None,
) -> x509.CertificateBuilder:
    began = datetime.fromtimestamp(now, UTC)
    draft = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    draft = draft.serial_number(x509.random_serial_number())
    draft = draft.not_valid_before(began - _EARLY).not_valid_after(began + life)
    draft = draft.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    if authority is None:
        return draft
    known = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return draft.add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known), critical=False)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    ca, no = signs_certificates, False  # in order: signature, …, certificates, revocation lists, …
    return x509.KeyUsage(not ca, no, no, no, no, ca, ca, no, no)
