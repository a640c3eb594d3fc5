"""Fuzzing in small, and that it would notice: a crash, a hang, a broken promise, memory, a dead process."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from polyclinic.core.errors import UpdateError
from tests.faults import fuzz
from tests.faults.fuzzing import mutate
from tests.faults.fuzzing.known import targets
from tests.faults.fuzzing.target import SAME, Target, case, demand, refusing

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return targets(tmp_path_factory.mktemp("fuzz"))


def test_the_originals_are_good(known: dict[str, Target]) -> None:
    assert {target.judge(target.original) for target in known.values()} == {SAME}


@pytest.mark.slow
def test_twenty_thousand_mutations_break_nothing() -> None:
    found = fuzz.quick(20_000, seed=1)
    assert found.cases == 20_000
    assert not found.failures, fuzz.table(found)
    for name, counts in found.outcomes.items():
        refused = sum(count for outcome, count in counts.items() if outcome.startswith("refused"))
        assert refused > 0.7 * counts.total(), name  # it does reach the tests, and is not noise alone
    for name in ("sealed reply", "sealed refusal", "statement", "invitation", "certificate", "signed book"):
        assert "accepted, another" not in found.outcomes[name]


def test_a_case_depends_on_seed_target_and_number_alone(known: dict[str, Target]) -> None:
    for target in known.values():
        cases = [case(target, 1, index) for index in range(30)]
        assert cases == [case(target, 1, index) for index in range(30)]
        assert cases != [case(target, 2, index) for index in range(30)]
        assert sum(one != target.original for one in cases) > 20


def test_most_mutations_of_a_message_get_behind_its_compression(known: dict[str, Target]) -> None:
    refusals = [why(known["reply"], index) for index in range(400)]
    deeper = [text for text in refusals if "header is damaged" not in text and "protocol version" not in text]
    assert len(deeper) > 200
    assert len(set(deeper)) > 20  # many different reasons


def why(target: Target, index: int) -> str:
    from polyclinic.core.messages import decode_reply

    try:
        decode_reply(case(target, 1, index))
    except UpdateError as refusal:
        return f"{refusal.where}: {refusal.problem}"[:40]
    return "accepted"


@pytest.mark.parametrize(
    ("damage", "texts"),
    [
        (mutate.blind, [b"", b"x", b"\x00" * 9]),
        (mutate.json_text, [b"1", b"[]", b"{}", b'""', b'{"a":[1,{"b":null}]}']),
        (mutate.tensors, [b"", b"x", struct.pack("<Q", 2) + b"{}"]),
        (mutate.toml, [b"\n", b"x", b"a = 1\n"]),
    ],
)
def test_nothing_is_too_odd_to_be_damaged(damage: mutate.Mutation, texts: list[bytes]) -> None:
    rng = random.Random(1)
    for text in texts:
        assert any(damage(text, rng) != text for _ in range(300))


def planted(judge: object) -> fuzz.Found:
    target = Target("planted", 100, b"good", lambda data, rng: data + bytes([rng.randrange(256)]), judge)  # type: ignore[arg-type]
    return fuzz.some({"planted": target}, "planted", 1, 0, 3)


def crash(data: bytes) -> str:
    raise KeyError("a fault")


def hang(data: bytes) -> str:
    while True:
        pass


def accept(data: bytes) -> str:
    demand(data == b"good", "a changed message was accepted")
    return SAME


def refuse(data: bytes) -> str:
    raise UpdateError("no")


def refuse_unsayably(data: bytes) -> str:
    raise UpdateError("\ud800")


KEPT: list[bytearray] = []


def eat(data: bytes) -> str:
    KEPT.append(bytearray(b"x") * (300 * 2**20))
    KEPT.clear()
    return SAME


def claim(data: bytes) -> str:
    return str(len(bytearray(2**44)))


@pytest.mark.parametrize(
    ("judge", "what", "count"),
    [
        (crash, "KeyError: 'a fault'", 3),
        (hang, "hung", 3),
        (refusing(accept), "BrokenPromiseError: a changed message was accepted", 3),
        (refusing(refuse_unsayably), "UnicodeEncodeError", 3),
        (eat, "took 3", 1),  # the peak stays where it is
        (claim, "MemoryError", 3),
    ],
)
def test_a_planted_fault_is_found(judge: object, what: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 0.1)
    found = planted(judge)
    faults = [failure for failure in found.failures if what in failure["what"]]
    assert len(faults) == count
    assert faults[0]["target"] == "planted"


def test_a_refusal_is_no_fault() -> None:
    found = planted(refusing(refuse))
    assert (found.failed, found.outcomes) == (0, {"planted": {"refused: UpdateError": 3}})


def test_the_plan_covers_every_case_once_and_all_targets_from_the_start(known: dict[str, Target]) -> None:
    chunks = fuzz.plan(known, 100_000)
    for name, target in known.items():
        mine = sorted((start, stop) for which, start, stop in chunks if which == name)
        assert [stop for _, stop in mine[:-1]] == [start for start, _ in mine[1:]]
        assert (mine[0][0], mine[-1][1]) == (0, 1000 * target.share)
    assert {name for name, _, _ in chunks[: len(known)]} == set(known)


def command(*words: str, patience: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.faults.fuzz", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=patience, check=False, env=dict(os.environ),
    )  # fmt: skip


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not_been_stopped(known: dict[str, Target], tmp_path: Path) -> None:
    words = ("--cases", "30000", "--only", "invitation", "--workers", "1")
    whole, part = tmp_path / "whole.json", tmp_path / "part.json"
    done = command(*words, "--seed", "3", "--state", str(whole))
    assert done.returncode == 0, done.stderr
    assert "2,700 cases, 0 failed" in done.stdout
    kept = json.loads(whole.read_text())
    first = fuzz.some(known, "invitation", 3, 0, 1000)  # as it stood after the first of three chunks
    part.write_text(json.dumps(kept | vars(first) | {"done": 1}))
    again = command(*words, "--seed", "3", "--state", str(part))
    assert again.returncode == 0, again.stderr
    assert json.loads(part.read_text())["outcomes"] == kept["outcomes"]
    other = command(*words, "--seed", "4", "--state", str(part))
    assert other.returncode != 0
    assert "is of another run" in other.stderr


@pytest.mark.slow
def test_its_processes_end_with_it_when_it_is_killed(tmp_path: Path) -> None:
    words = ["--cases", "1000000", "--only", "invitation", "--workers", "2", "--state", str(tmp_path / "state.json")]
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.fuzz", *words], cwd=ROOT, stderr=subprocess.DEVNULL, process_group=0
    )
    until((tmp_path / "state.json").exists, 60)
    running.kill()
    running.wait()
    until(lambda: not group(running.pid), 20)
    assert json.loads((tmp_path / "state.json").read_text())["failed"] == 0


def until(holds: Callable[[], bool], patience: float) -> None:
    end = time.monotonic() + patience
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    assert holds()


def group(number: int) -> list[str]:
    """Processes of a group that still run."""
    found = subprocess.run(["ps", "-eo", "pgid=,stat=,pid="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in found.splitlines()]
    return [row[2] for row in rows if row[0] == str(number) and not row[1].startswith("Z")]


def test_one_case_can_be_had_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["--replay", "study file:5", "--seed", "2"]) == 0
    assert "bytes: b'" in capsys.readouterr().out


def test_shares_can_be_read_off(known: dict[str, Target]) -> None:
    assert sum(target.share for target in known.values()) == 100
    assert replace(known["reply"], share=1).share == 1
