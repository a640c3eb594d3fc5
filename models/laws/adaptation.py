"""The laws of adaptations."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyclinic.core.config import Method
from polyclinic.core.errors import StudyError
from polyclinic.core.laws import hold
from polyclinic.core.study import Study
from polyclinic.core.update import digest
from polyclinic.models.adaptation import Start, Trained
from polyclinic.models.contracts import Batch, Views
from polyclinic.models.laws.made_up import alike, begun, generator, outputs, same
from polyclinic.models.network import Adapted, build

RATE = 0.05


def check_adaptation(study: Study, targets: Tensor | None = None) -> None:
    """The last adaptation of the study's chain: what it says of itself, and what it does to a model.

    Args:
        study: whose chain ends with the plugin.
        targets: of eight images, where the task's are no labels.

    Raises:
        AssertionError: a law is broken.
    """
    method = study.adaptation[-1]
    _check_facts(method)
    adapted = _check_start(study)
    _check_what_travels(study, adapted)
    start = begun(study, adapted, targets)
    _check_data(study, adapted, start)
    _check_training(study, adapted, start)


def _check_facts(method: Any) -> None:
    facts = method.facts
    hold(isinstance(method, Method), "it is no Method")
    hold(facts is not None, "it says nothing of itself: give its class 'facts'")
    name = method.method
    for key in ("families", "paper", "because", "travels", "personal", "backbones"):
        hold(bool(getattr(facts, key)), f"the facts of '{name}' lack '{key}'")
    hold(method.build().families == set(facts.families), f"'{name}' is built for other families than its facts name")
    hold(method.explain().strip().endswith("."), f"explain() of '{name}' is no sentence")
    hold(type(method).__doc__ is not None, f"'{name}' has no docstring")


def _check_start(study: Study) -> Adapted:
    """Made from the seed alone, and beginning as it says."""
    before = torch.get_rng_state()
    one, other = build(study), build(study)
    hold(torch.equal(before, torch.get_rng_state()), "fit_in draws from the global generator")
    hold(same(one.network.state_dict(), other.network.state_dict()), "the same seed gives another model")
    facts = study.adaptation[-1].facts
    assert facts is not None, "checked before"
    if facts.identity and (without := _without(study)) is not None:
        begins = alike(outputs(one.network, study), outputs(without.network, study))
        hold(begins, "the model does not begin as the frozen one")
    return one


def _check_what_travels(study: Study, adapted: Adapted) -> None:
    """What the facts say, no more and no less; what is read is that, and it comes back as it was."""
    method, without = study.adaptation[-1], _without(study)
    facts = method.facts
    assert facts is not None, "checked before"
    if without is not None:
        more = sorted(set(adapted.travelling) - set(without.travelling))
        hold(not more or facts.travels != "nothing", f"the facts say that nothing travels, and '{more[:1]}' does")
        told = not method.adapts or facts.travels in ("the head", "nothing")
        hold(bool(more) or told, f"the facts say that {facts.travels} travels, and nothing does")
        own = set(adapted.personal) - set(without.personal)
        hold(not own or facts.personal != "nothing", "the facts say that nothing is personal, and something is")
    hold(not set(adapted.personal) & set(adapted.travelling), "what is a site's own travels")
    state = adapted.read()
    hold(tuple(state) == adapted.travelling, "read() gives something else than what travels")
    hold(all(array.dtype == np.float32 for array in state.values()), "something else than float32 travels")
    adapted.write(state)
    hold(digest(adapted.read()) == digest(state), "what is written is not what is read")


def _check_data(study: Study, adapted: Adapted, start: Start) -> None:
    """Selection, weights and batches follow from the generator and keep their form."""
    chained = study.adaptation[-1].build()  # type: ignore[attr-defined]
    if chained.select is not None:
        one, again = (chained.select(start, generator()) for _ in range(2))
        hold(torch.equal(one, again), "select() gives other images from the same generator")
        hold(bool(torch.isin(one, start.labelled).all()), "select() chooses images that it may not choose from")
        hold(torch.equal(one, one.unique()), "what select() chooses is not sorted, or an image stands twice")
    if chained.weigh is not None:
        weights = chained.weigh(start)
        sound = weights.shape == start.labelled.shape and bool((weights >= 0).all()) and float(weights.sum()) > 0
        hold(sound, "weigh() gives no weight for every labelled image")
    given = Views(start.pool.pixels.float() / 255, start.pool.targets)
    one, again = (
        chained.batch(adapted.network, start.task, Views(given.pixels.clone(), given.target.clone()), generator())
        for _ in range(2)
    )
    repeated = torch.equal(one.pixels, again.pixels) and torch.equal(one.target, again.target)
    hold(repeated, "batch() gives other views from the same generator")
    hold(float(one.pixels.min()) >= 0.0 and float(one.pixels.max()) <= 1.0, "batch() gives pixels beyond [0, 1]")
    hold(one.pixels.shape[1:] == given.pixels.shape[1:], "batch() gives pictures of another shape")
    hold(len(one.pixels) == len(one.target), "batch() gives other numbers of pictures and targets")


def _check_training(study: Study, adapted: Adapted, start: Start) -> None:
    """What is frozen keeps its bits, copies are apart, and the start can be had back."""
    network, state, frozen = adapted.network, adapted.read(), _frozen(adapted)
    first, twin = outputs(network, study), copy.deepcopy(network)
    for number in (1, 2):
        with adapted.resting(number):
            hold(bool(adapted.parameters()), f"nothing trains in round {number}")
    with adapted.resting(start.round):
        _train(adapted, start)
    hold(same(frozen, _frozen(adapted)), "training moves something that neither travels nor is a site's own")
    trained, idle = adapted.read(), [name for name in state if _rests(adapted, name, start.round)]
    moved = [name for name in idle if not np.array_equal(trained[name], state[name])]
    hold(not moved, f"training moves {moved[:1]}, which is a constant, the server's, or rests in the round")
    hold(torch.equal(outputs(twin, study), first), "training a model changes a copy of it")
    method: Any = study.adaptation[-1]
    for name, kept in method.build().settle(network, start, Trained(RATE, 2)).items():
        hold(isinstance(kept, Tensor) and not kept.requires_grad, f"settle() keeps '{name}', which is no plain tensor")
        hold(name.startswith(method.method), f"settle() keeps '{name}', whose name does not begin with the method's")
    hold(digest(adapted.read()) != digest(state), "a round of training moves nothing that travels")
    adapted.write(state)
    hold(torch.equal(outputs(network, study), first), "writing a state over another leaves something of that")


def _rests(adapted: Adapted, name: str, number: int) -> bool:
    chained = adapted.chain
    return chained.constant(name) or chained.given(name) or chained.rests(name, number)


def _train(adapted: Adapted, start: Start) -> None:
    """Two steps of the chain's objective, which must be a scalar."""
    network = adapted.network
    objective = adapted.chain.objective(lambda model, batch: start.task.loss(batch.output, batch.target), start)
    optimiser = torch.optim.SGD(adapted.parameters(), lr=RATE)
    with adapted.training():
        for _ in range(2):
            given = Views(start.pool.pixels.float() / 255, start.pool.targets)
            views = adapted.chain.batch(network, start.task, given, start.generator)
            encoded = network.encode(views.pixels)
            output = network.decide(encoded)
            loss = objective(network, Batch(views.pixels, encoded.pooled.float(), output.float(), views.target))
            hold(loss.ndim == 0 and bool(loss.isfinite()), "the objective is no finite scalar")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()


def _frozen(adapted: Adapted) -> Mapping[str, Tensor]:
    own = {*adapted.travelling, *adapted.personal}
    everything = adapted.network.state_dict()
    return {name: value.clone() for name, value in everything.items() if name not in own}


def _without(study: Study) -> Adapted | None:
    """The same without the last adaptation; None where that is no study at all."""
    try:
        return build(study.model_copy(update={"adaptation": study.adaptation[:-1]}))
    except StudyError:
        return None
