"""``chain`` is a monoid: an identity, associative, in order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polyclinic.core.study import Data
from polyclinic.models.adaptation import Adaptation, Memory, PeftForm, Trained
from polyclinic.models.chain import chain
from polyclinic.models.contracts import Batch, Views
from polyclinic.models.tasks.classification import Classification
from tests.models.begun import begun


def part(letter: str) -> Adaptation:
    """Leaves its letter wherever it comes by; the operations of two parts do not commute."""
    number = ord(letter)

    def fit_in(model: nn.Module, generator: torch.Generator) -> None:
        drawn = torch.rand(1, generator=generator)
        model.register_buffer(f"{letter}{len(list(model.buffers()))}", drawn)

    return Adaptation(
        families=frozenset({letter}),
        fit_in=fit_in,
        recast=lambda encoder, data: (encoder, letter),  # type: ignore[arg-type, return-value]
        travels=lambda name: letter in name,
        receive=lambda model, extra: frozenset(name for name in extra if letter in name),
        chosen=lambda model: frozenset({f"{letter}!"}),
        constant=lambda name: name == f"{letter}!",
        peft=(lambda model, tensors: PeftForm({}, {}, frozenset({letter})),),
        objective=lambda loss, start: lambda m, b: 2 * loss(m, b) + number * start.anchor["w"].sum(),
        batch=lambda model, task, views, generator: Views(
            2 * views.pixels + number * torch.rand(views.pixels.shape, generator=generator), views.target + number
        ),
        still=lambda name: name == f"{letter}?",
        given=lambda name: name == f"{letter}<",
        rests=lambda name, number: name == letter and number % 2 == 0,
        personal=lambda model: frozenset({f"{letter}.own"}),
        select=lambda start, generator: start.labelled[int(number) % 2 :],
        weigh=lambda start: torch.full((len(start.labelled),), 1.0 + number),
        settle=lambda model, start, trained: {f"{letter}/kept": torch.tensor(number * trained.steps)},
    )


def effect(adaptation: Adaptation) -> tuple[object, ...]:
    """Everything that an adaptation does, observed."""
    model, generator = nn.Module(), torch.Generator().manual_seed(0)
    adaptation.fit_in(model, generator)
    start = begun(anchor={"w": torch.ones(1)}, targets=torch.zeros(5, dtype=torch.int64))
    kept: Memory = adaptation.settle(model, start, Trained(0.1, 3))
    views = adaptation.batch(model, Classification(), Views(torch.ones(2), torch.zeros(1)), generator)
    loss = adaptation.objective(lambda m, b: (b.output - b.target).sum(), start)
    extra = {"a.x": torch.ones(1), "b.x": torch.ones(1), "z.x": torch.ones(1)}
    return (
        sorted(adaptation.families),
        {name: float(drawn) for name, drawn in model.named_buffers()},
        [adaptation.travels(name) for name in ("a", "b", "c", "z")],
        sorted(adaptation.receive(model, extra)),
        float(loss(model, Batch(torch.ones(1), torch.ones(1), torch.tensor([3.0]), torch.tensor([1.0])))),
        views.pixels.tolist(),
        [sorted(describe(model, {}).covers) for describe in adaptation.peft],
        sorted(adaptation.chosen(model)),
        [adaptation.constant(name) for name in ("a!", "b!", "c!", "a")],
        views.target.tolist(),
        [adaptation.still(name) for name in ("a?", "b?", "a")],
        [adaptation.given(name) for name in ("a<", "b<", "a")],
        [adaptation.rests(name, number) for name in ("a", "b", "z") for number in (1, 2)],
        sorted(adaptation.personal(model)),
        None if adaptation.select is None else adaptation.select(start, generator).tolist(),
        None if adaptation.weigh is None else adaptation.weigh(start).tolist(),
        {name: float(value) for name, value in kept.items()},
        adaptation.recast((), Data()),  # type: ignore[arg-type]
    )


def test_the_empty_chain_is_the_identity() -> None:
    empty = chain()
    nothing = ([], {}, [False] * 4, [], 2.0, [1.0, 1.0], [], [], [False] * 4)
    assert effect(empty) == (*nothing, [0.0], [False] * 3, [False] * 3, [False] * 6, [], None, None, {}, ())
    a = part("a")
    assert effect(chain(a)) == effect(a) == effect(chain(empty, a)) == effect(chain(a, empty))


def test_grouping_changes_nothing_and_order_does() -> None:
    a, b, c = map(part, "abc")
    flat = effect(chain(a, b, c))
    assert flat == effect(chain(chain(a, b), c)) == effect(chain(a, chain(b, c)))
    assert flat[0] == ["a", "b", "c"]
    assert flat[2:4] == ([True, True, True, False], ["a.x", "b.x"])
    assert flat[-1] == ((((), "a"), "b"), "c")
    assert flat[4] == 2 * (2 * (2 * 2.0 + ord("a")) + ord("b")) + ord("c")  # the first is the innermost
    swapped = effect(chain(b, a, c))
    assert swapped[0] == flat[0]
    assert all(one != other for one, other in zip((flat[1], *flat[4:7]), (swapped[1], *swapped[4:7]), strict=True))


def test_batches_go_through_the_parts_in_order() -> None:
    def step(change: float) -> Adaptation:
        def batch(model: nn.Module, task: object, views: Views, generator: torch.Generator) -> Views:
            return Views(views.pixels * 10 + change, views.target)

        return Adaptation(families=frozenset({"data"}), batch=batch)

    both = chain(step(1), step(2))
    assert both.families == {"data"}
    views = both.batch(nn.Module(), Classification(), Views(torch.zeros(1), torch.zeros(1)), torch.Generator())
    assert views.pixels.item() == pytest.approx(12.0)
