"""The in-process engine: every site on this machine, one backbone in memory, one after another or in N processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from polyclinic.client.cache import Cache
from polyclinic.client.respond import Site, Workbench
from polyclinic.core.memory import peak_mb
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors
from polyclinic.server import rounds
from polyclinic.server.journal import Journal
from polyclinic.server.receive import Delivery
from polyclinic.server.rounds import Observer
from polyclinic.simulations.baselines import baseline
from polyclinic.simulations.crew import Crew, Job, Work, deal
from polyclinic.simulations.in_turn import InTurn, answer

PEAK, BASELINE = ":peak", ":baseline:"
"""Jobs beside those named by a site, whose name never holds a colon."""


class Engine(Protocol):
    """What carries a simulation out."""

    name: str
    backbone: str
    """SHA-256 of the backbone's weights."""

    def names(self) -> Sequence[str]:
        """Sites, sorted."""

    def run(self, journal: Journal, observe: Observer) -> None:
        """What is left of the run whose journal this is: see ``polyclinic.server.rounds.run``."""

    def baselines(self, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name, result) of the baselines wanted, as they are done."""

    def peak_mb(self) -> float:
        """Peak resident memory so far, MiB, summed over processes."""

    def close(self) -> None:
        """Lets go of processes."""


class Sequential(InTurn):
    """All sites in this process, asked one after another."""

    name = "inprocess"

    def __init__(self, study: Study, sites: Mapping[str, Site], cache: Cache | None = None) -> None:
        super().__init__(Workbench(study, cache=cache), sites)
        self._initial, self.backbone = self._bench.adapted.read(), self._bench.adapted.network.backbone.sha256

    def run(self, journal: Journal, observe: Observer) -> None:
        """See ``Engine``."""
        rounds.run(self._bench.study, self, self._initial, journal, observe)

    def baselines(self, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """One after another."""
        for name in wanted:
            yield name, baseline(self._bench, self._sites, self._initial, name)

    def peak_mb(self) -> float:
        """Of this process."""
        return peak_mb()

    def close(self) -> None:
        """Nothing to let go of."""


class Parallel:
    """Sites dealt out to worker processes, each to one for good; they share a backbone until they change it."""

    name = "inprocess"

    def __init__(self, study: Study, sites: Mapping[str, Site], workers: int, cache: Cache | None = None) -> None:
        bench = Workbench(study, cache=cache)
        self._study, self._initial, self.backbone = study, bench.adapted.read(), bench.adapted.network.backbone.sha256
        self._size = {name: site.data.sizes()["train"][0] for name, site in sites.items()}
        self._dealt = deal(self._size, workers)
        forks = bench.device.type == "cpu" and sys.platform == "linux"  # elsewhere a fork with torch loaded is unsafe
        begin = partial(_begin, study, dict(sites), self._initial, bench if forks else None, cache)
        self._crew = Crew(begin, workers, "fork" if forks else "spawn")

    def run(self, journal: Journal, observe: Observer) -> None:
        """See ``Engine``."""
        rounds.run(self._study, self, self._initial, journal, observe)

    def names(self) -> Sequence[str]:
        """See ``Engine``."""
        return sorted(self._size)

    def send(self, message: bytes, to: Sequence[str], deadline: float) -> Iterator[Delivery]:
        """Replies come in the order in which they are ready."""
        queues = [[Job(name, message) for name in names if name in set(to)] for names in self._dealt]
        for _, delivery in self._crew.run(queues, deadline):
            yield delivery

    def baselines(self, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each whole in one worker; the longest (all data pooled) begins first."""
        load = {name: self._size.get(name.removeprefix("alone/"), sum(self._size.values())) for name in wanted}
        queues = [[Job(f"{BASELINE}{name}") for name in names] for names in deal(load, len(self._dealt))]
        for job, result in self._crew.run(queues):
            yield job.what.removeprefix(BASELINE), result

    def peak_mb(self) -> float:
        """Summed over this process and the workers; pages that they share count in each."""
        queues = [[Job(PEAK)] for _ in self._dealt]
        return peak_mb() + sum(float(peak) for _, peak in self._crew.run(queues))

    def close(self) -> None:
        """Ends the workers."""
        self._crew.close()


def engine(study: Study, sites: Mapping[str, Site], workers: int, cache: Cache | None = None) -> Sequential | Parallel:
    """One process, or as many as asked (never more than there are sites); they share what is remembered."""
    workers = min(workers, len(sites))
    return Sequential(study, sites, cache) if workers <= 1 else Parallel(study, sites, workers, cache)


def _begin(
    study: Study, sites: Mapping[str, Site], initial: Tensors, bench: Workbench | None, cache: Cache | None
) -> Work:
    bench = bench or Workbench(study, cache=cache)

    def work(what: str, message: bytes) -> Any:
        if what == PEAK:
            return peak_mb()
        if what.startswith(BASELINE):
            return baseline(bench, sites, initial, what.removeprefix(BASELINE))
        return answer(bench, sites[what], message)

    return work
