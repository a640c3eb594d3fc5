"""Who may join and who has joined: invitations, sites, revocations."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)

from polyclinic.core.errors import TrustError
from polyclinic.core.pki import expires, fingerprint, read_certificate
from polyclinic.core.signing import demand_key, demand_site
from polyclinic.server.governance.store import Store

_COLUMNS = "name, signing_key, node_key, certificate, not_after, pem, enrolled, revoked"
_ANOTHER = "ask the coordinator for another invitation"


@dataclass(frozen=True)
class SiteRecord:
    """A site that has joined.

    Attributes:
        signing_key: its Ed25519 public key, 64 hexadecimal digits.
        node_key: the public key of its Flower node, as the site gave it.
        certificate: SHA-256 of the certificate with which it logs in.
        not_after: until when that one is in force, in seconds since the epoch.
        pem: the certificate that was issued when it joined.
        enrolled, revoked: when, in seconds since the epoch.
    """

    name: str
    signing_key: str
    node_key: bytes
    certificate: str
    not_after: float
    pem: bytes
    enrolled: float
    revoked: float | None = None


class Members(Store):
    """The part of the registry that knows the sites."""

    def invite(self, site: str, lifetime: float, *, again: bool = False) -> str:
        """A token that lets ``site`` join once within ``lifetime`` seconds; only its hash is kept.

        ``again``: also if it has joined and lost its keys or its certificate's time; what it had is void once it joins.

        Raises:
            TrustError: no name for a site, or one that is taken, was revoked, or differs from another's by case only.
        """
        demand_site(site)
        token, now = secrets.token_urlsafe(32), self.clock()
        with self.change() as db:
            for name, revoked in db.execute("SELECT name, revoked FROM sites").fetchall():
                if name == site and not (again and revoked is None):
                    _demand_new(name, revoked)
                if name != site and name.casefold() == site.casefold():
                    raise TrustError("a site of almost this name has joined", where=name, remedy="choose another name")
            row = (_hash(token), site, now, now + lifetime, int(again))
            db.execute("INSERT INTO invitations VALUES (?, ?, ?, ?, NULL, ?)", row)
            self.note(db, "invited", {"site": site, "expires": now + lifetime} | ({"again": True} if again else {}))
        return token

    def redeem(self, token: str, site: str) -> None:
        """Uses up ``token``, which was made for ``site``; of several at once, one wins.

        Raises:
            TrustError: unknown, for another site, used, expired, or the site has joined or was revoked.
        """
        with self.change() as db:
            self._redeem(db, token, site)

    def enrol(self, record: SiteRecord) -> None:
        """Takes in a site.

        Raises:
            TrustError: its name or one of its keys is taken.
        """
        with self.change() as db:
            self._enrol(db, record)

    def admit(self, token: str, record: SiteRecord, key: bytes, issue: Callable[[], bytes]) -> bytes:
        """Redeems ``token``, has the certificate issued and takes in the site, all or nothing; the certificate (PEM).

        A site that asks again with the same keys, because the answer was lost, gets the same certificate again; ``key``
        is the one (DER) that the certificate is for.

        Raises:
            TrustError: see ``redeem`` and ``enrol``; or what ``issue`` raises.
        """
        with self.change() as db:
            if (given := self._given(db, token, record, key)) is not None:
                return given
            if self._redeem(db, token, record.name):
                self._make_room(db, record.name)
            pem = issue()
            self._enrol(db, replace(record, certificate=fingerprint(pem), not_after=expires(pem), pem=pem))
        return pem

    def renewed(self, site: str, certificate: str, not_after: float) -> None:
        """Lets ``site`` log in with another certificate too; once it has done so, the one before is void."""
        with self.change() as db:
            changed = db.execute(
                "UPDATE sites SET next_certificate = ?, next_not_after = ? WHERE name = ? AND revoked IS NULL",
                (certificate, not_after, site),
            ).rowcount
            if not changed:
                raise TrustError("this site has not joined, or was revoked", where=site)
            self.note(db, "renewed", {"site": site, "certificate": certificate, "until": not_after}, by=site)

    def known(self, site: str, certificate: str) -> SiteRecord:
        """The site, if it may log in with the certificate of this fingerprint.

        Raises:
            TrustError: it has not joined, was revoked, or the certificate is not the one that it was given last.
        """
        found = self.rows(f"SELECT {_COLUMNS}, next_certificate FROM sites WHERE name = ?", site)
        if not found:
            raise TrustError("this site has not joined", where=site)
        record = SiteRecord(*found[0][:-1])
        if record.revoked is not None:
            raise TrustError("this site was revoked", where=site)
        if certificate == record.certificate:
            return record
        if certificate != found[0][-1]:
            raise TrustError("this certificate is not the one that the site was given last", where=site)
        with self.change() as db:  # its first use: from now on it is the only one
            db.execute(
                "UPDATE sites SET certificate = next_certificate, not_after = next_not_after, next_certificate = NULL,"
                " next_not_after = NULL WHERE name = ? AND next_certificate = ?",
                (site, certificate),
            )
        return self.known(site, certificate)

    def revoke(self, site: str) -> None:
        """From now on nothing by ``site`` is accepted, and its invitations are void; for good.

        Raises:
            TrustError: there is nobody of that name.
        """
        now = self.clock()
        with self.change() as db:
            known = db.execute("SELECT revoked FROM sites WHERE name = ?", (site,)).fetchone()
            if known is None:
                void = db.execute("DELETE FROM invitations WHERE site = ? AND used IS NULL", (site,)).rowcount
                if not void:
                    raise TrustError("there is no site of this name", where=demand_site(site))
                self.note(db, "invitation withdrawn", {"site": site})
            elif known[0] is None:
                db.execute("UPDATE sites SET revoked = ? WHERE name = ?", (now, site))
                self.note(db, "revoked", {"site": site})
                self.tell(db, "", "revoked", f"{site} was revoked")

    def sites(self) -> list[SiteRecord]:
        """All that ever joined, by name."""
        return [SiteRecord(*row) for row in self.rows(f"SELECT {_COLUMNS} FROM sites ORDER BY name")]

    def site(self, name: str) -> SiteRecord | None:
        """The site of that name."""
        found = self.rows(f"SELECT {_COLUMNS} FROM sites WHERE name = ?", name)
        return SiteRecord(*found[0]) if found else None

    def invited(self) -> list[tuple[str, float]]:
        """Sites with an invitation that still holds, and until when (seconds since the epoch)."""
        query = "SELECT site, max(expires) FROM invitations WHERE used IS NULL AND expires > ? GROUP BY site"
        return [(name, until) for name, until in self.rows(query, self.clock())]

    def _redeem(self, db: sqlite3.Connection, token: str, site: str) -> bool:
        """Whether the invitation is for a site that has joined before."""
        query = "SELECT site, expires, used, again FROM invitations WHERE digest = ?"
        joined = db.execute("SELECT revoked FROM sites WHERE name = ?", (site,)).fetchone()
        found = db.execute(query, (_hash(token),)).fetchone()
        if found is None:
            raise TrustError("this invitation is unknown or was withdrawn", remedy=_ANOTHER)
        owner, expiry, used, again = found
        if owner != site:
            raise TrustError("this invitation is for another site", where=site, remedy=_ANOTHER)
        if used is not None:
            raise TrustError("this invitation was used already", where=site, remedy=_ANOTHER)
        if self.clock() >= expiry:
            raise TrustError("this invitation has expired", where=site, remedy=_ANOTHER)
        if joined is not None and not (again and joined[0] is None):
            _demand_new(site, joined[0])
        db.execute("UPDATE invitations SET used = ? WHERE digest = ?", (self.clock(), _hash(token)))
        return bool(again)

    def _make_room(self, db: sqlite3.Connection, site: str) -> None:
        """Forgets keys and statements of a site that joins anew: its new book begins at its first line."""
        if db.execute("DELETE FROM sites WHERE name = ?", (site,)).rowcount:
            for table in ("decisions", "statuses", "heads"):
                db.execute(f"DELETE FROM {table} WHERE site = ?", (site,))
            self.note(db, "joins anew", {"site": site})

    def _enrol(self, db: sqlite3.Connection, record: SiteRecord) -> None:
        node = node_digest(record.node_key)
        for name, revoked in db.execute("SELECT name, revoked FROM sites WHERE name = ?", (record.name,)).fetchall():
            _demand_new(name, revoked)
        for column, value, words in (("signing_key", record.signing_key, "signing"), ("node_digest", node, "node")):
            if db.execute(f"SELECT 1 FROM sites WHERE {column} = ?", (value,)).fetchone():
                raise TrustError(f"another site has the same {words} key", where=record.name, remedy="make new keys")
        row = (demand_site(record.name), demand_key(record.signing_key), record.node_key, node, record.certificate)
        db.execute(
            "INSERT INTO sites VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL, ?, NULL)",
            (*row, record.not_after, record.pem, record.enrolled),
        )
        told = {"site": record.name, "signing_key": record.signing_key, "node_key": node}
        self.note(db, "enrolled", told | {"certificate": record.certificate})
        self.tell(db, "", "joined", f"{record.name} has joined")

    def _given(self, db: sqlite3.Connection, token: str, record: SiteRecord, key: bytes) -> bytes | None:
        """The certificate that these very keys got for this very token."""
        query = f"SELECT {_COLUMNS} FROM sites JOIN invitations ON site = name WHERE digest = ? AND used IS NOT NULL"
        row = db.execute(query, (_hash(token),)).fetchone()
        if row is None:
            return None
        known = SiteRecord(*row)
        certified = read_certificate(known.pem).public_key()
        same = key == certified.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        same = same and (record.name, record.signing_key) == (known.name, known.signing_key)
        same = same and node_digest(record.node_key) == node_digest(known.node_key)
        return known.pem if same and known.revoked is None else None


def node_digest(key: bytes) -> str:
    """SHA-256 of a Flower node's public key (DER), in hexadecimal digits, however it is written.

    Raises:
        TrustError: it is no EC key on P-384, in PEM or in OpenSSH's form.
    """
    try:
        if len(key) > 4096:
            raise TrustError("the node's key is too long")
        found = load_ssh_public_key(key) if key.startswith(b"ecdsa-") else load_pem_public_key(key)
    except (ValueError, UnsupportedAlgorithm) as failure:
        raise TrustError("the node's key is no public key") from failure
    if not isinstance(found, ec.EllipticCurvePublicKey) or not isinstance(found.curve, ec.SECP384R1):
        raise TrustError("the node's key is no EC key on P-384")
    return hashlib.sha256(found.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _demand_new(site: str, revoked: float | None) -> None:
    if revoked is not None:
        raise TrustError("a site of this name was revoked", where=site, remedy="choose another name")
    raise TrustError("a site of this name has joined already", where=site)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
