"""Worker processes that do jobs: one pipe each, one job at a time, and a death is noticed at once."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from polyclinic.core.errors import EngineError

Work = Callable[[str, bytes], Any]
"""(what, message) → result: how a worker does a job."""


@dataclass(frozen=True)
class Job:
    """One thing to do; ``what`` names it, for the worker and for error messages."""

    what: str
    message: bytes = b""


class Crew:
    """N processes forked (or spawned) at once, before anything else runs in this one.

    Args:
        begin: called in each process; gives the function that does the jobs there.
        start_method: "fork" shares what is loaded; "spawn" starts afresh and needs a ``begin`` that can be pickled.
    """

    def __init__(self, begin: Callable[[], Work], count: int, start_method: str) -> None:
        context = multiprocessing.get_context(start_method)
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            # a forked child inherits our ends, and must let go of them to see us die
            inherited = [*self._pipes, ours] if start_method == "fork" else []
            process = context.Process(  # type: ignore[attr-defined]
                target=_serve, args=(theirs, inherited, begin), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._at: list[Job | None] = [None] * count

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers."""
        return tuple(process.pid or 0 for process in self._processes)

    def run(self, queues: Sequence[Sequence[Job]], deadline: float | None = None) -> Iterator[tuple[Job, Any]]:
        """Does ``queues[i]`` at worker i, each in order, and yields (job, result) as they are done.

        After ``deadline`` seconds it stops waiting; what is still being done then is dropped when it comes.

        Raises:
            EngineError: a worker died, or its job raised something that is none of our errors.
        """
        end = None if deadline is None else time.monotonic() + deadline
        left = [deque(queue) for queue in queues]
        mine = {id(job) for queue in queues for job in queue}
        self._give(left)
        while any(left) or any(job is not None and id(job) in mine for job in self._at):
            patience = None if end is None else max(0.0, end - time.monotonic())
            ready = wait([pipe for pipe, job in zip(self._pipes, self._at, strict=True) if job], patience)
            if not ready:
                return
            for pipe in ready:
                worker = self._pipes.index(pipe)  # type: ignore[arg-type]
                job, result = self._take(worker)
                self._give(left)
                if id(job) in mine:
                    yield job, result

    def close(self) -> None:
        """Ends the workers, busy or not."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.close()
            process.terminate()
            process.join()

    def _give(self, left: list[deque[Job]]) -> None:
        for worker, queue in enumerate(left):
            if queue and self._at[worker] is None:
                job = self._at[worker] = queue.popleft()
                try:
                    self._pipes[worker].send((job.what, job.message))
                except OSError as failure:
                    raise _died(job) from failure

    def _take(self, worker: int) -> tuple[Job, Any]:
        job = self._at[worker]
        assert job is not None
        try:
            fine, result = self._pipes[worker].recv()
        except (EOFError, OSError) as failure:
            raise _died(job) from failure
        self._at[worker] = None
        if not fine:
            raise EngineError(f"a worker failed: {result}", where=job.what, remedy="this is a fault of ours: report it")
        return job, result


def _serve(pipe: Connection, inherited: Sequence[Connection], begin: Callable[[], Work]) -> None:
    for end in inherited:
        end.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to answer
    work = begin()
    while True:
        try:
            what, message = pipe.recv()
        except EOFError:
            return
        try:
            answer = True, work(what, message)
        except Exception as failure:
            answer = False, f"{type(failure).__name__}: {failure}"
        try:
            pipe.send(answer)
        except OSError:  # nobody is there any more
            return


def _died(job: Job) -> EngineError:
    return EngineError(
        "the worker process was killed",
        where=job.what,
        remedy="often memory ran out: resume with fewer --workers; nothing is lost",
    )


def deal(load: dict[str, int], workers: int) -> list[list[str]]:
    """Names by worker, the heaviest first to the least laden (Graham 1969, longest processing time first)."""
    laden, dealt = [0] * workers, [list[str]() for _ in range(workers)]
    for name in sorted(load, key=lambda n: (-load[n], n)):
        worker = laden.index(min(laden))
        laden[worker] += load[name]
        dealt[worker].append(name)
    return dealt
