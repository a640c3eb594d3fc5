"""The link carries what it should, notices whatever does not agree, and is ended by nothing."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from polyclinic.client.credentials import credentials
from polyclinic.client.delivery import Delivery
from polyclinic.client.governance import connect
from polyclinic.client.home import Home
from polyclinic.client.link import Link, run
from polyclinic.client.offer import read_signed, signed_text
from polyclinic.client.outbox import Inbox, Outbox
from polyclinic.client.record import Recorder, hold
from polyclinic.core import ledger
from polyclinic.core.book import Book
from polyclinic.core.signing import Signed, SigningKey, sign
from tests.client.coordinator import RUN, STUDY, Hub, serving

DAY = 86400.0
UPDATE, BASE = "9" * 64, "1" * 64


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hub(tmp_path: Path, clock: Clock) -> Iterator[Hub]:
    with serving(Hub(tmp_path / "hub", clock)) as running:
        running.runs = [(RUN, STUDY, "running")]
        yield running


@pytest.fixture
def home(hub: Hub, tmp_path: Path) -> Home:
    return hub.site(tmp_path)


@pytest.fixture
def turn(home: Home, clock: Clock) -> Iterator[Callable[..., Link]]:
    """Takes ``times`` turns, ``seconds`` apart, all with one link."""
    link = Link(home, clock)
    with closing(connect(home, tries=1)) as client:
        link.greet(client)

        def turns(times: int = 1, seconds: float = 0.3) -> Link:
            for _ in range(times):
                clock.now += seconds
                link.turn(client)
            return link

        yield turns


def inbox(home: Home) -> Inbox:
    return Inbox(home.inbox)


def alarms(home: Home) -> list[str]:
    return [alarm.what for alarm in inbox(home).alarms()]


def status(home: Home, **told: Any) -> None:
    blank = dict.fromkeys(("study", "run", "round", "since", "answered", "skew"))
    home.status.write_text(json.dumps({**blank, "agent": "idle", "version": "0.1.0", **told}))


def answer(home: Home, number: int, update: str | None = UPDATE, weight: int = 24) -> None:
    with closing(Book(home.book, home.key())) as book:
        body = {"study": STUDY, "run": RUN, "round": number, "base": BASE, "update": update, "weight": weight}
        book.append("answered", body)


def test_greeting_keeps_what_the_coordinator_says_of_itself(hub: Hub, home: Home, turn: Any, clock: Clock) -> None:
    state = inbox(home).state("hello")
    assert (state["version"], state["warnings"]) == ("0.1.0", [])
    assert inbox(home).state("link")["reached"] is True


@pytest.mark.parametrize(("skew", "words"), [(600.0, "600 s behind"), (-600.0, "600 s ahead of"), (59.0, "")])
def test_clocks_that_differ_are_warned_of_with_how_much(
    hub: Hub, home: Home, clock: Clock, skew: float, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    hub.skew = skew
    link = Link(home, clock)
    with caplog.at_level(logging.WARNING), closing(connect(home, tries=1)) as client:
        link.greet(client)
        link.turn(client)
    assert inbox(home).state("hello")["skew"] == pytest.approx(-skew, abs=0.5)
    assert json.loads(hub.statuses[-1])["skew"] == pytest.approx(-skew, abs=0.5)
    assert (words in caplog.text) if words else (caplog.text == "")


def test_the_agents_status_is_told_when_it_changes_and_every_five_seconds(hub: Hub, home: Home, turn: Any) -> None:
    turn()
    assert json.loads(hub.statuses[-1])["agent"] == "away", "nobody ever said anything"
    status(home, agent="working", study=STUDY, run=RUN, round=2, since=5.0)
    turn(10)
    (_, told) = map(json.loads, hub.statuses)
    assert told == {
        "agent": "working", "study": STUDY, "run": RUN, "round": 2, "since": 5.0, "answered": None,
        "version": "0.1.0", "skew": pytest.approx(0, abs=0.5),
    }  # fmt: skip
    turn(8)
    assert len(hub.statuses) == 3, "five seconds have passed"
    for garbage in ("", "[]", "{", '{"agent": "idle"}', "[" * 100_000, json.dumps({"agent": "x" * 10_000})):
        home.status.write_text(garbage)
        turn()
        assert json.loads(hub.statuses[-1])["agent"] == "away"
        assert len(hub.statuses[-1]) <= 4096


def test_an_agent_that_died_is_away(hub: Hub, home: Home, turn: Any) -> None:
    import os

    handles = hold(home)
    status(home, agent="working")
    turn()
    assert json.loads(hub.statuses[-1])["agent"] == "working"
    for handle in handles:
        os.close(handle)
    turn()
    assert json.loads(hub.statuses[-1])["agent"] == "away"


def test_statements_are_told_in_order_and_once(hub: Hub, home: Home, turn: Any) -> None:
    box, key = Outbox(home.outbox), home.key()
    letters = [sign({"kind": "refusal", "number": number}, key) for number in range(5)]
    for letter in letters[:3]:
        box.put(letter)
    turn(3)
    assert hub.told == letters[:3]
    for letter in letters[3:]:
        box.put(letter)
    turn(3)
    assert hub.told == letters
    assert inbox(home).told() == box.untold()
    box.clear(inbox(home).told())
    turn(1, 31.0)
    assert inbox(home).told() == set()
    home.outbox.unlink()
    box.put(sign({"kind": "refusal", "number": "new"}, key))
    turn(2)
    assert len(hub.told) == 6, "a new outbox starts from the beginning"


def test_a_statement_that_is_declined_does_not_keep_the_others(hub: Hub, home: Home, turn: Any) -> None:
    key = home.key()
    hub.failing["Tell"] = (grpc.StatusCode.FAILED_PRECONDITION, "decision 3 is not newer")
    Outbox(home.outbox).put(sign({"kind": "decision", "study": STUDY, "verb": "approve", "sequence": 3}, key))
    turn()
    (declined,) = inbox(home).state("declined")
    assert declined["why"].endswith("decision 3 is not newer")
    assert (declined["study"], declined["verb"], declined["sequence"]) == (STUDY, "approve", 3)
    del hub.failing["Tell"]
    Outbox(home.outbox).put(sign({"kind": "head"}, key))
    turn()
    assert len(hub.told) == 1


def test_a_statement_that_found_nobody_is_told_later(hub: Hub, home: Home, turn: Any) -> None:
    Outbox(home.outbox).put(sign({"kind": "head"}, home.key()))
    hub.failing["Tell"] = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many")
    turn(30)
    assert hub.calls.count("Tell") == 1, "it does not hammer"
    assert "Studies" in hub.calls, "the rest goes on"
    del hub.failing["Tell"]
    turn(5)
    assert len(hub.told) == 1


def offer(hub: Hub, **others: Any) -> Signed:
    return sign({"kind": "offer", "study": STUDY, "toml": "[study]\nname = 'ä'\n", **others}, hub.key)


def test_offers_are_laid_down_changed_and_taken_away(hub: Hub, home: Home, turn: Any) -> None:
    hub.offers = [offer(hub)]
    turn()
    path = home.studies / f"{STUDY}.json"
    assert read_signed(path) == hub.offers[0]
    assert path.with_suffix(".toml").read_text() == "[study]\nname = 'ä'\n"
    written = path.stat().st_mtime_ns
    turn(1, 6.0)
    assert path.stat().st_mtime_ns == written, "what has not changed is not written again"
    hub.offers = [offer(hub, version="2")]
    turn(1, 6.0)
    assert read_signed(path) == hub.offers[0]
    hub.offers, hub.withdrawn = [], [STUDY, "../../site"]
    turn(1, 6.0)
    assert not path.exists()
    assert path.with_suffix(".toml").exists()
    assert home.config.exists()


def test_offers_by_others_or_with_paths_for_names_are_not_laid_down(
    hub: Hub, home: Home, turn: Any, caplog: pytest.LogCaptureFixture
) -> None:
    good = offer(hub)
    hub.offers = [
        sign({"kind": "offer", "study": STUDY, "toml": ""}, SigningKey.new()),
        Signed(good.document, good.signer, bytes(64)),
        Signed(b"garbage", hub.key.public, b""),
        offer(hub, study="../../../x"),
        offer(hub, toml=7),
        sign({"kind": "receipt", "study": STUDY, "toml": ""}, hub.key),
    ]
    turn(2, 6.0)
    assert list(home.studies.iterdir()) == []
    assert "an offer names no study" in caplog.text


def test_a_coordinator_cannot_fill_the_disk_with_offers(
    hub: Hub, home: Home, turn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyclinic.client.delivery.MOST_STUDIES", 3)
    for start in range(0, 9, 3):
        hub.offers = [offer(hub, study=f"{number:064x}") for number in range(start, start + 3)]
        turn(1, 6.0)
    assert len(list(home.studies.glob("*.json"))) == 3


def test_an_honest_round_raises_no_alarm(hub: Hub, home: Home, turn: Any) -> None:
    for number in (1, 2):
        answer(home, number)
        hub.play(1, {"north": (UPDATE, 24), "south": ("8" * 64, 7)})
        turn(1, 6.0)
    hub.play(5, {"south": ("8" * 64, 7)})
    turn(4, 6.0)
    assert alarms(home) == []
    assert inbox(home).receipts(RUN).keys() == set(range(1, 8))
    assert inbox(home).lines(RUN) == hub.ledgers[RUN]


@pytest.mark.parametrize(
    ("sites", "reason"),
    [
        ({"north": ("7" * 64, 24)}, "counts another update than the one that this site sent"),
        ({"north": (UPDATE, 1000)}, "with another weight than it was sent with"),
        ({"north": (None, 24)}, "counts another update"),
    ],
)
def test_a_receipt_against_our_own_book_is_an_alarm(
    hub: Hub, home: Home, turn: Any, sites: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer(home, 1)
    hub.play(1, sites)
    turn(3, 6.0)
    (alarm,) = alarms(home)
    assert reason in alarm
    assert f"ALARM: {alarm}" in caplog.text


def test_an_update_that_was_never_sent_is_an_alarm(hub: Hub, home: Home, turn: Any) -> None:
    hub.play(1, {"north": (UPDATE, 24)})
    turn(3, 6.0)
    assert alarms(home) == ["the receipt of round 1 of tiny-1 counts an update of this site, which sent none"]


def test_a_receipt_against_the_ledger_is_an_alarm(hub: Hub, home: Home, turn: Any) -> None:
    hub.play(3, {"south": ("8" * 64, 7)})
    for number, change in ((0, {"result": "4" * 64}), (1, {"sites": {}}), (2, {"digest": "5" * 64})):
        document = json.loads(hub.receipts[RUN][number].document) | change
        hub.receipts[RUN][number] = sign(document, hub.key)
    turn(3, 6.0)
    assert alarms(home) == [
        "the receipt of round 1 of tiny-1 and the ledger differ in 'result'",
        "the receipt of round 2 of tiny-1 and the ledger differ in the sites' 'update'",
        "the receipt of round 2 of tiny-1 and the ledger differ in the sites' 'weight'",
        "the receipt of round 3 of tiny-1 names a line that does not stand in the ledger",
    ]


def test_a_receipt_whose_line_is_never_shown_is_an_alarm_and_hides_no_other(hub: Hub, home: Home, turn: Any) -> None:
    hub.play(2, {"north": (UPDATE, 24)})
    hub.receipts[RUN][0] = sign(json.loads(hub.receipts[RUN][0].document) | {"sequence": 2**40}, hub.key)
    turn(3, 31.0)
    assert alarms(home) == []
    turn(20, 31.0)
    assert alarms(home) == [
        "the receipt of round 1 of tiny-1 names a line that the coordinator does not show",
        "the receipt of round 2 of tiny-1 counts an update of this site, which sent none",
    ]


@pytest.mark.parametrize("skew", [float("nan"), float("inf"), -1e300])
def test_a_clock_that_is_none_is_warned_of(hub: Hub, home: Home, clock: Clock, skew: float) -> None:
    hub.skew = skew
    link = Link(home, clock)
    with closing(connect(home, tries=1)) as client:
        link.greet(client)
        link.turn(client)
    assert json.loads(hub.statuses[-1])["skew"] is None


def test_a_receipt_that_the_coordinator_did_not_sign_is_an_alarm(hub: Hub, home: Home, turn: Any) -> None:
    hub.play(1, {})
    hub.receipts[RUN] = [sign(json.loads(hub.receipts[RUN][0].document), SigningKey.new())]
    turn(2, 6.0)
    (alarm,) = alarms(home)
    assert "is not to be trusted: the statement is signed by another key" in alarm
    assert inbox(home).receipts(RUN) == {}


@pytest.mark.parametrize("what", ["rewritten", "dropped", "emptied", "forked", "garbage"])
def test_a_rewritten_history_is_an_alarm(hub: Hub, home: Home, turn: Any, what: str) -> None:
    hub.play(4, {"south": ("8" * 64, 7)})
    turn(3, 6.0)
    assert alarms(home) == []
    before = hub.ledgers.pop(RUN)
    hub.receipts.pop(RUN)
    if what == "rewritten":
        hub.play(5, {"south": ("7" * 64, 7)})
    elif what == "dropped":
        hub.ledgers[RUN] = before[:-1]
    elif what == "forked":
        last = ledger.Entry(**json.loads(before[-2]))
        hub.ledgers[RUN] = [*before, ledger.entry(last, "round", {}, 9.0).line()]
    elif what == "garbage":
        hub.ledgers[RUN] = [*before, "\x00" * 1000]
    turn(3, 6.0)
    (alarm,) = alarms(home)
    words = {"rewritten": "was rewritten: line 5", "dropped": "shorter", "emptied": "shorter"}
    assert words.get(what, "does not hold together: ledger line 6") in alarm
    assert inbox(home).lines(RUN) == before


def test_the_coordinators_book_must_be_signed(hub: Hub, home: Home, turn: Any, tmp_path: Path) -> None:
    book = Book(tmp_path / "book", hub.key)
    for number in range(5):
        book.append("invited", {"number": number})
    book.close()
    hub.ledgers[""] = (tmp_path / "book" / "ledger.jsonl").read_text().splitlines()
    turn(1, 31.0)
    assert inbox(home).lines("") == hub.ledgers[""]
    last = ledger.Entry(**{k: v for k, v in json.loads(hub.ledgers[""][-1]).items() if k != "signature"})
    hub.ledgers[""].append(ledger.entry(last, "revoked", {}, 3.5).line())
    turn(1, 31.0)
    (alarm,) = alarms(home)
    assert "the coordinator's book does not hold together" in alarm
    assert "not signed" in alarm


def seen(hub: Hub, site: str, key: SigningKey, sequence: int, digest: str, run: str = RUN) -> Signed:
    told = {"kind": "head", "site": site, "run": run, "sequence": sequence, "digest": digest, "time": 1.0}
    hub.signers[site] = key.public
    return sign(told, key)


def test_two_histories_are_an_alarm_whoever_has_which(hub: Hub, home: Home, turn: Any) -> None:
    south, west = SigningKey.new(), SigningKey.new()
    hub.play(4, {})
    third = json.loads(hub.ledgers[RUN][2])["digest"]
    hub.heads = [seen(hub, "south", south, 2, third), seen(hub, "west", west, 3, "4" * 64)]
    turn(3, 31.0)
    assert alarms(home) == [
        "west saw another line 4 of the coordinator's ledger of tiny-1 than this site: there are two histories"
    ]
    assert inbox(home).signers() == {"south": south.public, "west": west.public}


def test_lines_that_others_see_and_we_do_not_are_an_alarm_after_a_while(hub: Hub, home: Home, turn: Any) -> None:
    hub.play(1, {})
    hub.heads = [seen(hub, "south", SigningKey.new(), 9, "4" * 64)]
    turn(10, 50.0)
    assert alarms(home) == []
    turn(10, 50.0)
    (alarm,) = alarms(home)
    assert "south saw line 10 of the coordinator's ledger of tiny-1; the coordinator does not show it" in alarm


def test_a_site_whose_key_changes_is_an_alarm_and_what_it_says_is_not_believed(hub: Hub, home: Home, turn: Any) -> None:
    old, new = SigningKey.new(), SigningKey.new()
    hub.play(2, {})
    hub.heads = [seen(hub, "south", old, 1, json.loads(hub.ledgers[RUN][1])["digest"])]
    turn(1, 31.0)
    hub.heads = [seen(hub, "south", new, 2, "4" * 64)]
    turn(2, 31.0)
    (alarm,) = alarms(home)
    assert f"the key of south is {new.public[:16]}…, but it was {old.public[:16]}…" in alarm
    hub.signers["north"] = new.public
    turn(1, 31.0)
    assert any("this site's own key" in alarm for alarm in alarms(home))


def test_forged_and_malformed_heads_are_left_out(hub: Hub, home: Home, turn: Any) -> None:
    south, west = SigningKey.new(), SigningKey.new()
    good = seen(hub, "south", south, 1, "4" * 64)
    hub.signers |= {"west": west.public, "../x": south.public, "none": "no key"}
    hub.heads = [
        Signed(good.document, good.signer, bytes(64)),
        sign(json.loads(good.document), west),
        sign({**json.loads(good.document), "run": "../x"}, south),
        sign({**json.loads(good.document), "sequence": -1}, south),
        sign({**json.loads(good.document), "digest": "x"}, south),
        sign(json.loads(good.document), SigningKey.new()),
    ]
    turn(2, 31.0)
    assert inbox(home).heads() == []
    assert alarms(home) == []


def test_a_certificate_that_ends_soon_is_renewed_with_a_new_key(hub: Hub, tmp_path: Path, clock: Clock) -> None:
    hub.days = 29.0
    home, stopped = hub.site(tmp_path), threading.Event()
    old, stop_at = credentials(home), clock.now + 5

    def sleep(seconds: float) -> None:
        clock.now += seconds

    run(home, lambda: clock.now > stop_at or stopped.is_set(), clock, sleep)
    new = credentials(home)
    assert new.key != old.key
    assert new.until > old.until + 50 * DAY
    assert {old.certificate, new.certificate} == set(hub.certificates)
    assert hub.certificates[-1] == new.certificate
    assert hub.calls.count("Renew") == 1


def test_a_certificate_that_cannot_be_renewed_is_warned_of(
    hub: Hub, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    hub.days = 20.0
    home = hub.site(tmp_path)
    hub.failing["Renew"] = (grpc.StatusCode.FAILED_PRECONDITION, "not now")
    link, old = Link(home, clock), credentials(home)
    with closing(connect(home, tries=1)) as client:
        link.greet(client)
        assert link.turn(client)
    assert "it ends in 20 days and cannot be renewed" in caplog.text
    assert "certificate ends in 20 days" in caplog.text
    assert credentials(home) == old


def test_the_link_outlives_everything(
    hub: Hub, home: Home, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each trouble in turn, then none: it is told of once, waited out with growing pauses, and over when it is over."""
    caplog.set_level(logging.INFO)
    began, pauses = clock.now, []
    genuine = Delivery.studies

    def broken(self: Delivery, client: Any) -> None:
        if clock.now < began + 260:
            raise ZeroDivisionError("inside")
        genuine(self, client)

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock.now += seconds
        past = clock.now - began
        hub.failing.clear()
        if past < 60:
            hub.failing["Hello"] = (grpc.StatusCode.UNAVAILABLE, "gone fishing")
        elif past < 190:
            hub.failing["Hello"] = (grpc.StatusCode.UNAUTHENTICATED, "this site was revoked")

    monkeypatch.setattr(Delivery, "studies", broken)
    hub.failing["Hello"] = (grpc.StatusCode.UNAVAILABLE, "gone fishing")
    run(home, lambda: clock.now > began + 400, clock, sleep)
    assert caplog.text.count("gone fishing") == 1
    assert caplog.text.count("this site was revoked (ask") == 1
    assert "ZeroDivisionError: inside" in caplog.text
    assert "the coordinator is reached" in caplog.text.split("ZeroDivisionError: inside")[-1]
    assert "Studies" in hub.calls
    assert hub.calls.count("Hello") < 40, "it does not hammer"
    assert inbox(home).state("link")["reached"] is True


@pytest.mark.slow
def test_a_coordinator_that_goes_and_comes_back_is_found_again(home: Home, hub: Hub, tmp_path: Path) -> None:
    """With a real restart: the port is closed, then open again."""
    stop = threading.Event()
    thread = threading.Thread(target=run, args=(home, stop.is_set), daemon=True)

    def eventually(holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < end
            time.sleep(0.05)

    other = Hub.__new__(Hub)
    other.__dict__ = dict(hub.__dict__)
    other.statuses, other.calls = [], []
    text = home.config.read_text()
    with serving(other) as first:
        home.config.write_text(text.replace(f"governance_port = {hub.port}", f"governance_port = {first.port}"))
        thread = threading.Thread(target=run, args=(Home(home.folder), stop.is_set), daemon=True)
        thread.start()
        eventually(lambda: len(other.statuses) > 0)
        port = first.port
    other.statuses.clear()
    eventually(lambda: inbox(home).state("link")["reached"] is False)
    with serving(other, port):
        Outbox(home.outbox).put(sign({"kind": "head"}, home.key()))
        eventually(lambda: len(other.told) == 1 and len(other.statuses) > 0)
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


def test_a_full_inbox_disk_does_not_end_the_link(
    hub: Hub, home: Home, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyclinic.core.errors import RunError

    def full(self: Inbox, *parts: Any) -> None:
        raise RunError("cannot be written: database or disk is full")

    for name in ("set_state", "add_lines", "add_receipts", "note_told"):
        monkeypatch.setattr(Inbox, name, full)
    hub.play(1, {})
    began = clock.now

    def sleep(seconds: float) -> None:
        clock.now += seconds

    run(home, lambda: clock.now > began + 60, clock, sleep)
    assert len(hub.statuses) >= 4, "it still reports"


def test_the_agent_states_what_it_saw_and_writes_down_alarms(hub: Hub, home: Home, turn: Any, clock: Clock) -> None:
    """The whole way: receipts come in, the agent signs the head that it saw, the link carries it out."""
    answer(home, 1)
    hub.play(1, {"north": (UPDATE, 24)})
    turn(1, 6.0)
    key = home.key()
    with closing(Book(home.book, key)) as book:
        desk = Recorder(home, book, key, clock)
        desk.settle()
        desk.settle()
        turn(1, 6.0)
        told = [json.loads(signed.document) for signed in hub.told]
        last = json.loads(hub.ledgers[RUN][-1])
        assert [(t["kind"], t.get("run"), t["sequence"]) for t in told] == [("head", RUN, 1), ("own-head", None, 1)]
        assert told[0]["digest"] == last["digest"]
        assert (told[1]["sequence"], told[1]["digest"]) == book.head()
        hub.play(1, {"north": (UPDATE, 24)})
        turn(2, 6.0)
        desk.settle()
        (alarm,) = book.entries(kinds=("alarm",))
        assert "counts an update of this site, which sent none" in alarm.body["what"]
        desk.settle()
        Recorder(home, book, key, clock).settle()
        assert len(book.entries(kinds=("alarm",))) == 1
        assert [entry.body["sequence"] for entry in book.entries(kinds=("head",))] == [1, 2]


def test_lines_that_a_lying_link_put_there_are_not_signed_for(hub: Hub, home: Home, turn: Any, clock: Clock) -> None:
    hub.play(1, {})
    turn(1, 6.0)
    key = home.key()
    with closing(Book(home.book, key)) as book:
        desk = Recorder(home, book, key, clock)
        desk.settle()
        inbox(home).add_lines(RUN, [(2, "4" * 64, ledger.entry(None, "round", {}, 1.0).line())])
        desk.settle()
        assert [entry.body["sequence"] for entry in book.entries(kinds=("head",))] == [1]
        (alarm,) = book.entries(kinds=("alarm",))
        assert "that the link brought do not go on" in alarm.body["what"]


def test_a_file_with_a_statement_is_read_by_everybody(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "x").write_text(signed_text(offer(hub)))
    assert read_signed(tmp_path / "x") == offer(hub)
