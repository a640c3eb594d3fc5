"""What must hold of any statistic, strategy and server step, whoever wrote it: plain functions for any test runner.

Each raises an AssertionError that says in a sentence which law is broken. Those of adaptations, tasks and backbones are
in ``polyclinic.models.laws``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import permutations
from operator import add
from typing import TYPE_CHECKING, Any

import numpy as np

from polyclinic.core.errors import UpdateError
from polyclinic.core.update import Manifest, Tensors, Update, digest

if TYPE_CHECKING:
    from polyclinic.core.statistics.monoid import Statistic


def hold(holds: bool | np.bool_, sentence: str) -> None:
    """Raises AssertionError with the sentence unless it ``holds``."""
    if not holds:
        raise AssertionError(sentence)


def check_statistic(zero: Statistic, samples: Sequence[Statistic]) -> None:
    """A commutative monoid of integers that travels and refuses what cannot be.

    Args:
        zero: of no patient.
        samples: three or more of one configuration, of different patients.
    """
    hold(len(samples) >= 3, "three samples or more are needed to tell whether grouping matters")
    name = zero.name
    hold(zero.patients == 0, f"the zero of '{name}' has patients")
    hold(min(sample.patients for sample in samples) > 0, f"a sample of '{name}' has no patient")
    total: Any = reduce(add, samples)
    hold(total.patients == sum(one.patients for one in samples), f"adding '{name}' does not add the patients")
    for sample in samples:
        hold(sample + zero == sample and zero + sample == sample, f"adding its zero changes '{name}'")
    for a, b, c in permutations(samples[:3]):
        hold(a + b == b + a, f"adding '{name}' depends on the order")
        hold((a + b) + c == a + (b + c), f"adding '{name}' depends on the grouping")
    for order in (samples[::-1], [*samples[1:], samples[0]]):
        hold(reduce(add, order) == total, f"adding '{name}' depends on the order")
    for one in (zero, *samples, total):
        _check_travel(one)
    _check_refusals(samples[0])


def check_strategy(strategy: Any, reference: Tensors, updates: Sequence[Update]) -> None:
    """A fold: the same bits in any order and any grouping, from updates that ``expects`` accepts and nobody changes.

    Args:
        strategy: what a configuration's ``build()`` gives.
        reference: a global state.
        updates: three or more.
    """
    hold(len(updates) >= 3, "three updates or more are needed to tell whether grouping matters")
    expected = strategy.expects(reference)
    hold(isinstance(expected, Manifest), "expects() gives no Manifest")
    for update in updates:
        expected.check(update.tensors)
    hold(isinstance(strategy.streams, bool), "'streams' does not say whether the state grows with the sites")
    before = [digest(update.tensors) for update in updates], digest(reference)

    def folded(some: Sequence[Update]) -> Any:
        return reduce(strategy.add, some, strategy.init(reference))

    result = strategy.finish(folded(updates))
    for order in (updates[::-1], [*updates[1:], updates[0]]):
        hold(digest(strategy.finish(folded(order))) == digest(result), "the result depends on the order of updates")
    for cut in range(len(updates) + 1):
        merged = strategy.merge(folded(updates[:cut]), folded(updates[cut:]))
        hold(digest(strategy.finish(merged)) == digest(result), "the result depends on how updates are grouped")
    hold(
        before == ([digest(update.tensors) for update in updates], digest(reference)),
        "an update was changed by adding it",
    )
    _check_state(result, reference, "finish()")
    _refused("finish() gives a result of no update", strategy.finish, strategy.init(reference))


def check_step(step: Any, reference: Tensors, aggregates: Sequence[Tensors]) -> None:
    """A server step: a pure rule over named tensors, whose memory a journal can keep.

    Args:
        step: what a configuration's ``build()`` gives.
        reference: the global state before round 1.
        aggregates: of the rounds, in order.
    """
    states = []
    for _ in range(2):
        memory, state = step.start(reference), reference
        for aggregate in aggregates:
            given = digest(memory), digest(state), digest(aggregate)
            memory, after = step.apply(memory, state, aggregate)
            hold(given[1:] == (digest(state), digest(aggregate)), "apply() changes what it is given")
            _check_arrays(memory, "the step's memory")
            _check_state(after, reference, "apply()")
            state = after
        states.append((digest(memory), digest(state)))
    hold(states[0] == states[1], "the same rounds give other bits when they are run again")


def _check_travel(one: Any) -> None:
    """A statistic is what its fields say, and they are JSON of integers and words."""
    told = one.fields()
    for field, value in told.items():
        hold(_plain(value), f"field '{field}' of '{one.name}' is neither integers, nor lists of them, nor a word")
    again = type(one).from_fields(json.loads(json.dumps(told)))
    hold(again == one and again.fields() == told, f"'{one.name}' is not the same after travelling")


def _check_refusals(one: Any) -> None:
    """What is damaged on its way is refused, or a statistic again; never another error."""
    told, read, name = one.fields(), type(one).from_fields, one.name
    _refused(f"'{name}' takes a field that it does not have", read, told | {"beyond": 1})
    _refused(f"'{name}' takes fewer than no patients", read, told | {"patients": -1})
    wrong: tuple[Any, ...] = ({}, None, 1.5, [["x"]], [[1], [1, 2]], True)
    for field in told:
        _refused(f"'{name}' is made without '{field}'", read, {key: told[key] for key in told.keys() - {field}})
        for value in wrong:
            _refused(f"'{name}' takes {value!r} for '{field}'", read, told | {field: value})
    for field, damaged in _damages(told):
        try:
            read(told | {field: damaged})
        except UpdateError:
            continue
        except Exception as failure:
            raise AssertionError(f"'{name}' fails over a damaged '{field}': {failure!r}") from failure


def _damages(told: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(field, another value of its own type)."""
    for field, value in told.items():
        if isinstance(value, str):
            yield from ((field, ""), (field, "x" * 10_000))
        elif isinstance(value, int):
            yield from ((field, number) for number in (0, -1, value + 1, 2**62))
        else:
            array = np.array(value)
            yield from ((field, other.tolist()) for other in (-array, array + 1, array[:-1], array[None]))


def _refused(sentence: str, attempt: Callable[..., object], *given: Any) -> None:
    """Raises AssertionError unless the attempt raises UpdateError."""
    try:
        attempt(*given)
    except UpdateError:
        return
    except Exception as failure:
        raise AssertionError(f"{sentence}, or fails over it: {failure!r}") from failure
    raise AssertionError(sentence)


def _plain(value: Any) -> bool:
    return all(map(_plain, value)) if isinstance(value, list) else type(value) in (int, str)


def _check_arrays(tensors: Tensors, what: str) -> None:
    for name, array in tensors.items():
        hold(isinstance(array, np.ndarray), f"'{name}' in {what} is no array")
        hold(np.isfinite(array).all(), f"'{name}' in {what} is not finite")


def _check_state(state: Tensors, reference: Tensors, what: str) -> None:
    """Everything of the reference is there in its shape; more may be (a residual, say)."""
    _check_arrays(state, f"what {what} gives")
    for name, array in reference.items():
        hold(name in state, f"{what} loses '{name}'")
        sound = state[name].shape == array.shape and state[name].dtype == np.float32
        hold(sound, f"{what} gives '{name}' in another shape or type")
