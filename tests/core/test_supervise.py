"""The supervisor, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from polyclinic.core.supervise import Child, supervise

LONG = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)"]


@contextmanager
def supervised(logs: Path, *children: Child) -> Iterator[list[str]]:
    told, stop = list[str](), threading.Event()
    thread = threading.Thread(target=supervise, args=(children, logs, told.append, stop.is_set))
    thread.start()
    try:
        yield told
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_is_killed_starts_again_at_once_and_everything_ends_at_the_end(tmp_path: Path) -> None:
    child = Child("worker", LONG)
    with supervised(tmp_path, child) as told:
        until(lambda: child.process is not None)
        assert child.process is not None
        first = child.process.pid
        os.kill(first, signal.SIGKILL)
        until(lambda: child.process is not None and child.process.pid != first, 3.0)
        last = child.process.pid
    assert any("signal SIGKILL" in line for line in told)
    assert not alive(last)
    until(lambda: (tmp_path / "worker.log").read_text() != "")


def test_what_keeps_failing_is_started_ever_more_slowly(tmp_path: Path) -> None:
    failing = Child("failing", [sys.executable, "-c", "raise SystemExit(3)"])
    with supervised(tmp_path, failing) as told:
        until(lambda: failing.pause >= 1.0)
    pauses = [float(line.split(" in ")[1].split()[0]) for line in told if "exit code 3" in line]
    assert pauses[:3] == [0.25, 0.5, 1.0]


def test_those_who_belong_together_are_restarted_together(tmp_path: Path) -> None:
    agent, node = Child("agent", LONG, together=("node",)), Child("node", LONG)
    with supervised(tmp_path, agent, node):
        until(lambda: agent.process is not None and node.process is not None)
        assert agent.process is not None
        assert node.process is not None
        old = (agent.process.pid, node.process.pid)
        os.kill(old[0], signal.SIGKILL)
        until(lambda: agent.process is not None and node.process is not None and node.process.pid != old[1])
        until(lambda: not alive(old[1]))


def test_a_child_runs_only_while_it_is_wanted(tmp_path: Path) -> None:
    wanted = threading.Event()
    child = Child("run", LONG, wanted=wanted.is_set)
    with supervised(tmp_path, child) as told:
        time.sleep(0.3)
        assert child.process is None
        wanted.set()
        until(lambda: child.process is not None)
        wanted.clear()
        until(lambda: child.process is None)
    assert len(told) == 1  # stopped on purpose: nothing to report


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_children_do_not_outlive_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from polyclinic.core.supervise import Child, supervise; import sys;"
        "supervise([Child('worker', [sys.executable, '-c', 'import time; time.sleep(600)'])],"
        " Path(sys.argv[1]), lambda line: print(line, flush=True), lambda: False)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline().split()[-1])
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: not alive(child))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start processes as another user")
def test_a_child_may_run_as_another_user(tmp_path: Path) -> None:
    import pwd

    nobody = pwd.getpwnam("nobody")
    child = Child("node", ["/bin/sh", "-c", "id -u; id -G; exec sleep 600"], user="nobody")
    log = tmp_path / "node.log"
    with supervised(tmp_path, child):
        until(lambda: log.exists() and log.read_text().count("\n") == 2)
    assert log.read_text() == f"{nobody.pw_uid}\n{nobody.pw_gid}\n"


def test_a_program_that_is_not_there_is_told_and_tried_again(tmp_path: Path) -> None:
    missing = Child("missing", [str(tmp_path / "nowhere")])
    with supervised(tmp_path, missing) as told:
        until(lambda: len(told) >= 2)
    assert all("cannot be started" in line and "nowhere" in line for line in told)


def test_who_is_not_wanted_any_more_may_end_by_itself(tmp_path: Path) -> None:
    on, left = [True], tmp_path / "left"
    leaves = f"import pathlib, time; time.sleep(1.5); pathlib.Path({str(left)!r}).touch()"
    child = Child("leaver", [sys.executable, "-c", leaves], wanted=lambda: on[0], leave=30.0)
    stays = Child("stays", LONG, wanted=lambda: on[0], leave=0.5)
    with supervised(tmp_path, child, stays):
        until(lambda: child.process is not None and stays.process is not None)
        on[0] = False
        until(left.exists)
        until(lambda: child.process is None and stays.process is None)
