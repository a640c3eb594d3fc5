"""Workers: every job is done once, in its place; a death, a fault of ours and a deadline each end as they should."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyclinic.core.errors import EngineError
from polyclinic.simulations.crew import Crew, Job, Work, deal


def begin() -> Work:
    def work(what: str, message: bytes) -> Any:
        if what == "sleep":
            time.sleep(float(message))
        if what == "fail":
            raise ValueError("no such luck")
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid(), what, message

    return work


@pytest.fixture
def crew() -> Iterator[Crew]:
    made = Crew(begin, 2, "fork")
    yield made
    made.close()


def test_each_job_is_done_once_by_its_worker_in_order(crew: Crew) -> None:
    queues = [[Job(f"a{i}", b"x" * i) for i in range(20)], [Job(f"b{i}") for i in range(7)]]
    done = list(crew.run(queues))
    assert sorted(job.what for job, _ in done) == sorted(job.what for queue in queues for job in queue)
    for queue, pid in zip(queues, crew.pids, strict=True):
        mine = [job.what for job, result in done if result[0] == pid]
        assert mine == [job.what for job in queue]
    assert all(result[1:] == (job.what, job.message) for job, result in done)


def test_a_large_message_passes_both_ways(crew: Crew) -> None:
    body = os.urandom(8 * 2**20)
    ((_, result),) = crew.run([[Job("echo", body)], []])
    assert result[2] == body


def test_a_death_is_told_at_once_with_the_job(crew: Crew) -> None:
    with pytest.raises(EngineError, match=r"die: the worker process was killed .*resume"):
        list(crew.run([[Job("die")], [Job("sleep", b"0.1")]]))


def test_a_fault_in_a_job_is_told(crew: Crew) -> None:
    with pytest.raises(EngineError, match=r"fail: a worker failed: ValueError: no such luck"):
        list(crew.run([[Job("fail")], []]))


def test_after_the_deadline_nobody_is_waited_for_and_the_late_result_is_dropped(crew: Crew) -> None:
    begun = time.monotonic()
    done = list(crew.run([[Job("sleep", b"0.6"), Job("never")], [Job("quick")]], deadline=0.2))
    assert time.monotonic() - begun < 0.5
    assert [job.what for job, _ in done] == ["quick"]
    again = list(crew.run([[Job("next")], [Job("other")]]))
    assert sorted(job.what for job, _ in again) == ["next", "other"]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=7), st.integers(1, 3))
def test_dealing_places_all_and_is_as_near_to_the_best_as_graham_proved(sizes: list[int], workers: int) -> None:
    load = {f"site{i}": size for i, size in enumerate(sizes)}
    dealt = deal(load, workers)
    assert sorted(name for names in dealt for name in names) == sorted(load)
    heaviest = max(sum(load[name] for name in names) for names in dealt)
    ways = itertools.product(range(workers), repeat=len(sizes))
    best = min(max(sum(s for s, w in zip(sizes, way, strict=True) if w == k) for k in range(workers)) for way in ways)
    assert heaviest <= (4 / 3 - 1 / (3 * workers)) * best + 1e-9


ORPHANS = """
import sys, time
from polyclinic.simulations.crew import Crew
crew = Crew(lambda: lambda what, message: None, 3, "fork")
print(*crew.pids, flush=True)
time.sleep(60)
"""


def test_workers_do_not_outlive_a_parent_that_was_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 3
        parent.kill()
    deadline = time.monotonic() + 10
    while (left := [pid for pid in workers if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
