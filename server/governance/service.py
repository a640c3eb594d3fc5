"""The governance service: gRPC over mutual TLS 1.3. Who calls is found out first, what they say is read after that."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError, Message

from polyclinic.core.errors import EngineError, PolyclinicError, RunError, TrustError
from polyclinic.core.governance import governance_pb2 as pb
from polyclinic.core.governance.wire import IN_LIMIT
from polyclinic.core.pki import Authority, fingerprint
from polyclinic.server.governance import tls
from polyclinic.server.governance.limits import Guard, Limits
from polyclinic.server.governance.members import SiteRecord
from polyclinic.server.governance.registry import Registry

tls.prepare()
import grpc  # noqa: E402 -- it reads its environment when it is imported

from polyclinic.server.governance.calls import Desk, Lines, Refused, refusing  # noqa: E402

NAME = "polyclinic.governance.v1.Governance"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Serving:
    """A service that is up.

    Attributes:
        port: on which it listens.
    """

    port: int
    _server: grpc.Server
    _done: threading.Event

    def stop(self, grace: float = 1.0) -> None:
        """Takes no more calls, and ends those under way after ``grace`` seconds."""
        self._done.set()
        self._server.stop(grace).wait()


def serve(
    address: str,
    authority: Authority,
    registry: Registry,
    *,
    version: str,
    lines: Lines,
    limits: Limits = Limits(),  # noqa: B008 -- frozen
    clock: Callable[[], float] = time.time,
) -> Serving:
    """Serves at ``address`` (HOST:PORT; port 0 chooses one) until it is stopped.

    The process must have ``tls.ENVIRONMENT`` in its environment before grpc is imported.

    Raises:
        EngineError: the port is taken, or TLS 1.2 would be accepted.
    """
    guard, done = Guard(limits), threading.Event()
    service = Service(Desk(registry, authority, version, lines, clock), guard, limits)
    server = grpc.server(
        ThreadPoolExecutor(limits.together, "governance"),
        options=tls.options(limits),
        maximum_concurrent_rpcs=limits.together,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, service.handlers()),))
    try:
        port = server.add_secure_port(address, _credentials(authority))
    except RuntimeError as failure:
        raise EngineError("cannot listen there: the port is taken", where=address) from failure
    server.start()
    serving = Serving(port, server, done)
    try:
        host = address.rpartition(":")[0]
        near = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
        tls.demand_modern(f"{near}:{port}")
    except BaseException:
        serving.stop(0)
        raise
    threading.Thread(target=_sweep, args=(guard, done), name="governance-sweep", daemon=True).start()
    return serving


class Service:
    """Finds out who calls, holds them to their limits, and gives the rest to the desk."""

    def __init__(self, desk: Desk, guard: Guard, limits: Limits) -> None:
        self._desk, self._guard, self._limits = desk, guard, limits

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        """By the name of the call. All take a stream of raw bytes: the caller is known before a message is read."""
        desk = self._desk
        calls: dict[str, tuple[type[Message], Callable[[SiteRecord, Any], Message]]] = {
            "Hello": (pb.HelloRequest, desk.hello),
            "Renew": (pb.RenewRequest, desk.renew),
            "Studies": (pb.StudiesRequest, desk.studies),
            "Tell": (pb.Signed, desk.tell),
            "Report": (pb.ReportRequest, desk.report),
            "Receipts": (pb.ReceiptsRequest, desk.receipts),
            "Heads": (pb.HeadsRequest, desk.heads),
            "Lines": (pb.LinesRequest, desk.ledger),
        }
        handlers = {name: self._call(*parts) for name, parts in calls.items()}
        return handlers | {"Events": grpc.stream_stream_rpc_method_handler(self._events, None, _bytes)}

    def _call(self, kind: type[Message], answer: Callable[[SiteRecord, Any], Message]) -> grpc.RpcMethodHandler:
        def handle(requests: Iterator[bytes], context: grpc.ServicerContext) -> Message:
            try:
                site = self._admit(context, stream=False)
                return answer(site, _parsed(kind, requests))
            except Exception as failure:
                refused = _refusal(failure)
            context.abort(refused.code, refused.sentence)
            raise refused

        return grpc.stream_unary_rpc_method_handler(handle, None, _bytes)

    def _events(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Message]:
        try:
            self._admit(context, stream=True)
            after = _parsed(pb.EventsRequest, requests).after
            end = time.monotonic() + self._limits.stream_seconds
            while context.is_active() and time.monotonic() < end:
                self._caller(context)  # who is revoked hears no more
                for event in self._desk.registry.events(min(after, 2**62), 100):
                    after = event.sequence
                    yield pb.Event(**vars(event))
                time.sleep(self._limits.poll)
            return
        except Exception as failure:
            refused = _refusal(failure)
        context.abort(refused.code, refused.sentence)

    def _admit(self, context: grpc.ServicerContext, *, stream: bool) -> SiteRecord:
        """The caller, if it may call now; its place is given up when the call is over on the wire, not before."""
        site = self._caller(context)
        with refusing(grpc.StatusCode.RESOURCE_EXHAUSTED):
            number = self._guard.enter(site.name, stream=stream, cancel=context.cancel)
        if not context.add_callback(lambda: self._guard.leave(number)):
            self._guard.leave(number)
            raise Refused(grpc.StatusCode.CANCELLED, "the call is over")
        return site

    def _caller(self, context: grpc.ServicerContext) -> SiteRecord:
        with refusing(grpc.StatusCode.UNAUTHENTICATED):
            shown = context.auth_context().get("x509_pem_cert", [])
            if len(shown) != 1:
                raise TrustError("the caller showed no certificate")
            name = self._desk.authority.demand(shown[0])
            return self._desk.registry.known(name, fingerprint(shown[0]))


def _credentials(authority: Authority) -> grpc.ServerCredentials:
    identity = tls.Identity(authority)

    def configuration(pairs: list[tuple[bytes, bytes]]) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(pairs, authority.pem)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        try:
            pairs = identity.pairs()
        except PolyclinicError:
            _log.exception("the server's certificate cannot be read; the one before stays in use")
            return None
        return configuration(pairs) if pairs else None

    return grpc.dynamic_ssl_server_credentials(configuration(identity.pairs() or []), fetch, True)


def _sweep(guard: Guard, done: threading.Event) -> None:
    while not done.wait(1.0):
        guard.sweep()


def _parsed(kind: type[Message], requests: Iterator[bytes]) -> Any:
    try:
        raw = next(requests)
    except (StopIteration, grpc.RpcError) as failure:  # closed without a word, cancelled, or too long for gRPC
        raise Refused(grpc.StatusCode.CANCELLED, "the call ended before its message had come") from failure
    if len(raw) > IN_LIMIT:
        raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, f"a message of {len(raw)} bytes is longer than {IN_LIMIT}")
    message = kind()
    try:
        message.ParseFromString(raw)
    except DecodeError as failure:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "the message is not as agreed") from failure
    return message


def _refusal(failure: Exception) -> Refused:
    """What is said of a failure: our sentence if the caller is at fault; of our own faults nothing but that."""
    if isinstance(failure, Refused):
        _log.info("refused: %s", failure.sentence)
        return failure
    _log.error("a call failed", exc_info=failure)
    if isinstance(failure, (EngineError, RunError)):
        return Refused(grpc.StatusCode.UNAVAILABLE, "the coordinator cannot do that now: try again later")
    return Refused(grpc.StatusCode.INTERNAL, "internal error")


def _bytes(message: Message) -> bytes:
    return bytes(message.SerializeToString())
