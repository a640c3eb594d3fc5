"""Bounded, seeded, resumable fuzzing of everything that a stranger can send: see ``fuzzing``.

    python -m tests.faults.fuzz --cases 1000000 --state fuzz.json     # goes on where it was stopped
    python -m tests.faults.fuzz --replay "reply:4711"                 # one case again, with its traceback

A case fails if anything but one of our errors escapes, if a promise of its target is broken, if it takes more than a
second of processor time, or more than 200 MB of memory beyond what the process holds.
"""

from __future__ import annotations

import argparse
import json
import logging
import mmap
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from tests.faults.fuzzing.known import targets
from tests.faults.fuzzing.target import Target, case

SECONDS = 1.0
"""Processor time that one case may take."""
MEMORY = 200 * 2**20
"""Bytes by which one case may raise the process's peak."""
ROOM = 4 * 2**30
"""Bytes of address space beyond the present, above which an allocation fails instead of swapping the machine."""
CHUNK = 1000
STUCK = 600.0
"""Seconds after which a chunk is given up."""
KEPT = 20
"""Failures of which the details are kept."""


class SlowError(BaseException):
    """A case took too long; no ``except Exception`` of the product may swallow it."""


@dataclass
class Found:
    """What came of some cases."""

    cases: int = 0
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    failed: int = 0
    slowest: float = 0.0
    grown: int = 0
    seconds: float = 0.0

    def __iadd__(self, other: Found) -> Found:
        self.cases, self.failed = self.cases + other.cases, self.failed + other.failed
        for name, counts in other.outcomes.items():
            self.outcomes[name] = self.outcomes.get(name, Counter()) + counts
        self.failures = sorted(self.failures + other.failures, key=lambda f: (f["target"], f["index"]))[:KEPT]
        self.slowest, self.grown = max(self.slowest, other.slowest), max(self.grown, other.grown)
        self.seconds += other.seconds
        return self

    def fail(self, target: str, index: int, what: str) -> None:
        """Notes one case that failed."""
        self.failed += 1
        if len(self.failures) < KEPT:
            self.failures.append({"target": target, "index": index, "what": what[:500]})


def peak() -> int:
    """Bytes of the process's highest resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _too_slow(number: int, frame: object) -> None:
    raise SlowError


@contextmanager
def watched() -> Iterator[None]:
    """An alarm after ``SECONDS`` of processor time, a bound on memory, and no logs, while this lasts."""
    logging.disable(logging.CRITICAL)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of starting up
    before, limits = signal.signal(signal.SIGVTALRM, _too_slow), resource.getrlimit(resource.RLIMIT_AS)
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, limits[1]))
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, limits)


def one(target: Target, seed: int, index: int, found: Found) -> None:
    """Tries one case and notes what came of it."""
    data = case(target, seed, index)
    begun, before = time.process_time(), peak()
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, 2 * SECONDS)  # the clock below judges; this only ends what hangs
        outcome = target.judge(data)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except SlowError:
        outcome = "hung"
        found.fail(target.name, index, "hung")
    except Exception as failure:
        outcome = f"failed: {type(failure).__name__}"
        found.fail(target.name, index, f"{type(failure).__name__}: {failure}")
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    took, grown = time.process_time() - begun, peak() - before
    if took > SECONDS and outcome != "hung":
        found.fail(target.name, index, f"took {took:.2f} s")
    if grown > MEMORY:
        found.fail(target.name, index, f"took {grown / 2**20:.0f} MiB")
    found.cases += 1
    found.slowest, found.grown = max(found.slowest, took), max(found.grown, grown)
    found.outcomes.setdefault(target.name, Counter())[outcome] += 1


def some(known: dict[str, Target], name: str, seed: int, start: int, stop: int, crumbs: Any = None) -> Found:
    """Cases ``start`` to ``stop`` of one target; ``crumbs`` (40 bytes) says which is on, whatever happens."""
    found, begun = Found(), time.monotonic()
    with watched():
        for index in range(start, stop):
            if crumbs is not None:
                crumbs[:40] = f"{name}:{index}".encode().ljust(40)
            one(known[name], seed, index, found)
    found.seconds = time.monotonic() - begun
    return found


def plan(known: dict[str, Target], cases: int, chunk: int = CHUNK) -> list[tuple[str, int, int]]:
    """(target, start, stop) of every chunk, the targets in turn, so that a stopped run has seen all of them."""
    wanted = {name: cases * target.share // 100 for name, target in known.items()}
    chunks = [(name, at, min(at + chunk, count)) for name, count in wanted.items() for at in range(0, count, chunk)]
    return sorted(chunks, key=lambda c: (c[1] / max(1, wanted[c[0]]), c[0]))


def quick(cases: int, seed: int) -> Found:
    """A run in this process."""
    total = Found()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        known = targets(Path(folder))
        for name, start, stop in plan(known, cases, cases):
            total += some(known, name, seed, start, stop)
    return total


_KNOWN: dict[str, Target] = {}


def _end_with_parent() -> None:
    """A worker whose parent is killed would wait for work for ever."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(folder: str, name: str, seed: int, start: int, stop: int) -> Found:
    """In a worker process: what it knows is made once."""
    mine = Path(folder) / str(os.getpid())
    if not _KNOWN:
        mine.mkdir()
        _KNOWN.update(targets(mine))
    with (mine / "crumbs").open("w+b") as out:
        out.truncate(40)
        out.flush()
        with mmap.mmap(out.fileno(), 40) as crumbs:
            return some(_KNOWN, name, seed, start, stop, crumbs)


def full(cases: int, seed: int, workers: int, state: Path | None, only: str | None = None) -> Found:
    """A run in ``workers`` processes, whose every finished chunk is kept in ``state``."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        known = {name: target for name, target in targets(Path(folder)).items() if only in (None, name)}
    chunks = plan(known, cases)
    about = {"seed": seed, "wanted": cases, "only": only}
    done, total = _resumed(state, about)
    if done >= len(chunks):  # it was finished: once more
        done, total = 0, Found()
    context = get_context("spawn")  # a fork after numpy's threads have begun may hang
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-") as folder,
        ProcessPoolExecutor(workers, context, _end_with_parent) as pool,
    ):
        left = [(c, pool.submit(_work, folder, c[0], seed, c[1], c[2])) for c in chunks[done:]]
        for number, (chunk, future) in enumerate(left, done + 1):
            total += _result(future, chunk, folder, pool)
            if state is not None:
                said = vars(total) | about | {"done": number}
                state.with_suffix(".part").write_text(json.dumps(said))
                state.with_suffix(".part").replace(state)
            print(f"\r{number}/{len(chunks)} chunks, {total.failed} failed", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return total


def _resumed(state: Path | None, about: dict[str, Any]) -> tuple[int, Found]:
    if state is None or not state.exists():
        return 0, Found()
    kept = json.loads(state.read_text())
    if any(kept[key] != value for key, value in about.items()):
        raise SystemExit(f"{state} is of another run: {kept['wanted']} cases of seed {kept['seed']}")
    names = Found.__dataclass_fields__
    found = Found(**{name: kept[name] for name in names})
    found.outcomes = {name: Counter(counts) for name, counts in kept["outcomes"].items()}
    return kept["done"], found


def _result(future: Future[Found], chunk: tuple[str, int, int], folder: str, pool: ProcessPoolExecutor) -> Found:
    try:
        return future.result(STUCK)
    except (BrokenProcessPool, TimeoutError) as failure:
        crumbs = [path.read_bytes().decode().strip() for path in Path(folder).glob("*/crumbs")]
        for process in list(pool._processes.values()):
            process.kill()
        raise SystemExit(f"{type(failure).__name__} in {chunk}; the workers were at {crumbs}") from failure


def table(found: Found) -> str:
    """What came of it, a line a target and outcome."""
    lines = [f"| {'target':18} | {'outcome':28} | {'cases':>9} |", f"|{'-' * 20}|{'-' * 30}|{'-' * 10}:|"]
    for name, counts in sorted(found.outcomes.items()):
        lines += [f"| {name:18} | {outcome:28} | {count:9,} |" for outcome, count in sorted(counts.items())]
    lines.append(
        f"\n{found.cases:,} cases, {found.failed} failed; "
        f"slowest {found.slowest:.2f} s of processor time, most memory {found.grown / 2**20:.0f} MiB"
    )
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """The command; 1 if a case failed."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--state", type=Path, help="file in which the run's state is kept; a stopped run goes on")
    parser.add_argument("--only", help="one target")
    parser.add_argument("--replay", metavar="TARGET:INDEX", help="one case, with whatever it raises")
    told = parser.parse_args(words)
    if told.replay:
        name, _, index = told.replay.rpartition(":")
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            target = targets(Path(folder))[name]
            data = case(target, told.seed, int(index))
            print(f"{len(data)} bytes: {data[:200]!r}")
            print(target.judge(data))
        return 0
    begun = time.monotonic()
    found = full(told.cases, told.seed, told.workers, told.state, told.only)
    print(table(found))
    print(f"seed {told.seed}, {time.monotonic() - begun:.0f} s on {told.workers} processes")
    for failure in found.failures:
        print(
            f"  {failure['what']}\n"
            f"    python -m tests.faults.fuzz --seed {told.seed} --replay '{failure['target']}:{failure['index']}'"
        )
    return 1 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main())
