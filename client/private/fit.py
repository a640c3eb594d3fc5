"""A round's private training: Poisson samples of patients, one private step each, and the check before the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from polyclinic.client.private.step import Make, Portion, PrivateStep, Terms, brute_force
from polyclinic.core.errors import UpdateError
from polyclinic.core.privacy.noise import Chance, drawn
from polyclinic.core.seeds import derive
from polyclinic.models.adaptation import Pool, Start
from polyclinic.models.contracts import Objective, Task, Views
from polyclinic.models.network import Adapted

CLOSE = 1e-4
"""Most that a gradient may differ from brute force's, relative to its largest number (float32 sums differ by 1e-6)."""
HANDFUL = 3
"""Patients with whom the step checks itself: one picture, two, and one again."""


@dataclass(frozen=True)
class Private:
    """One round's private training at one site.

    Attributes:
        terms: of each step.
        rate: with which each unit is drawn in each step.
        steps: how many.
        unit: what is drawn: a patient, or an image by itself.
        pictures: of a drawn patient, so many at most: the first by name.
        portion: pictures that go through the model at once, if no patient has more.
        chance: what is drawn from.
        opacus: whether Opacus works out the gradients by picture, and not we: the reference that ours is compared with.
        make: how the step is made.
    """

    terms: Terms
    rate: float
    steps: int
    unit: Literal["patient", "image"]
    pictures: int
    portion: int
    chance: Chance
    opacus: bool = False
    make: Make = PrivateStep


def train(
    adapted: Adapted,
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    begun: Start,
    private: Private,
    generator: torch.Generator,
) -> int:
    """All steps of a round, in place; returns how many there were.

    Args:
        generator: for augmentation alone; who is drawn and what noise is added comes from ``private.chance``.

    Raises:
        UpdateError: the step's gradients are not what brute force gives, or some weight has none.
    """
    step = private.make(adapted.network, objective, private.terms, private.chance, opacus=private.opacus)
    demand_exact(step, adapted, objective, begun.pool, begun.task)
    units = held(begun.pool, begun.labelled, private)
    public = nobodys(begun.pool, begun.task, adapted.device)
    weights = dict(adapted.network.named_parameters())
    for _ in range(private.steps):
        chosen = [units[i] for i in drawn(private.chance, len(units), private.rate)]
        for name, gradient in step.gradient(portions(chosen, adapted, begun, private, generator), public).items():
            weights[name].grad = gradient
        optimiser.step()
    return private.steps


def held(pool: Pool, labelled: Tensor, private: Private) -> list[list[int]]:
    """Indices of each unit's pictures, the first ``pictures`` of a patient; units in the order of their first."""
    if private.unit == "image":
        return [[index] for index in labelled.tolist()]
    by_patient: dict[str, list[int]] = {}
    for index in labelled.tolist():
        by_patient.setdefault(pool.patients[index], []).append(index)
    return [indices[: private.pictures] for indices in by_patient.values()]


def portions(
    chosen: Sequence[Sequence[int]], adapted: Adapted, begun: Start, private: Private, generator: torch.Generator
) -> Iterator[Portion]:
    """The drawn units' pictures, as many whole units at a time as go through the model together.

    What chance does to a unit's pictures follows from the step and the unit alone: were one stream used up by all who
    are drawn, one patient more would change what the others' pictures become, and with them their gradients.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    filled, numbered = 0, []
    for unit in chosen:
        filled += len(unit)
        numbered.append((max(0, filled - 1) // private.portion, unit))
    for _, group in groupby(numbered, key=lambda pair: pair[0]):
        units = [unit for _, unit in group]
        views = [seen(unit, adapted, begun, derive(seed, unit[0])) for unit in units]
        whose = torch.tensor([number for number, unit in enumerate(units) for _ in unit], device=adapted.device)
        both = Views(torch.cat([one.pixels for one in views]), torch.cat([one.target for one in views]))
        yield Portion(both, whose, len(units), tuple(index for unit in units for index in unit))


def seen(unit: Sequence[int], adapted: Adapted, begun: Start, seed: int) -> Views:
    """A unit's pictures as the model is to see them, augmented and cropped by themselves."""
    generator = torch.Generator().manual_seed(seed)
    pixels = begun.pool.pixels[list(unit)].to(adapted.device).float().div_(255.0)
    channels = adapted.network.backbone.mean.shape[1]
    if pixels.shape[1] < channels:  # else one patient in colour would change what chance does to grey pictures
        pixels = pixels.expand(-1, channels, *pixels.shape[2:])
    given = Views(pixels, begun.pool.targets[list(unit)].to(adapted.device))
    return adapted.chain.batch(adapted.network, begun.task, begun.task.cropped(given, generator), generator)


def nobodys(pool: Pool, task: Task, device: torch.device, count: int = 1) -> Views:
    """Pictures of noise with made-up targets: of the shapes that the model sees, and otherwise nothing of the site."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand((count, *pool.pixels.shape[1:]), generator=generator)
    if pool.targets.is_floating_point():  # boxes
        target = torch.full((count, *pool.targets.shape[1:]), -1.0, dtype=pool.targets.dtype)
        target[:, 0] = torch.tensor([0.0, 0.25, 0.25, 0.5, 0.5], dtype=target.dtype)
    else:
        shape = (count, *pool.targets.shape[1:])
        target = (torch.arange(int(torch.tensor(shape).prod())) % 2).view(shape).to(pool.targets.dtype)
    return task.cropped(Views(pixels.to(device), target.to(device)), generator)


def demand_exact(step: PrivateStep, adapted: Adapted, objective: Objective, pool: Pool, task: Task) -> None:
    """Nothing, if the step's gradients are brute force's, on made-up pictures and at shaken weights.

    Shaken, since at the start of LoRA half of all gradients vanish, and a wrong one would not show. What an objective
    asks of the weights themselves must be the same whatever the pictures are: that is compared, too.

    Raises:
        UpdateError: naming the weight whose gradient differs.
    """
    views = nobodys(pool, task, adapted.device, HANDFUL + 1)
    portion = Portion(views, torch.tensor([0, 1, 1, 2], device=adapted.device), HANDFUL)
    weights = {name: w for name, w in adapted.network.named_parameters() if w.requires_grad}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(1)
    try:
        with torch.no_grad():
            for weight in weights.values():
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator).to(weight))
        own = step.of_nobody(Views(views.pixels[:1], views.target[:1]))
        ours, truth = step.by_patient(portion), brute_force(adapted.network, objective, portion)
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])
    longest = max(float(rows.abs().max()) for rows in truth.values())
    for name, rows in truth.items():
        apart = float((ours[name] + own.get(name, 0.0) - rows).abs().max())
        if not apart <= CLOSE * (float(rows.abs().max()) + 0.01 * longest):
            raise UpdateError(
                "the private step's gradient is not the one that a patient alone would give: nothing was trained",
                where=name,
                remedy='leave out what the study combines, or report it; step = "opacus" is another way',
            )
