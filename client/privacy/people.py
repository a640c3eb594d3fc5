"""Who stands behind a release: patients, known to the ledger only by salted hashes that mean nothing elsewhere."""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from polyclinic.client.data.manifest import Row
from polyclinic.core.errors import PrivacyError

SALT = 32
"""Bytes of the salt."""
_HASH = 16
_MEMBER = struct.Struct(f"<{_HASH}sI")
MOST = 2**32 - 1


@dataclass(frozen=True)
class Cohort:
    """Patients by their hashes, and how many images of each are in it.

    Attributes:
        digest: SHA-256 of ``packed``, in hex; without the salt nobody can tell who is in it.
    """

    digest: str
    members: Mapping[bytes, int]

    @property
    def images(self) -> int:
        """Of all."""
        return sum(self.members.values())

    @property
    def most(self) -> int:
        """Images of the patient who has most."""
        return max(self.members.values(), default=0)

    @property
    def packed(self) -> bytes:
        """Hash and number of images of each, sorted."""
        return b"".join(_MEMBER.pack(*member) for member in sorted(self.members.items()))

    @staticmethod
    def of(identities: Mapping[str, int], salt: bytes) -> Cohort:
        """The cohort of who is named (see ``identities``), with how many images each."""
        found: dict[bytes, int] = {}
        for name, images in identities.items():
            who = hmac.digest(salt, name.encode(), "sha256")[:_HASH]
            found[who] = min(found.get(who, 0) + images, MOST)
        unnamed = Cohort("", found)
        return Cohort(hashlib.sha256(unnamed.packed).hexdigest(), found)

    @staticmethod
    def read(packed: bytes, digest: str, where: str) -> Cohort:
        """Raises PrivacyError if these are not the members that ``digest`` names."""
        if hashlib.sha256(packed).hexdigest() != digest or len(packed) % _MEMBER.size:
            raise PrivacyError("the patients of this cohort were altered", where=where)
        return Cohort(digest, dict(_MEMBER.iter_unpack(packed)))


def identities(rows: Iterable[Row]) -> dict[str, int]:
    """By what each patient is recognised in every manifest of the site, with how many of these images are theirs.

    That is the patient's identifier; for an image without one, where the file truly lies.
    """
    named = Counter(f"patient {row.patient}" for row in rows if row.patient != row.name)
    return named + Counter(f"image {row.path.resolve()}" for row in rows if row.patient == row.name)


def fingerprint(salt: bytes) -> str:
    """What the ledger notes of its salt, so that another one is not taken for it."""
    return hashlib.sha256(b"polyclinic/privacy/salt\x00" + salt).hexdigest()
