"""Several processes at once, and processes that are killed at any moment: never is less charged than was released."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyclinic.client.privacy.ledger import Ledger
from polyclinic.core.privacy.accounting import epsilon
from polyclinic.core.privacy.events import Event

STEP = Event("gaussian", 10.0)
FITS = 12
"""Rounds that fit into the bound."""

BOTH = """
import sys
from pathlib import Path
from polyclinic.client.privacy.budget import Bound
from polyclinic.client.privacy.ledger import Ledger
from polyclinic.client.privacy.record import Charge, Question
from polyclinic.core.errors import PolicyError
from polyclinic.core.privacy.events import Event

folder, name, limit = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
ledger = Ledger(folder, clock=lambda: 0.0)
charge = Charge(ledger.cohort({f"patient {i}": 1 for i in range(20)}), "update", Event("gaussian", 10.0))
print("ready", flush=True)
sys.stdin.readline()
for number in range(1, 20):
    try:
        made = ledger.reserve(Question("s", name, number, "b"), [charge], [], [Bound(limit, 1e-5, "the limit")])
    except PolicyError:
        break
    ledger.release(made, f"{name} {number}")
    print(number, flush=True)
"""


def begun(script: str, *arguments: object) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


def test_processes_that_share_a_cohort_cannot_overspend(tmp_path: Path) -> None:
    limit = epsilon([STEP] * FITS, 1e-5)
    several = [begun(BOTH, tmp_path, f"run {i}", limit) for i in range(4)]  # all find no ledger, and make one
    for process in several:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    told = []
    for process in several:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in several:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        told.append(len(out.split()))
    ledger = Ledger(tmp_path)
    assert sum(told) == FITS == len(ledger.record().reserved)
    assert ledger.record().epsilon(ledger.record().charged(), 1e-5) <= limit
    ledger.verify()
    ledger.close()


# --- kill -9 ---

STUDIES, PATIENTS = 3, 40


def work(folder: Path, witness: Path, seed: int) -> None:
    """What a site does for ever: it reserves, trains, notes what leaves, lets it leave. The witness saw what left."""
    from polyclinic.client.privacy.record import Charge, Question

    draw = random.Random(seed)
    ledger = Ledger(folder)
    out = os.open(witness, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while True:
        first = draw.randrange(PATIENTS)
        cohort = ledger.cohort({f"patient {i}": 1 for i in range(first, first + 5)})
        question = Question(f"study {draw.randrange(STUDIES)}", "run", draw.randrange(4), "base")
        made = ledger.reserve(question, [Charge(cohort, "update", STEP)])
        answer = made.stream("noise").hex()  # as an answer: it follows from the key, and so does what is released
        ledger.release(made, answer)
        os.write(out, json.dumps([first, made.number, answer]).encode() + b"\n")


def left(witness: Path) -> Iterator[tuple[int, int, str]]:
    for line in witness.read_bytes().splitlines(keepends=True) if witness.exists() else []:
        if line.endswith(b"\n"):
            first, number, answer = json.loads(line)
            yield first, number, answer


def killed(folder: Path, witness: Path, seed: int, after: float) -> None:
    """A child that is killed wherever it is after so many seconds: every other one of them counted from an answer."""
    before = witness.stat().st_size if witness.exists() else 0
    child = os.fork()
    if child == 0:
        try:
            work(folder, witness, seed)
        finally:
            os._exit(1)
    while seed % 2 and (not witness.exists() or witness.stat().st_size <= before):  # however busy the machine is
        time.sleep(0.002)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child ended by itself"


def demand_no_undercount(folder: Path, witness: Path) -> int:
    """Every distinct answer that left has a charge of its own, to exactly the patients behind it."""
    ledger = Ledger(folder)
    ledger.verify()
    record = ledger.record()
    answers: dict[str, tuple[int, int]] = {}
    for first, number, answer in left(witness):
        answers[answer] = first, number
    assert len({number for _, number in answers.values()}) == len(answers), "two answers left under one charge"
    for answer, (_, number) in answers.items():
        assert record.released[number] == answer
    for who in range(PATIENTS + 5):
        truly = sum(first <= who < first + 5 for first, _ in answers.values())
        mine = ledger._chain.salt
        from polyclinic.client.privacy.people import Cohort

        (name,) = Cohort.of({f"patient {who}": 1}, mine).members
        charged = [one for one in record.charged() if name in record.cohorts[one.cohort].members]
        assert len(charged) >= truly, f"patient {who}: {truly} answers left, {len(charged)} were charged"
    ledger.close()
    return len(answers)


def test_killed_at_forty_moments_nothing_is_undercounted(tmp_path: Path) -> None:
    kills(tmp_path, 40)


@pytest.mark.faults
def test_killed_at_two_hundred_moments_nothing_is_undercounted(tmp_path: Path) -> None:
    kills(tmp_path, 200)


def kills(folder: Path, count: int) -> None:
    draw, place, witness = random.Random(7), folder / "privacy", folder / "witness"
    for seed in range(count):
        killed(place, witness, seed, draw.uniform(0.0, 0.08))
        if seed % 20 == 19:
            demand_no_undercount(place, witness)
    assert demand_no_undercount(place, witness) > 0


def test_killed_at_every_statement_of_the_database(tmp_path: Path) -> None:
    """SQLite tells of each statement before it runs it, commits included."""
    from polyclinic.client.privacy.record import Charge, Question

    place, witness, reached = tmp_path / "privacy", tmp_path / "witness", set[str]()

    def step(ledger: Ledger, number: int) -> None:
        cohort = ledger.cohort({f"patient {i}": 1 for i in range(number, number + 5)})
        made = ledger.reserve(Question("study", "run", number, "base"), [Charge(cohort, "update", STEP)])
        ledger.release(made, made.stream("noise").hex())
        with witness.open("a") as out:
            out.write(json.dumps([number, made.number, made.stream("noise").hex()]) + "\n")

    for moment in range(60):
        child = os.fork()
        if child == 0:
            ledger, seen = Ledger(place), [0]

            def told(statement: str, seen: list[int] = seen, moment: int = moment) -> None:
                seen[0] += 1
                if seen[0] > moment:
                    (tmp_path / "last").write_text(statement.split(maxsplit=1)[0])
                    os.kill(os.getpid(), signal.SIGKILL)

            ledger._chain.db.set_trace_callback(told)
            step(ledger, moment % PATIENTS)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        reached.add((tmp_path / "last").read_text())
        demand_no_undercount(place, witness)
    assert reached >= {"BEGIN", "INSERT", "DELETE", "COMMIT", "SELECT"}
