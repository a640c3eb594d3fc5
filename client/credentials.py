"""The keys with which a site logs in: made here, sent nowhere, replaced so that a crash leaves a pair that fits."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from polyclinic.client.home import Home
from polyclinic.core import files
from polyclinic.core.errors import TrustError
from polyclinic.core.pki import expires, load_tls_key, new_tls_key, read_certificate, request, save_tls_key, site_of
from polyclinic.core.signing import write_secret

DAY = 86400.0


@dataclass(frozen=True)
class Credentials:
    """What mutual TLS needs, in PEM; ``until``: how long the certificate holds, in seconds since the epoch."""

    authority: bytes
    key: bytes
    certificate: bytes
    until: float


def credentials(home: Home) -> Credentials:
    """The site's, checked to fit each other and the site.

    Raises:
        TrustError: a file is missing, readable by others, or does not belong to the rest.
    """
    settle(home)
    key = load_tls_key(home.network / "tls.key")
    authority, certificate = (_read(home, name) for name in ("ca.pem", "tls.pem"))
    demand_certificate(certificate, authority, key, home.settings.name)
    return Credentials(authority, (home.network / "tls.key").read_bytes(), certificate, expires(certificate))


def demand_certificate(certificate: bytes, authority: bytes, key: ec.EllipticCurvePrivateKey, site: str) -> None:
    """Nothing, if ``certificate`` (PEM) is by ``authority``, for ``site``, and for this very ``key``.

    Raises:
        TrustError: saying which it is not.
    """
    found, issuer = read_certificate(certificate), read_certificate(authority)
    try:
        found.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature) as failure:
        raise TrustError("the certificate is by another authority than the one that this site joined") from failure
    if found.public_key() != key.public_key():
        raise TrustError("the certificate is for another key")
    if (named := site_of(certificate)) != site:
        raise TrustError(f"the certificate is for '{named}', this site is '{site}'")


def begin_renewal(home: Home) -> bytes:
    """Makes a new key beside the one in use; the signing request (PEM) for it."""
    key = new_tls_key()
    with files.explained(home.network):
        (home.network / "next.pem").unlink(missing_ok=True)
    save_tls_key(key, home.network / "next.key")
    return request(key, home.settings.name)


def finish_renewal(home: Home, certificate: bytes) -> None:
    """Puts the new key and its certificate in the place of the old ones.

    Raises:
        TrustError: the certificate does not belong to the key that was made for it, to this site or its authority; the
            old ones stay in use.
    """
    demand_certificate(certificate, _read(home, "ca.pem"), load_tls_key(home.network / "next.key"), home.settings.name)
    files.write(home.network / "next.pem", certificate)  # from here on, a crash is mended forwards: see ``settle``
    settle(home)


def settle(home: Home) -> None:
    """Ends a replacement that a crash cut short: two files cannot be put in place at once."""
    new_key, new_certificate = home.network / "next.key", home.network / "next.pem"
    if not new_key.exists():
        return
    with files.explained(home.network), suppress(FileNotFoundError):  # another process of this site was faster
        key = load_tls_key(new_key).public_key()
        if new_certificate.exists() and read_certificate(new_certificate.read_bytes()).public_key() == key:
            new_certificate.replace(home.network / "tls.pem")
        if read_certificate(_read(home, "tls.pem")).public_key() == key:
            new_key.replace(home.network / "tls.key")
        files.sync_folder(home.network)


def make_node_key(home: Home) -> bytes:
    """Makes the key of the site's Flower node, in the form that a SuperNode reads; its public half, in OpenSSH's."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_secret(home.network / "node.key", key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    comment = re.sub(r"[^A-Za-z0-9._-]", "-", home.settings.name)
    files.write(home.network / "node.pub", public + f" {comment}\n".encode())
    return public


def _read(home: Home, name: str) -> bytes:
    path = home.network / name
    try:
        return path.read_bytes()
    except OSError as failure:
        remedy = "give the folder that 'polyclinic site join' made"
        raise TrustError(f"cannot be read: {failure.strerror or failure}", where=str(path), remedy=remedy) from failure
