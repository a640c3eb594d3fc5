"""The service in a process of its own: what sites may do, and each class of hostile caller with its own answer."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from polyclinic.core import ledger, pki
from polyclinic.core.governance import governance_pb2 as pb
from polyclinic.core.signing import SigningKey, opened, sign
from tests.server.governance.coordinator import COORDINATOR, STUDY, Coordinator, Site, private, served, wire

Code = grpc.StatusCode
IDLE = {"agent": "idle", "study": None, "run": None, "round": None, "since": 1.0, "answered": None, "version": "0.1.0"}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    with served(tmp_path_factory.mktemp("coordinator"), rate=1000.0, burst=1000, poll=0.05) as host:
        yield host


@pytest.fixture(scope="module")
def north(host: Coordinator) -> Site:
    return host.join("north")


@pytest.fixture
def calls(host: Coordinator, north: Site) -> Iterator[Any]:
    with host.calls(north) as calls:
        yield calls


def refused(call: Callable[..., Any], *request: Any, **options: Any) -> tuple[grpc.StatusCode, str]:
    """Status and sentence with which a call ends."""
    with pytest.raises(grpc.RpcError) as raised:
        call(*request, timeout=20, **options)
    return raised.value.code(), raised.value.details()


def hello() -> pb.HelloRequest:
    return pb.HelloRequest(version="0.1.3", clock=time.time())


def test_hello(host: Coordinator, north: Site, calls: Any) -> None:
    reply = calls.Hello(hello())
    assert reply.version == "0.1.0"
    assert abs(reply.clock - time.time()) < 5
    assert reply.certificate_not_after == pki.expires(north.certificate)
    assert reply.ca_not_after == pki.expires(host.authority.pem)
    assert list(reply.warnings) == []


def test_hello_warns(host: Coordinator) -> None:
    late = host.join("late")
    key = pki.new_tls_key()
    short = host.authority.issue(pki.request(key, "late"), "late", days=12.0)
    host.registry.renewed("late", pki.fingerprint(short), pki.expires(short))
    with host.calls(Site("late", late.key, private(key), short)) as calls:
        warnings = calls.Hello(pb.HelloRequest(version="0.1.0", clock=time.time() - 600)).warnings
        assert len(calls.Hello(pb.HelloRequest(version="0.1.0", clock=float("nan"))).warnings) == 2
    assert warnings[0] == "the site's certificate expires in 12 days: renew it"
    assert warnings[1] == "the site's clock is -600 s off the coordinator's: set it"


def test_another_version_is_named(calls: Any) -> None:
    code, said = refused(calls.Hello, pb.HelloRequest(version="0.2.0"))
    assert code is Code.FAILED_PRECONDITION
    assert "version 0.2.0 at the site and version 0.1.0 at the coordinator" in said


def test_studies_and_runs(host: Coordinator, calls: Any) -> None:
    offer = sign({"kind": "offer", "study": "7" * 64}, COORDINATOR)
    host.registry.publish(offer, "7" * 64)
    host.registry.want("one-1", STUDY, str(host.folder / "runs" / "one-1"))
    reply = calls.Studies(pb.StudiesRequest())
    assert wire(offer) in reply.offers
    assert pb.Run(name="one-1", study=STUDY, state="wanted") in reply.runs
    host.registry.retire("7" * 64)
    reply = calls.Studies(pb.StudiesRequest())
    assert list(reply.withdrawn) == ["7" * 64]
    assert wire(offer) not in reply.offers


def test_a_decision_is_kept_and_stands_in_the_book(host: Coordinator, calls: Any, north: Site) -> None:
    said = north.decides(10)
    calls.Tell(wire(said))
    calls.Tell(wire(said))  # resent, as its answer was lost
    assert host.registry.decisions(STUDY)["north"].signed == said
    lines = [json.loads(line) for line in (host.folder / "book" / "ledger.jsonl").read_text().splitlines()]
    assert [line["body"]["statement"]["document"] for line in lines if line["kind"] == "decision"] == [
        said.document.decode()
    ]


def test_a_replayed_decision(calls: Any, north: Site) -> None:
    calls.Tell(wire(north.decides(20)))
    code, said = refused(calls.Tell, wire(north.decides(19, "withdraw")))
    assert code is Code.FAILED_PRECONDITION
    assert said == "decision 19 is not newer than decision 20, which is known"


def test_a_decision_by_a_wrong_clock(calls: Any, north: Site) -> None:
    code, said = refused(calls.Tell, wire(north.decides(99, time=time.time() - 691_200)))
    assert code is Code.FAILED_PRECONDITION
    assert "691200 s before the coordinator's" in said


def test_a_statement_of_another_site(host: Coordinator, calls: Any, north: Site) -> None:
    south = host.join("south-1")
    assert refused(calls.Tell, wire(south.decides(30)))[0] is Code.PERMISSION_DENIED  # signed by another key
    code, said = refused(calls.Tell, wire(north.decides(30, site="south-1")))  # by its own, in another's name
    assert (code, said) == (Code.PERMISSION_DENIED, "north: the statement is another site's")
    assert "south-1" not in host.registry.decisions(STUDY)


def test_a_statement_with_a_wrong_signature(calls: Any, north: Site) -> None:
    message = wire(north.decides(40))
    message.document = message.document.replace(b"approve", b"approvf")
    assert refused(calls.Tell, message) == (Code.PERMISSION_DENIED, "the signature is wrong")
    message.signer = SigningKey.new().public
    assert "another key" in refused(calls.Tell, message)[1]


def test_statements_of_no_known_kind(calls: Any, north: Site) -> None:
    for kind in ("receipt", "offer", "order", "../decision"):
        code, said = refused(calls.Tell, wire(north.says(kind=kind)))
        assert (code, said) == (Code.INVALID_ARGUMENT, "the statement is of no kind that is known here")
    for document in (b"", b"\x80\x04\x95", b'{"kind": "decision"}', b"[" * 60_000):
        assert refused(calls.Tell, pb.Signed(document=document))[0] is Code.INVALID_ARGUMENT
    code, said = refused(calls.Tell, wire(north.says(kind="decision", more=1)))
    assert (code, said) == (Code.INVALID_ARGUMENT, "decision: has other keys than agreed")


def test_a_refusal(host: Coordinator, calls: Any, north: Site) -> None:
    calls.Tell(wire(north.says(kind="refusal", study=STUDY, run="any-1", round=2, why="not approved here")))
    assert host.registry.refusals("any-1")[0]["why"] == "not approved here"


def test_a_status(host: Coordinator, calls: Any) -> None:
    calls.Report(pb.ReportRequest(status=json.dumps(IDLE | {"skew": 0.1}).encode()))
    assert host.registry.statuses()["north"][0]["agent"] == "idle"
    for status in (b"{}", b"x" * 5000, json.dumps(IDLE | {"skew": 0.1, "patient": "Jane Doe"}).encode()):
        assert refused(calls.Report, pb.ReportRequest(status=status))[0] is Code.INVALID_ARGUMENT
    calls.Hello(pb.HelloRequest(version="0.1.0", clock=1.0, status=json.dumps(IDLE | {"skew": 0.2}).encode()))
    assert host.registry.statuses()["north"][0]["skew"] == 0.2


def test_receipts_come_in_portions(host: Coordinator, calls: Any) -> None:
    host.registry.want("long-1", STUDY, "")
    made = [sign({"kind": "receipt", "run": "long-1", "round": n}, COORDINATOR) for n in range(1, 71)]
    for number, signed in enumerate(made, 1):
        host.registry.add_receipt("long-1", number, signed)
    first = calls.Receipts(pb.ReceiptsRequest(run="long-1", after=0))
    rest = calls.Receipts(pb.ReceiptsRequest(run="long-1", after=64))
    assert (len(first.receipts), first.more, rest.more) == (64, True, False)
    assert [*first.receipts, *rest.receipts] == [wire(signed) for signed in made]
    assert refused(calls.Receipts, pb.ReceiptsRequest(run="../long-1"))[0] is Code.FAILED_PRECONDITION


def a_ledger(host: Coordinator, run: str, texts: list[str]) -> list[ledger.Entry]:
    """A run with a ledger of that many lines."""
    folder = host.folder / "runs" / run
    folder.mkdir(parents=True, exist_ok=True)
    entries: list[ledger.Entry] = []
    for number, text in enumerate(texts):
        entries.append(ledger.entry(entries[-1] if entries else None, "round", {"text": text}, float(number)))
    (folder / "ledger.jsonl").write_text("".join(entry.line() + "\n" for entry in entries))
    if host.registry.run(run) is None:
        host.registry.want(run, STUDY, str(folder))
    return entries


def test_lines(host: Coordinator, calls: Any) -> None:
    entries = a_ledger(host, "lines-1", [str(n) for n in range(1200)])
    with (host.folder / "runs" / "lines-1" / "ledger.jsonl").open("a") as torn:
        torn.write('{"half')
    reply = calls.Lines(pb.LinesRequest(run="lines-1", first=0, count=1000))
    assert list(reply.lines) == [entry.line() for entry in entries[:1000]]
    rest = calls.Lines(pb.LinesRequest(run="lines-1", first=1000, count=1000))
    assert list(ledger.verify([*reply.lines, *rest.lines])) == entries
    book = calls.Lines(pb.LinesRequest(run="", first=0, count=1)).lines
    assert json.loads(book[0])["sequence"] == 0
    for request in (pb.LinesRequest(count=1001), pb.LinesRequest(), pb.LinesRequest(count=1, first=2**63)):
        assert refused(calls.Lines, request)[0] is Code.INVALID_ARGUMENT
    for run in ("../registry.db", "/etc", "nowhere-1"):
        code, said = refused(calls.Lines, pb.LinesRequest(run=run, count=1))
        assert (code, said) == (Code.FAILED_PRECONDITION, "there is no run of this name")


def test_long_lines_come_as_far_as_they_fit(host: Coordinator, calls: Any) -> None:
    a_ledger(host, "wide-1", ["x" * 10**6 for _ in range(6)])
    assert len(calls.Lines(pb.LinesRequest(run="wide-1", first=0, count=6)).lines) == 4
    assert len(calls.Lines(pb.LinesRequest(run="wide-1", first=4, count=6)).lines) == 2


def test_heads_are_exchanged(host: Coordinator, calls: Any, north: Site) -> None:
    entries = a_ledger(host, "heads-1", ["a", "b", "c"])
    seen = north.says(kind="head", run="heads-1", sequence=2, digest=entries[2].digest)
    calls.Tell(wire(seen))
    calls.Tell(wire(north.says(kind="own-head", sequence=4, digest="a" * 64)))
    south = host.join("south-2")
    with host.calls(south) as others:
        reply = others.Heads(pb.HeadsRequest())
    keys = {signer.site: signer.key for signer in reply.signers}
    assert keys["north"] == north.key.public
    assert wire(seen) in reply.heads
    assert opened(seen, "head", keys["north"])["digest"] == entries[2].digest
    assert [event for event in host.registry.events() if event.kind == "alarm" and event.run == "heads-1"] == []
    assert (
        refused(calls.Tell, wire(north.says(kind="head", run="../x", sequence=1, digest="a" * 64)))[0]
        is Code.INVALID_ARGUMENT
    )
    code, said = refused(calls.Tell, wire(north.says(kind="head", run="nowhere", sequence=1, digest="a" * 64)))
    assert (code, said) == (Code.FAILED_PRECONDITION, "there is no run of this name")


def alarms(host: Coordinator, run: str) -> list[str]:
    return [event.text for event in host.registry.events(0, 10_000) if (event.kind, event.run) == ("alarm", run)]


def test_a_head_that_goes_backwards_raises_an_alarm(host: Coordinator, calls: Any, north: Site) -> None:
    entries = a_ledger(host, "back-1", ["a", "b", "c"])
    calls.Tell(wire(north.says(kind="head", run="back-1", sequence=2, digest=entries[2].digest)))
    code, said = refused(calls.Tell, wire(north.says(kind="head", run="back-1", sequence=1, digest=entries[1].digest)))
    assert (code, said) == (
        Code.FAILED_PRECONDITION,
        "north: the head contradicts an earlier one: a ledger was rewritten",
    )
    assert alarms(host, "back-1") == [
        "north says that the ledger of back-1 ends at line 1, and said before that it ends at line 2"
    ]


def test_a_head_that_our_own_ledger_contradicts_raises_an_alarm(host: Coordinator, calls: Any, north: Site) -> None:
    a_ledger(host, "split-1", ["a", "b", "c"])
    calls.Tell(wire(north.says(kind="head", run="split-1", sequence=1, digest="e" * 64)))
    assert alarms(host, "split-1") == ["north saw another line 1 of the ledger of split-1 than stands there now"]


def test_a_ledger_that_was_rewritten_shows_when_anybody_speaks_next(host: Coordinator, calls: Any, north: Site) -> None:
    entries = a_ledger(host, "rewritten-1", ["a", "b", "c"])
    calls.Tell(wire(north.says(kind="head", run="rewritten-1", sequence=1, digest=entries[1].digest)))
    entries = a_ledger(host, "rewritten-1", ["a", "B", "c"])
    assert alarms(host, "rewritten-1") == []
    south = host.join("south-3")
    with host.calls(south) as others:
        others.Tell(wire(south.says(kind="head", run="rewritten-1", sequence=2, digest=entries[2].digest)))
    assert alarms(host, "rewritten-1") == [
        "north saw another line 1 of the ledger of rewritten-1 than stands there now"
    ]


def test_events_follow(host: Coordinator, calls: Any) -> None:
    last = host.registry.last_event()
    stream = calls.Events(pb.EventsRequest(after=last), timeout=20)
    for number in range(3):
        host.registry.event("any-1", "round", f"{number}")
        found = next(stream)
        assert (found.sequence, found.run, found.kind, found.text) == (last + 1 + number, "any-1", "round", f"{number}")
    stream.cancel()


def test_renewal(host: Coordinator) -> None:
    site = host.join("renews")
    key = pki.new_tls_key()
    with host.calls(site) as calls:
        given = calls.Renew(pb.RenewRequest(csr=pki.request(key, "renews")))
        calls.Hello(hello())  # the old one still holds: the answer might have been lost
    assert given.ca == host.authority.pem
    fresh = Site("renews", site.key, private(key), given.certificate)
    with host.calls(fresh) as calls:
        assert calls.Hello(hello()).certificate_not_after == pki.expires(given.certificate)
    with host.calls(site) as calls:  # an older certificate, though issued by us and in force
        code, said = refused(calls.Hello, hello())
    assert (code, said) == (
        Code.UNAUTHENTICATED,
        "renews: this certificate is not the one that the site was given last",
    )


def test_renewal_for_anothers_name(calls: Any) -> None:
    code, said = refused(calls.Renew, pb.RenewRequest(csr=pki.request(pki.new_tls_key(), "south")))
    assert code is Code.INVALID_ARGUMENT
    assert "for another name" in said
    assert refused(calls.Renew, pb.RenewRequest(csr=b"x"))[0] is Code.INVALID_ARGUMENT


def test_a_stolen_certificate_without_its_key(host: Coordinator, north: Site) -> None:
    other = host.join("thief")
    with host.channel(other.tls_key, north.certificate) as channel:  # gRPC itself does not even try
        call = channel.unary_unary("/polyclinic.governance.v1.Governance/Hello")
        assert refused(call, b"")[0] in (Code.UNAVAILABLE, Code.UNKNOWN)


def test_a_certificate_for_a_known_site_that_it_was_not_given(host: Coordinator, north: Site) -> None:
    key = pki.new_tls_key()  # as if the authority had been misused
    forged = host.authority.issue(pki.request(key, "north"), "north")
    with host.calls(Site("north", north.key, private(key), forged)) as calls:
        assert refused(calls.Hello, hello())[0] is Code.UNAUTHENTICATED


def test_a_site_that_never_joined(host: Coordinator) -> None:
    key = pki.new_tls_key()
    with host.calls(
        Site("ghost", SigningKey.new(), private(key), host.authority.issue(pki.request(key, "ghost"), "ghost"))
    ) as calls:
        assert refused(calls.Hello, hello()) == (Code.UNAUTHENTICATED, "ghost: this site has not joined")


def test_the_servers_own_certificate_is_no_sites(host: Coordinator) -> None:
    keys = host.folder / "keys"
    with host.channel((keys / "server.key").read_bytes(), (keys / "server.pem").read_bytes()) as channel:
        call = channel.unary_unary("/polyclinic.governance.v1.Governance/Hello")
        assert refused(call, b"")[0] in (Code.UNAVAILABLE, Code.UNAUTHENTICATED)


def test_a_revoked_site_is_cut_off_at_once(host: Coordinator) -> None:
    site = host.join("revoked-1")
    with host.calls(site) as calls:
        stream = calls.Events(pb.EventsRequest(after=host.registry.last_event()), timeout=20)
        calls.Hello(hello())
        host.registry.revoke("revoked-1")
        assert refused(calls.Hello, hello()) == (Code.UNAUTHENTICATED, "revoked-1: this site was revoked")
        assert refused(calls.Tell, wire(site.decides(1)))[0] is Code.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError) as raised:  # also the stream that was open on the same connection
            list(stream)
    assert raised.value.code() is Code.UNAUTHENTICATED


def test_oversized_calls(calls: Any) -> None:
    for size in (70_000, 5_000_000):
        assert refused(calls.Report, pb.ReportRequest(status=bytes(size)))[0] is Code.RESOURCE_EXHAUSTED
    for metadata in ([("x-large", "x" * 20_000)],):
        assert refused(calls.Studies, pb.StudiesRequest(), metadata=metadata)[0] is Code.RESOURCE_EXHAUSTED
    calls.Hello(hello())


def test_packed_messages_are_not_unpacked(calls: Any) -> None:
    request = pb.ReportRequest(status=b" " * 60_000)
    assert refused(calls.Report, request, compression=grpc.Compression.Gzip)[0] is Code.UNIMPLEMENTED


def test_messages_that_are_none(host: Coordinator, north: Site) -> None:
    with host.channel(north.tls_key, north.certificate) as channel:
        call = channel.unary_unary("/polyclinic.governance.v1.Governance/Tell")
        for junk in (b"\xff" * 50, b"\x80\x04\x95pickle", b"GET / HTTP/1.1\r\n"):
            assert refused(call, junk) == (Code.INVALID_ARGUMENT, "the message is not as agreed")
        assert refused(channel.unary_unary("/polyclinic.governance.v1.Governance/Order"), b"")[0] is Code.UNIMPLEMENTED
        assert refused(channel.unary_unary("/flwr.proto.Control/Run"), b"")[0] is Code.UNIMPLEMENTED


def test_our_own_faults_stay_here(host: Coordinator, calls: Any) -> None:
    host.registry.want("broken-1", STUDY, str(host.folder / "runs" / "broken-1"))
    (host.folder / "runs" / "broken-1" / "ledger.jsonl").mkdir(parents=True)
    code, said = refused(calls.Lines, pb.LinesRequest(run="broken-1", first=0, count=1))
    assert (code, said) == (Code.UNAVAILABLE, "the coordinator cannot do that now: try again later")
    assert "is a directory" in (host.folder / "log").read_text().lower()  # it is told to whoever runs the service


def test_an_unexpected_failure_tells_nothing(host: Coordinator, calls: Any, north: Site) -> None:
    a_ledger(host, "broken-3", [])
    (host.folder / "runs" / "broken-3" / "ledger.jsonl").write_text("no json\n")
    said = north.says(kind="head", run="broken-3", sequence=0, digest="a" * 64)
    assert refused(calls.Tell, wire(said)) == (Code.INTERNAL, "internal error")
    assert "JSONDecodeError" in (host.folder / "log").read_text()


def test_no_private_key_is_in_what_the_service_writes(host: Coordinator, north: Site) -> None:
    secret = b"".join(north.tls_key.splitlines()[1:-1])
    for path in (p for p in host.folder.rglob("*") if p.is_file() and p.parent.name != "keys"):
        assert secret not in path.read_bytes().replace(b"\n", b"")
