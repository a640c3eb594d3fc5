"""``chain`` is a monoid: an identity, associative, in order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from polyclinic.models.contracts import Adaptation, Batch, PeftForm, Start, chain
from polyclinic.models.tasks.classification import Classification


def part(letter: str) -> Adaptation:
    """Leaves its letter wherever it comes by; the operations of two parts do not commute."""
    number = ord(letter)

    def fit_in(model: nn.Module, generator: torch.Generator) -> None:
        drawn = torch.rand(1, generator=generator)
        model.register_buffer(f"{letter}{len(list(model.buffers()))}", drawn)

    return Adaptation(
        families=frozenset({letter}),
        fit_in=fit_in,
        travels=lambda name: letter in name,
        receive=lambda model, extra: frozenset(name for name in extra if letter in name),
        chosen=lambda model: frozenset({f"{letter}!"}),
        constant=lambda name: name == f"{letter}!",
        peft=(lambda model, tensors: PeftForm({}, {}, frozenset({letter})),),
        objective=lambda loss, start: lambda m, b: 2 * loss(m, b) + number * start.anchor["w"].sum(),
        batch=lambda pixels, generator: 2 * pixels + number * torch.rand(pixels.shape, generator=generator),
    )


def effect(adaptation: Adaptation) -> tuple[object, ...]:
    """Everything that an adaptation does, observed."""
    model, generator = nn.Module(), torch.Generator().manual_seed(0)
    adaptation.fit_in(model, generator)
    start = Start({"w": torch.ones(1)}, lambda pixels: pixels, Classification(), torch.zeros(1))
    loss = adaptation.objective(lambda m, b: (b.output - b.target).sum(), start)
    extra = {"a.x": torch.ones(1), "b.x": torch.ones(1), "z.x": torch.ones(1)}
    return (
        sorted(adaptation.families),
        {name: float(drawn) for name, drawn in model.named_buffers()},
        [adaptation.travels(name) for name in ("a", "b", "c", "z")],
        sorted(adaptation.receive(model, extra)),
        float(loss(model, Batch(torch.ones(1), torch.tensor([3.0]), torch.tensor([1.0])))),
        adaptation.batch(torch.ones(2), generator).tolist(),
        [sorted(describe(model, {}).covers) for describe in adaptation.peft],
        sorted(adaptation.chosen(model)),
        [adaptation.constant(name) for name in ("a!", "b!", "c!", "a")],
    )


def test_the_empty_chain_is_the_identity() -> None:
    empty = chain()
    assert effect(empty) == ([], {}, [False] * 4, [], 2.0, [1.0, 1.0], [], [], [False] * 4)
    a = part("a")
    assert effect(chain(a)) == effect(a) == effect(chain(empty, a)) == effect(chain(a, empty))


def test_grouping_changes_nothing_and_order_does() -> None:
    a, b, c = map(part, "abc")
    flat = effect(chain(a, b, c))
    assert flat == effect(chain(chain(a, b), c)) == effect(chain(a, chain(b, c)))
    assert flat[0] == ["a", "b", "c"]
    assert flat[2:4] == ([True, True, True, False], ["a.x", "b.x"])
    assert flat[4] == 2 * (2 * (2 * 2.0 + ord("a")) + ord("b")) + ord("c")  # the first is the innermost
    swapped = effect(chain(b, a, c))
    assert swapped[0] == flat[0]
    assert all(one != other for one, other in zip((flat[1], *flat[4:7]), (swapped[1], *swapped[4:7]), strict=True))


def test_batches_go_through_the_parts_in_order() -> None:
    def step(change: float) -> Adaptation:
        def batch(pixels: Tensor, generator: torch.Generator) -> Tensor:
            return pixels * 10 + change

        return Adaptation(families=frozenset({"data"}), batch=batch)

    both = chain(step(1), step(2))
    assert both.families == {"data"}
    assert both.batch(torch.zeros(1), torch.Generator()).item() == pytest.approx(12.0)
