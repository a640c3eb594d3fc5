"""What the coordinator answers to a site that it knows: one function a call, from message to message."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import grpc

from polyclinic.core.errors import RunError, TrustError, UpdateError
from polyclinic.core.governance import governance_pb2 as pb
from polyclinic.core.governance.wire import LINES, OUT_LIMIT, RECEIPTS, demand_compatible, from_wire, to_wire
from polyclinic.core.pki import Authority, expires, fingerprint
from polyclinic.core.signing import Signed, kind_of, opened
from polyclinic.server.governance import statements
from polyclinic.server.governance.members import SiteRecord
from polyclinic.server.governance.registry import Registry

Lines = Callable[[str, int, int], Sequence[str]]
"""(run, first, count) → lines of a ledger; the run "" stands for the coordinator's book."""

DAY = 86400.0
EXPIRY_WARNING, CA_WARNING = 30 * DAY, 365 * DAY
SKEW_WARNING = 60.0
"""Seconds."""
ROOM = OUT_LIMIT - 64 * 2**10
"""Bytes of lists in a reply; the rest is for what stands around them."""
RUNS = 100
"""How many runs a site is told of."""


class Refused(Exception):  # noqa: N818 -- it is an answer
    """What a call is answered with instead: a gRPC status and one of our sentences. Never leaves the service."""

    def __init__(self, code: grpc.StatusCode, sentence: str) -> None:
        super().__init__(code, sentence)
        self.code, self.sentence = code, sentence


@contextmanager
def refusing(code: grpc.StatusCode) -> Iterator[None]:
    """Answers with ``code`` if a site's trust or content is at fault; what is malformed is INVALID_ARGUMENT."""
    try:
        yield
    except TrustError as failure:
        raise Refused(code, str(failure)) from failure
    except UpdateError as failure:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(failure)) from failure


@dataclass(frozen=True)
class Desk:
    """Answers calls; who calls was found out before.

    Attributes:
        version: of Polyclinic here.
        lines: reads ledgers.
        clock: seconds since the epoch.
    """

    registry: Registry
    authority: Authority
    version: str
    lines: Lines
    clock: Callable[[], float] = time.time

    def hello(self, site: SiteRecord, request: pb.HelloRequest) -> pb.HelloReply:
        """Versions, clocks, and what will soon need care."""
        with refusing(grpc.StatusCode.FAILED_PRECONDITION):
            demand_compatible(request.version, self.version)
        if request.status:
            self.report(site, pb.ReportRequest(status=request.status))
        now, end, last = self.clock(), site.not_after, expires(self.authority.pem)
        reply = pb.HelloReply(version=self.version, clock=now, certificate_not_after=end, ca_not_after=last)
        if end - now < EXPIRY_WARNING:
            reply.warnings.append(f"the site's certificate expires in {(end - now) / DAY:.0f} days: renew it")
        if last - now < CA_WARNING:
            reply.warnings.append(f"the coordinator's authority expires in {(last - now) / DAY:.0f} days")
        skew = request.clock - now
        if not math.isfinite(skew) or abs(skew) > SKEW_WARNING:
            reply.warnings.append(f"the site's clock is {skew:+.0f} s off the coordinator's: set it")
        return reply

    def renew(self, site: SiteRecord, request: pb.RenewRequest) -> pb.Certificate:
        """Another certificate; the one before is void as soon as this one is used."""
        with refusing(grpc.StatusCode.INVALID_ARGUMENT):
            pem = self.authority.issue(request.csr, site.name)
        self._demand_quota(site)
        with refusing(grpc.StatusCode.FAILED_PRECONDITION):
            self.registry.renewed(site.name, fingerprint(pem), expires(pem))
        return pb.Certificate(certificate=pem, ca=self.authority.pem)

    def studies(self, site: SiteRecord, request: pb.StudiesRequest) -> pb.StudiesReply:
        """What is offered, what no longer is, and which runs there are."""
        offers = fitting(map(to_wire, reversed(self.registry.offers())))  # the newest first, should not all fit
        runs = [pb.Run(name=run.name, study=run.study, state=run.state) for run in self.registry.runs()[-RUNS:]]
        return pb.StudiesReply(offers=offers[::-1], withdrawn=self.registry.retired(), runs=runs[::-1])

    def tell(self, site: SiteRecord, request: pb.Signed) -> pb.Accepted:
        """Takes a signed statement of the site."""
        signed = from_wire(request)
        with refusing(grpc.StatusCode.INVALID_ARGUMENT):
            kind = kind_of(signed)
        takes = {
            "decision": self.registry.decide,
            "refusal": self.registry.refuse,
            "head": self._head,
            "own-head": self.registry.put_head,
        }
        if kind not in takes:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "the statement is of no kind that is known here")
        with refusing(grpc.StatusCode.PERMISSION_DENIED):
            document = opened(signed, kind, site.signing_key)
            if document.get("site") != site.name:
                raise TrustError("the statement is another site's", where=site.name)
        self._demand_quota(site)
        with refusing(grpc.StatusCode.FAILED_PRECONDITION):
            takes[kind](site.name, document, signed)
        return pb.Accepted()

    def report(self, site: SiteRecord, request: pb.ReportRequest) -> pb.Accepted:
        """Takes a status."""
        with refusing(grpc.StatusCode.INVALID_ARGUMENT):
            status = statements.status(request.status)
        self.registry.report(site.name, status)
        return pb.Accepted()

    def receipts(self, site: SiteRecord, request: pb.ReceiptsRequest) -> pb.ReceiptsReply:
        """Receipts of a run's rounds."""
        self._demand_run(request.run)
        found = [to_wire(signed) for signed in self.registry.receipts(request.run, request.after, RECEIPTS + 1)]
        told = fitting(found[:RECEIPTS])
        return pb.ReceiptsReply(receipts=told, more=len(told) < len(found))

    def heads(self, site: SiteRecord, request: pb.HeadsRequest) -> pb.HeadsReply:
        """What all sites saw of the coordinator's ledgers, and the keys to check it with."""
        signers = [pb.Signer(site=s.name, key=s.signing_key) for s in self.registry.sites() if s.revoked is None]
        return pb.HeadsReply(heads=fitting(to_wire(head.signed) for head in self.registry.heads()), signers=signers)

    def ledger(self, site: SiteRecord, request: pb.LinesRequest) -> pb.LinesReply:
        """Lines of a ledger of the coordinator's."""
        if request.run:
            self._demand_run(request.run)
        if not 0 < request.count <= LINES or request.first >= 2**53:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"at most {LINES} lines are told at once, at least one")
        lines, room = [], ROOM
        for line in self.lines(request.run, request.first, request.count):
            room -= len(line.encode()) + 8
            if room < 0:
                break
            lines.append(line)
        return pb.LinesReply(lines=lines)

    def _head(self, site: str, document: dict[str, Any], signed: Signed) -> None:
        statements.head(document)
        run = document["run"]
        if run:
            self._demand_run(run)
        self.registry.put_head(site, document, signed)
        for head in self.registry.heads():  # others' too: what stood here may have been rewritten since they saw it
            line = next(iter(self.lines(run, head.sequence, 1)), None) if head.run == run else None
            if line is not None and json.loads(line).get("digest") != head.digest:
                what = f"the ledger of {run}" if run else "the coordinator's book"
                text = f"{head.site} saw another line {head.sequence} of {what} than stands there now"
                self.registry.alarm(head.site, run, text, head.signed)

    def _demand_run(self, run: str) -> None:
        if self.registry.run(run) is None:
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "there is no run of this name")

    def _demand_quota(self, site: SiteRecord) -> None:
        with refusing(grpc.StatusCode.RESOURCE_EXHAUSTED):
            self.registry.demand_quota(site.name)


def fitting(messages: Iterable[Any]) -> list[Any]:
    """As many messages as a reply has room for."""
    found, room = [], ROOM
    for message in messages:
        room -= message.ByteSize() + 8
        if room < 0:
            break
        found.append(message)
    return found


@dataclass(frozen=True)
class Ledgers:
    """Reads the coordinator's ledgers from its folders: ``Lines`` for the service.

    Attributes:
        book: folder of the coordinator's book.
    """

    registry: Registry
    book: Path

    def __call__(self, run: str, first: int, count: int) -> list[str]:
        """Raises RunError for an unknown run or a ledger that cannot be read; one that has not begun has no lines."""
        known = self.registry.run(run) if run else None
        if run and known is None:
            raise RunError("there is no run of this name", where=run[:80])
        folder = Path(known.folder) if known else self.book
        try:
            with (folder / "ledger.jsonl").open(encoding="utf-8") as source:
                return [line.rstrip("\n") for line in islice(source, first, first + count) if line.endswith("\n")]
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as failure:
            raise RunError(f"cannot be read: {failure}", where=str(folder / "ledger.jsonl")) from failure
