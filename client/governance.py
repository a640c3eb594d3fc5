"""Calls to the coordinator's governance service: mutual TLS, one deadline, and its own sentence when it declines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc

from polyclinic.client.credentials import credentials
from polyclinic.client.home import Home
from polyclinic.core.errors import EngineError, TrustError
from polyclinic.core.governance import governance_pb2 as pb
from polyclinic.core.governance.governance_pb2_grpc import GovernanceStub
from polyclinic.core.governance.wire import IN_LIMIT, OUT_LIMIT, from_wire, to_wire
from polyclinic.core.signing import Signed

DEADLINE = 30.0
"""Seconds of one call."""
PAUSES = (0.5, 10.0)
"""Seconds between two tries, at first and at most."""
_DECLINED = (
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.NOT_FOUND,
)

T = TypeVar("T")


class DeclinedError(TrustError):
    """The coordinator knows who asks, and does not take what was said: saying it again is of no use."""


class Client:
    """One site's connection to the governance service; ``close`` when done.

    Errors of every call:
        TrustError: one of the two sides does not trust the other: revoked, expired, another authority.
        DeclinedError: see there.
        EngineError: it does not answer, or has no time.

    Args:
        tries: how often a call is tried that got no answer.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        where: str,
        tries: int = 3,
        deadline: float = DEADLINE,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._channel, self._where = channel, where
        self._tries, self._deadline, self._sleep = tries, deadline, sleep
        self._stub = GovernanceStub(channel)  # type: ignore[no-untyped-call]

    def hello(self, version: str, clock: float, status: bytes = b"") -> pb.HelloReply:
        """Versions, clocks, and what the coordinator warns of."""
        request = pb.HelloRequest(version=version, clock=clock, status=status)
        return self._call(self._stub.Hello, request, pb.HelloReply)

    def renew(self, csr: bytes) -> bytes:
        """A new certificate (PEM) for the signing request ``csr`` (PEM)."""
        return self._call(self._stub.Renew, pb.RenewRequest(csr=csr), pb.Certificate).certificate

    def studies(self) -> pb.StudiesReply:
        """What is offered, what no longer is, and which runs there are."""
        return self._call(self._stub.Studies, pb.StudiesRequest(), pb.StudiesReply)

    def tell(self, signed: Signed) -> None:
        """States something; the same statement may be told again."""
        self._call(self._stub.Tell, to_wire(signed), pb.Accepted)

    def report(self, status: bytes) -> None:
        """What the agent is doing, as JSON of at most 4 KiB."""
        self._call(self._stub.Report, pb.ReportRequest(status=status), pb.Accepted)

    def receipts(self, run: str, after: int = 0) -> tuple[list[Signed], bool]:
        """(receipts of rounds after ``after``, whether there are more)."""
        reply = self._call(self._stub.Receipts, pb.ReceiptsRequest(run=run, after=after), pb.ReceiptsReply)
        return [from_wire(signed) for signed in reply.receipts], reply.more

    def heads(self) -> tuple[list[Signed], dict[str, str]]:
        """(the latest that sites say of the coordinator's ledgers, the key of each site as the coordinator says)."""
        reply = self._call(self._stub.Heads, pb.HeadsRequest(), pb.HeadsReply)
        return [from_wire(signed) for signed in reply.heads], {signer.site: signer.key for signer in reply.signers}

    def lines(self, run: str, first: int, count: int) -> list[str]:
        """At most ``count`` lines of a ledger of the coordinator's, from sequence ``first`` on."""
        request = pb.LinesRequest(run=run, first=first, count=count)
        return list(self._call(self._stub.Lines, request, pb.LinesReply).lines)

    def events(self, after: int = 0) -> Iterator[pb.Event]:
        """What happens, as it happens, until the coordinator ends the stream."""
        try:
            yield from self._stub.Events(pb.EventsRequest(after=after))
        except grpc.RpcError as failure:
            raise explained(failure, self._where) from failure

    def close(self) -> None:
        """Lets go of the connection."""
        self._channel.close()

    def _call(self, call: Any, request: Any, kind: type[T]) -> T:
        pause = PAUSES[0]
        for attempt in range(1, self._tries + 1):
            try:
                reply: T = call(request, timeout=self._deadline)
                return reply
            except grpc.RpcError as failure:
                problem = explained(failure, self._where)
                if attempt == self._tries or not isinstance(problem, EngineError):
                    raise problem from failure
            self._sleep(pause)
            pause = min(2 * pause, PAUSES[1])
        raise EngineError("was never asked", where=self._where)


def connect(home: Home, tries: int = 3, deadline: float = DEADLINE, clock: Callable[[], float] = time.time) -> Client:
    """A connection with the site's own certificate, through the proxy if site.toml names one; nothing is sent yet.

    Raises:
        TrustError: a key or certificate is missing, does not fit, or has expired.
    """
    held, settings = credentials(home), home.settings
    if held.until <= clock():
        remedy = "see that this machine's clock is right; if it is, ask the coordinator for a new invitation"
        raise TrustError("this site's certificate has expired", where=str(home.network / "tls.pem"), remedy=remedy)
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", IN_LIMIT),
        ("grpc.max_receive_message_length", OUT_LIMIT),
        ("grpc.initial_reconnect_backoff_ms", round(1000 * PAUSES[0])),
        ("grpc.max_reconnect_backoff_ms", round(1000 * PAUSES[1])),
        ("grpc.compression_enabled_algorithms_bitset", 1),  # none: what is packed could unpack to anything
        ("grpc.enable_retries", 0),
    ]
    if settings.proxy:
        options.append(("grpc.http_proxy", settings.proxy))
    where = settings.coordinator.address(settings.coordinator.governance_port)
    pair = grpc.ssl_channel_credentials(held.authority, held.key, held.certificate)
    return Client(grpc.secure_channel(where, pair, options), where, tries, deadline)


def explained(failure: grpc.RpcError, where: str) -> EngineError | TrustError:
    """What went wrong with a call, as one of ours; the coordinator's own sentence if it gave one."""
    code, details = (getattr(failure, name, lambda: None)() for name in ("code", "details"))
    said = "".join(c if c.isprintable() else " " for c in str(details or "no reason given"))[:500]
    if code in _DECLINED:
        return DeclinedError(said, where=where)
    if code == grpc.StatusCode.UNAUTHENTICATED:
        remedy = "ask the coordinator; if this site was revoked, it needs a new invitation under another name"
        return TrustError(said, where=where, remedy=remedy)
    if code == grpc.StatusCode.UNAVAILABLE and "CERTIFICATE_VERIFY_FAILED" in said:
        remedy = "somebody may stand in between; otherwise ask the coordinator whether its authority was renewed"
        return TrustError("shows a certificate that this site's authority did not issue", where=where, remedy=remedy)
    name = getattr(code, "name", "no status").lower().replace("_", " ")
    return EngineError(f"does not answer ({name}): {said}", where=where, remedy="it is tried again")
