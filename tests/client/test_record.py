"""Every statement follows from the book: it is put after any crash, once, and the same to the byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from polyclinic.client.approvals import Limits, decisions
from polyclinic.client.home import Home
from polyclinic.client.offer import Offer
from polyclinic.client.outbox import Inbox, Outbox, letter_id
from polyclinic.client.record import Recorder, held, hold, post, state_decision, statement
from polyclinic.client.settings import Coordinator, DataPlace, Settings
from polyclinic.core.book import Book
from polyclinic.core.errors import EngineError, PolicyError, RunError
from polyclinic.core.signing import SigningKey, opened
from polyclinic.core.study import Study
from polyclinic.server.governance import statements

KEY = SigningKey.new()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    at = Coordinator(host="hub.example", fleet_port=1, governance_port=2, key="c" * 64)
    data = DataPlace(manifest="m")
    made = Home.create(tmp_path / "north", Settings(name="north", key=KEY.public, coordinator=at, data=data))
    KEY.save(made.signing_key)
    return made


@pytest.fixture
def offer(tiny_study: Study) -> Offer:
    return Offer(tiny_study, "0.1.0", "b" * 64, "a" * 64, (), 0, 1.0)


def told(home: Home) -> list[dict[str, Any]]:
    return [json.loads(signed.document) for _, signed in Outbox(home.outbox).waiting()]


def test_a_decision_is_in_the_book_and_on_its_way(home: Home, offer: Offer) -> None:
    decided = state_decision(home, "approve", offer, Limits(rounds=2), lambda: 7.5)
    assert decisions(home) == {offer.study.digest: decided}
    ((_, signed),) = Outbox(home.outbox).waiting()
    found = opened(signed, "decision", KEY.public)
    statements.decision(found)  # the coordinator takes it
    assert found == decided.document()
    taken_back = state_decision(home, "withdraw", offer, clock=lambda: 8.5)
    assert [document["sequence"] for document in told(home)] == [decided.sequence, taken_back.sequence]
    with pytest.raises(PolicyError, match="withdrawn already"):
        state_decision(home, "withdraw", offer)


def test_every_statement_is_one_that_the_coordinator_takes(home: Home) -> None:
    with closing(Book(home.book, KEY, lambda: 7.25)) as book:
        refused = book.append("refused", {"study": "a" * 64, "run": "r", "round": 1, "why": "no"})
        head = book.append("head", {"run": "", "sequence": 3, "digest": "d" * 64})
    statements.refusal(statement(refused, "north"))
    statements.head(statement(head, "north"))
    with pytest.raises(KeyError):
        statement(book_entry("answered"), "north")


def book_entry(kind: str) -> Any:
    from polyclinic.core import ledger

    return ledger.entry(None, kind, {}, 1.0)


def test_what_a_crash_kept_from_the_outbox_is_put_later_and_once(home: Home, offer: Offer) -> None:
    with closing(Book(home.book, KEY)) as book:
        for number in range(3):
            book.append("refused", {"study": "a" * 64, "run": "r", "round": number, "why": "no"})
            book.append("answered", {"study": "a" * 64})
        assert told(home) == []
        post(home, book, KEY)
        assert [document["round"] for document in told(home)] == [0, 1, 2]
        post(home, book, KEY)
        box = Outbox(home.outbox)
        box.clear(box.untold())
        post(home, book, KEY)
        assert told(home) == []
        book.append("refused", {"study": "a" * 64, "run": "r", "round": 9, "why": "no"})
        post(home, book, KEY)
        assert [document["round"] for document in told(home)] == [9]
        home.outbox.unlink()  # lost: all is told anew, and is the same to the byte
        post(home, book, KEY)
        assert [document["round"] for document in told(home)] == [0, 1, 2, 9]


def test_a_full_disk_between_book_and_outbox_loses_no_decision(
    home: Home, offer: Offer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*parts: Any) -> None:
        raise RunError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Outbox, "put_all", full)
        with pytest.raises(RunError, match="full"):
            state_decision(home, "approve", offer)
    assert offer.study.digest in decisions(home)
    with closing(Book(home.book, KEY)) as book:
        Recorder(home, book, KEY).settle()
        assert [document["kind"] for document in told(home)] == ["decision", "own-head"]


def test_settling_clears_what_was_told_and_costs_nothing_while_nothing_happens(home: Home) -> None:
    with closing(Book(home.book, KEY)) as book:
        book.append("refused", {"study": "a" * 64, "run": "r", "round": 1, "why": "no"})
        now = [100.0]
        desk = Recorder(home, book, KEY, lambda: now[0])
        desk.settle()
        refusal, own = (letter_id(signed) for _, signed in Outbox(home.outbox).waiting())
        Inbox(home.inbox).note_told(refusal)
        desk.settle()
        assert Outbox(home.outbox).untold() == {own}
        before = home.outbox.stat().st_mtime_ns
        began = time.perf_counter()
        for _ in range(100):
            desk.settle()
        assert (time.perf_counter() - began) / 100 < 0.005
        now[0] += 61.0
        desk.settle()
        assert home.outbox.stat().st_mtime_ns == before, "the book has not grown"
        book.append("answered", {})
        now[0] += 61.0
        desk.settle()
        assert [document["kind"] for document in told(home)] == ["own-head", "own-head"]


def test_one_agent_at_a_time_and_others_know_whether_it_lives(home: Home) -> None:
    assert held(home) is None
    handles = hold(home)
    assert held(home) is True
    with pytest.raises(EngineError, match="another agent is at work"):
        hold(home)
    for handle in handles:
        os.close(handle)
    assert held(home) is False


def test_an_agent_that_is_killed_is_known_to_be_dead(home: Home) -> None:
    script = (
        "import sys, time; from pathlib import Path; from polyclinic.client.home import Home\n"
        "from polyclinic.client.record import hold\n"
        f"hold(Home(Path({str(home.folder)!r}))); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "held\n"
        assert held(home) is True
        agent.kill()
        agent.wait()
    assert held(home) is False


def looking(home: Home, stop: threading.Event) -> None:
    while not stop.is_set():
        held(home)


@pytest.fixture
def watched(home: Home) -> Iterator[None]:
    stop = threading.Event()
    threads = [threading.Thread(target=looking, args=(home, stop)) for _ in range(2)]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join()


@pytest.mark.usefixtures("watched")
def test_who_looks_does_not_keep_an_agent_from_starting(home: Home) -> None:
    for _ in range(20):
        for handle in hold(home):
            os.close(handle)
