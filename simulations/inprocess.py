"""The in-process engine: every site on this machine, one backbone in memory, one after another or in N processes."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from polyclinic.client.respond import Site, Workbench
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors
from polyclinic.server import rounds
from polyclinic.server.journal import Journal
from polyclinic.server.rounds import Delivery, Observer
from polyclinic.simulations.baselines import baseline
from polyclinic.simulations.crew import Crew, Job, Work, deal
from polyclinic.simulations.in_turn import InTurn, answer


class Engine(Protocol):
    """What carries a simulation out."""

    name: str

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

    def __init__(self, study: Study, sites: Mapping[str, Site]) -> None:
        super().__init__(Workbench(study), sites)
        self._initial = self._bench.adapted.read()

    def run(self, journal: Journal, observe: Observer) -> None:
        """See ``Engine``."""
        rounds.run(self._bench.study, self, self._initial, journal, observe)

    def baselines(self, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """One after another."""
        for name in wanted:
            yield name, baseline(self._bench, self._sites, self._initial, name)

    def peak_mb(self) -> float:
        """Of this process."""
        return own_peak_mb()

    def close(self) -> None:
        """Nothing to let go of."""


class Parallel:
    """Sites dealt out to worker processes, each to one for good; they share a backbone until they change it."""

    name = "inprocess"

    def __init__(self, study: Study, sites: Mapping[str, Site], workers: int) -> None:
        bench = Workbench(study)
        self._study, self._initial = study, bench.adapted.read()
        self._size = {name: site.data.sizes()["train"][0] for name, site in sites.items()}
        self._dealt = deal(self._size, workers)
        on_cpu = bench.device.type == "cpu"
        begin = partial(_begin, study, dict(sites), self._initial, bench if on_cpu else None)
        self._crew = Crew(begin, workers, "fork" if on_cpu else "spawn")

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
        queues = [[Job(f"baseline:{name}") for name in names] for names in deal(load, len(self._dealt))]
        for job, result in self._crew.run(queues):
            yield job.what.removeprefix("baseline:"), result

    def peak_mb(self) -> float:
        """Summed over this process and the workers; pages that they share count in each."""
        queues = [[Job("peak")] for _ in self._dealt]
        return own_peak_mb() + sum(float(peak) for _, peak in self._crew.run(queues))

    def close(self) -> None:
        """Ends the workers."""
        self._crew.close()


def engine(study: Study, sites: Mapping[str, Site], workers: int) -> Sequential | Parallel:
    """One process, or as many as asked (never more than there are sites)."""
    workers = min(workers, len(sites))
    return Sequential(study, sites) if workers <= 1 else Parallel(study, sites, workers)


def own_peak_mb() -> float:
    """Peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _begin(study: Study, sites: Mapping[str, Site], initial: Tensors, bench: Workbench | None) -> Work:
    bench = bench or Workbench(study)

    def work(what: str, message: bytes) -> Any:
        if what == "peak":
            return own_peak_mb()
        if what.startswith("baseline:"):
            return baseline(bench, sites, initial, what.removeprefix("baseline:"))
        return answer(bench, sites[what], message)

    return work
