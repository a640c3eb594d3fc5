"""What reaches the coordinator's own services: a request to enrol, a status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from polyclinic.core import pki
from polyclinic.core.errors import TrustError
from polyclinic.core.governance import governance_pb2 as pb
from polyclinic.core.governance.wire import enrol_request
from polyclinic.server.governance import statements
from polyclinic.server.governance.enrol import Settings, answer
from polyclinic.server.governance.members import SiteRecord, node_digest
from tests.faults.fuzzing import mutate
from tests.faults.fuzzing.certificates import NOW, REQUEST
from tests.faults.fuzzing.mutate import Rng
from tests.faults.fuzzing.target import OTHER, REFUSED, SAME, Target, demand, refusing
from tests.faults.fuzzing.trust import key

TOKEN = "t" * 43


class Members:
    """Stands for the registry: knows one token, and remembers whom it let in."""

    def __init__(self) -> None:
        self.clock: Callable[[], float] = lambda: NOW
        self.admitted: list[tuple[SiteRecord, bytes]] = []

    def admit(self, token: str, record: SiteRecord, public: bytes, issue: Callable[[], bytes]) -> bytes:
        """See ``polyclinic.server.governance.registry.Registry.admit``."""
        if token != TOKEN:
            raise TrustError("the token is not good")
        self.admitted.append((record, public))
        return b"a certificate"


def enrol_target() -> Target:
    """A request to enrol: nobody but the site that was invited gets in, and with its own keys alone."""
    public = pki.demand_request(REQUEST, "eve").public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    node = pki.demand_request(REQUEST, "eve").public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    settings = Settings(version="0.1.0", coordinator_key="0" * 64, governance_port=1, fleet_port=2)
    authority: Any = type("Authority", (), {"pem": b"an authority"})()
    original = enrol_request(TOKEN, "eve", REQUEST, node, key(), "0.1.0")

    def judge(data: bytes) -> str:
        members: Any = Members()
        status, body = answer(data, members, authority, settings)
        demand(status != 503, "the coordinator itself failed")
        if status != 200:
            told = pb.ErrorReply.FromString(body)
            demand(len(told.problem) < 500 and told.problem.isprintable(), f"a reason that nobody can read: {told}")
            return f"{REFUSED}: {status}"
        ((record, csr_key),) = members.admitted
        demand((record.name, record.signing_key) == ("eve", key().public), f"another was let in: {record}")
        demand(csr_key == public and node_digest(record.node_key) == node_digest(node), "another key was let in")
        return SAME if data == original else OTHER

    return Target("enrolment", 2, original, damaged_enrolment, refusing(judge))


def damaged_enrolment(data: bytes, rng: Rng) -> bytes:
    """Damage anywhere, or to one field with the form kept."""
    if rng.random() < 0.4:
        return mutate.blind(data, rng)
    request = pb.EnrolRequest.FromString(data)
    name = rng.choice([field.name for field in pb.EnrolRequest.DESCRIPTOR.fields])
    value = getattr(request, name)
    changed = mutate.blind(value if isinstance(value, bytes) else value.encode(), rng)
    setattr(request, name, changed if isinstance(value, bytes) else changed.decode("utf-8", "replace"))
    return bytes(request.SerializeToString())


STATUS = (
    b'{"agent":"working","study":"' + b"a" * 64 + b'","run":"run-1","round":3,"since":1.5,'
    b'"answered":{"run":"run-1","round":2,"at":1.25},"version":"0.1.0","skew":-0.5}'
)


def status_target() -> Target:
    """What a site's link reports: whatever is taken holds no text of the site's choosing."""

    def judge(data: bytes) -> str:
        found = statements.status(data)
        texts = [value for value in found.values() if isinstance(value, str)]
        demand(all(text.isprintable() and len(text) <= 128 for text in texts), f"a text came through: {texts}")
        return SAME if data == STATUS else OTHER

    return Target("status", 2, STATUS, mutate.json_text, refusing(judge))
