"""The round loop: the same for sites in this process, over Flower's simulation, and between hospitals."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from polyclinic.core import seeds
from polyclinic.core.errors import DivergedError, QuorumError, RunError, UpdateError
from polyclinic.core.ledger import fingerprint
from polyclinic.core.messages import Instruction, encode_instruction
from polyclinic.core.privacy import told
from polyclinic.core.statistics.shift import SHIFT_SEED, Acquisition, FeatureMoments, Intensities, KernelMeans, Labels
from polyclinic.core.study import Study
from polyclinic.core.update import Manifest, Tensors, Update, digest
from polyclinic.core.version import VERSION
from polyclinic.server import monitor, shift
from polyclinic.server.central import OWN, Charge, Mechanism
from polyclinic.server.journal import Journal, State
from polyclinic.server.receive import KNOWN, Delivery, Receiver
from polyclinic.strategies.contract import Step, Strategy


class Sites(Protocol):
    """The one seam between the loop and the world."""

    def names(self) -> Sequence[str]:
        """Sites that can be asked, sorted."""

    def send(self, message: bytes, to: Sequence[str], deadline: float) -> Iterator[Delivery]:
        """Sends to each and yields what comes back, in any order; ends at the latest after ``deadline`` seconds."""


@dataclass(frozen=True)
class Event:
    """Something that an onlooker may want to show: "round", "site" or "done"."""

    kind: str
    round: int
    site: str = ""
    failure: str = ""
    sites: tuple[str, ...] = ()
    record: dict[str, Any] | None = None


Observer = Callable[[Event], None]


def run(study: Study, sites: Sites, initial: Tensors, journal: Journal, observe: Observer) -> State:
    """Runs what is left of a study to its end and returns its last state; a resumed run gives the same bits.

    Raises:
        QuorumError: fewer good replies than the quorum; the run can be resumed.
        DivergedError: the server step left the bounds.
        RunError: no site can be asked, or the journal cannot be written.
    """
    state = train(study, sites, initial, journal, observe)
    if journal.result("final") is None:
        judge(study, sites, state, journal, observe)
    return state


def train(
    study: Study, sites: Sites, initial: Tensors, journal: Journal, observe: Observer, *, noised: bool = True
) -> State:
    """All rounds that are left.

    ``noised``: whether what the study says of noise at the server is done; not for a comparison that nobody releases.
    """
    strategy: Strategy[Any] = study.strategy.build()  # type: ignore[attr-defined]
    step: Step = study.server_step.build()  # type: ignore[attr-defined]
    mechanism = Mechanism.of(study) if noised else None
    state = journal.state() or _begin(study, initial, step, journal, mechanism)
    while state.round < study.rounds.count:
        state = one_round(study, sites, state, strategy, step, journal, observe, mechanism)
    return state


def one_round(
    study: Study,
    sites: Sites,
    state: State,
    strategy: Strategy[Any],
    step: Step,
    journal: Journal,
    observe: Observer,
    mechanism: Mechanism | None = None,
) -> State:
    """One round: choose, send, fold each reply as it comes and drop it, finish, commit."""
    started, number = time.monotonic(), state.round + 1
    if mechanism is None:  # 1 choose sites
        chosen = choose(study, sites.names(), number)
    else:
        chosen, strategy = mechanism.choose(sites.names(), number, journal), mechanism.strategy(state.memory)
    instruction = instruct(study, journal.meta["run"], state, fit=True, describe=untold(study, journal, chosen))
    message = encode_instruction(instruction)
    observe(Event("round", instruction.round, sites=chosen))

    receiver = Receiver(study, instruction, chosen, strategy.expects(state.tensors), blanks(study))
    fold = strategy.init(state.tensors)
    for delivery in sites.send(message, chosen, study.rounds.deadline) if chosen else ():  # 2 send, 3 at the site
        reply = receiver.check(delivery)  # 4 receive: verify, add, drop
        if reply is not None and reply.update is not None:
            try:
                fold = strategy.add(fold, bounded(reply.update, study.rounds.weight_cap))
            except UpdateError as refusal:
                receiver.undo(delivery.site, str(refusal))
        observe(Event("site", instruction.round, delivery.site, receiver.excluded.get(delivery.site, "")))
    receiver.close()
    if mechanism is None or not mechanism.terms.secret:
        demand_quorum(study, receiver, journal)

    after = finished(step, state, strategy.finish(fold), mechanism, journal)  # 5 finish
    record = monitor.round_record(receiver, len(message) * len(chosen), time.monotonic() - started)
    record |= {"base": instruction.base, "result": digest(after.tensors)}
    record |= {"shift": shift.renewed(journal, receiver.told())}
    charge = Charge() if mechanism is None else mechanism.charge(state, journal)
    record |= charge.record
    entries = [*charge.entries, ("round", receiver.entry(record))]
    journal.commit(state=after, record=record, told=receiver.told(), entries=entries, keys=charge.keys)  # 6
    observe(Event("done", instruction.round, record=record))
    return after


def judge(study: Study, sites: Sites, state: State, journal: Journal, observe: Observer) -> dict[str, Any]:
    """Judges the final state at every site, on validation and test images, and commits what was found."""
    chosen = tuple(sites.names())
    instruction = instruct(study, journal.meta["run"], state, fit=False, describe=untold(study, journal, chosen))
    message = encode_instruction(instruction)
    observe(Event("round", instruction.round, sites=chosen))
    receiver = Receiver(study, instruction, chosen, None, blanks(study))
    for delivery in sites.send(message, chosen, study.rounds.deadline):
        receiver.check(delivery)
        observe(Event("site", instruction.round, delivery.site, receiver.excluded.get(delivery.site, "")))
    receiver.close()
    demand_quorum(study, receiver, journal)
    final = monitor.final_record(study, receiver, len(message) * len(chosen))
    entry = receiver.entry({"round": instruction.round, "base": instruction.base}) | {"final": fingerprint(final)}
    journal.commit(results={"final": final}, told=receiver.told(), entries=[("evaluation", entry)])
    return final


def _begin(study: Study, initial: Tensors, step: Step, journal: Journal, mechanism: Mechanism | None) -> State:
    own = {} if mechanism is None else mechanism.start()
    state = State(0, initial, {**step.start(initial), **own})
    body = {"study": study.digest, "initial": digest(initial), **journal.meta}
    journal.commit(state=state, entries=[("start", body)])
    return state


def finished(step: Step, state: State, aggregate: Tensors, mechanism: Mechanism | None, journal: Journal) -> State:
    """The state after a round: noised, if it must be, before the server step sees anything of it.

    Raises:
        DivergedError: the server step left the bounds; a noised round is then charged, as that tells of it.
    """
    number = state.round + 1
    own: Tensors = {}
    if mechanism is not None:
        own, aggregate = mechanism.noised(state, aggregate)
    theirs = {name: array for name, array in state.memory.items() if not name.startswith(OWN)}
    memory, tensors = step.apply(theirs, state.tensors, aggregate)
    try:
        demand_sound(tensors, number)
    except DivergedError:
        if mechanism is not None:
            lost = mechanism.charge(state, journal, lost=True)
            journal.commit(entries=lost.entries, keys=lost.keys)
        raise
    return State(number, tensors, {**memory, **own})


def untold(study: Study, journal: Journal, chosen: Sequence[str]) -> bool:
    """Whether sites are asked how their data are spread: while one has not told, or always, where that would tell a
    site whether others were drawn who had not told before."""
    hidden = study.central is not None and study.central.secret
    return hidden or not journal.told_by().issuperset(chosen)


def choose(study: Study, names: Sequence[str], round_number: int) -> tuple[str, ...]:
    """The sites of a round: all, or as many as the study says, drawn from its seed."""
    if not names:
        raise RunError("no site can be asked")
    wanted = study.rounds.sites_per_round
    if wanted is None or wanted >= len(names):
        return tuple(sorted(names))
    drawn = seeds.generator(study.study.seed, "sites", round_number).choice(sorted(names), wanted, replace=False)
    return tuple(sorted(str(name) for name in drawn))


def instruct(study: Study, run_name: str, state: State, *, fit: bool, describe: bool) -> Instruction:
    """What every site of the next round is asked; ``describe``: also how its data are spread."""
    number = state.round + 1
    return Instruction(
        study=study.digest,
        run=run_name,
        round=number,
        nonce=f"{seeds.derive(study.digest, run_name, number):016x}",
        base=digest(state.tensors),
        fit=fit,
        evaluate=("val",) if fit else ("val", "test"),
        describe=describe,
        version=VERSION,
        tensors=state.tensors,
    )


def blanks(study: Study) -> dict[str, Any]:
    """What the statistics of a round must be able to merge with: the study decides it, not who tells first."""
    if study.privacy is not None:
        return dict(told.blanks(study))
    task: Any = study.task
    monitoring = study.monitoring
    outcome = task.blank(bins=monitoring.bins, score_bins=monitoring.score_bins)
    rows = np.zeros((0, monitoring.feature_dims))
    labels = np.zeros(0 if task.exclusive else (0, len(task.classes)), np.int64)
    empty: dict[str, Any] = {
        "outcome": outcome,
        "features": FeatureMoments.of(rows),
        "kernel": KernelMeans.of(rows, monitoring.kernel_features, SHIFT_SEED),
        "intensities": Intensities.of(np.zeros((0, 1, 1), np.uint8), ()),
        "labels": Labels.of(labels, (), task.classes),
        "acquisition": Acquisition.of((), ()),
    }
    return {name: empty[kind] for name, kind in KNOWN.items()}


def demand_sound(tensors: Tensors, number: int) -> None:
    """Refuses a global state that no site could answer to."""
    try:
        Manifest.of(tensors).check(tensors)
    except UpdateError as failure:
        remedy = "lower server_step.learning_rate"
        raise DivergedError(f"round {number}: the server step diverged: {failure}", remedy=remedy) from failure


def bounded(update: Update, cap: int) -> Update:
    """The update with its weight cut to what the study allows one site to count."""
    return Update(update.site, min(update.weight, cap), update.tensors)


def demand_quorum(study: Study, receiver: Receiver, journal: Journal) -> None:
    """Ends the run, resumably and on the ledger, if too few replies were good."""
    needed = math.ceil(study.rounds.quorum * len(receiver.chosen) - 1e-9)  # 0.55 × 100 is a little above 55 in floats
    if len(receiver.accepted) >= needed:
        return
    reasons = "; ".join(f"{site}: {why}" for site, why in sorted(receiver.excluded.items()))
    number = receiver.instruction.round
    journal.commit(entries=[("paused", {"round": number, "needed": needed, "excluded": dict(receiver.excluded)})])
    raise QuorumError(
        f"round {number}: {len(receiver.accepted)} of {len(receiver.chosen)} sites answered well, {needed} are needed",
        where=reasons,
        remedy="mend what is named and resume; nothing is lost",
    )
