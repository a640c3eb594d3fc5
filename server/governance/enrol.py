"""A site joins: from the bytes of its request, over HTTPS, to those of the answer."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.protobuf.message import DecodeError

from polyclinic.core.errors import PolyclinicError, TrustError, UpdateError
from polyclinic.core.governance import governance_pb2 as pb
from polyclinic.core.governance.wire import ENROL_LIMIT, demand_compatible, proof_message
from polyclinic.core.pki import Authority, demand_request
from polyclinic.core.signing import check, demand_key, demand_site
from polyclinic.server.governance.members import SiteRecord, node_digest
from polyclinic.server.governance.registry import Registry

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What a site that joins is told.

    Attributes:
        version: of Polyclinic here; a site's must have the same major and minor number.
        coordinator_key: with which the coordinator signs, 64 hexadecimal digits.
    """

    version: str
    coordinator_key: str
    governance_port: int
    fleet_port: int


def enrol(request: bytes, registry: Registry, authority: Authority, settings: Settings) -> bytes:
    """Takes in the site that made ``request`` (EnrolRequest); the answer (EnrolReply).

    The token is used up only if everything else is right and the site is taken in.

    Raises:
        UpdateError: too long, or no request.
        TrustError: another version, a wrong name, key, proof, signing request or token; each says which.
    """
    if len(request) > ENROL_LIMIT:
        raise UpdateError(f"an enrolment request of {len(request)} bytes is longer than {ENROL_LIMIT}")
    asked = pb.EnrolRequest()
    try:
        asked.ParseFromString(request)
    except DecodeError as failure:
        raise UpdateError("this is no enrolment request") from failure
    demand_compatible(asked.version, settings.version)
    site = demand_site(asked.site)
    demand_key(asked.signing_key)
    node_digest(asked.node_key)
    _demand_proof(asked)
    key = demand_request(asked.csr, site).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    record = SiteRecord(site, asked.signing_key, asked.node_key, "", 0.0, b"", registry.clock())
    certificate = registry.admit(asked.token, record, key, lambda: authority.issue(asked.csr, site))
    reply = pb.EnrolReply(certificate=certificate, ca=authority.pem, coordinator_key=settings.coordinator_key)
    reply.governance_port, reply.fleet_port = settings.governance_port, settings.fleet_port
    return bytes(reply.SerializeToString())


def answer(request: bytes, registry: Registry, authority: Authority, settings: Settings) -> tuple[int, bytes]:
    """As ``enrol``, for a web server: HTTP status and body, which is an ErrorReply unless the status is 200.

    400: no request; 403: not to be trusted; 413: too long; 503: the coordinator's own fault, without its details.
    """
    try:
        return 200, enrol(request, registry, authority, settings)
    except UpdateError as failure:
        return 413 if len(request) > ENROL_LIMIT else 400, error_reply(failure)
    except TrustError as failure:
        _log.warning("enrolment refused: %s", failure)
        return 403, error_reply(failure)
    except Exception:  # whatever it is, its words stay here
        _log.exception("enrolment failed")
        return 503, error_reply(PolyclinicError("the coordinator cannot take in sites now", remedy="try again later"))


def error_reply(failure: PolyclinicError) -> bytes:
    """An error of ours as it travels."""
    reply = pb.ErrorReply(problem=failure.problem, where=failure.where, remedy=failure.remedy)
    return bytes(reply.SerializeToString())


def _demand_proof(asked: pb.EnrolRequest) -> None:
    try:
        check(asked.signing_key, proof_message(asked.token, asked.site, asked.csr), asked.proof)
    except TrustError as failure:
        raise TrustError("the request is not signed by the signing key that it names") from failure
