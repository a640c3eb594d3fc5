"""The local loop: what one site does with its training images in one round."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from polyclinic.client.data.dataset import Images
from polyclinic.client.private.fit import Private, train
from polyclinic.core.errors import UpdateError
from polyclinic.core.seeds import derive
from polyclinic.core.study import Study, Training
from polyclinic.models.adaptation import Memory, Pool, Start, Trained
from polyclinic.models.contracts import Anchor, Batch, Objective, Task, Views
from polyclinic.models.network import Adapted, at_rest


def fit(
    adapted: Adapted,
    task: Task,
    images: Images,
    study: Study,
    site: str,
    round_number: int,
    anchor: Anchor,
    memory: Memory | None = None,
    frozen: Callable[[], nn.Module] | None = None,
    private: Private | None = None,
) -> Memory:
    """Trains what travels and what is personal, in place, from the state that ``anchor`` describes.

    Every random choice follows from (study seed, site, round), so that any engine gives the same bits.

    Args:
        memory: what this function returned when the site last trained in this run.
        frozen: gives the backbone as it was pretrained.
        private: how the private steps are taken; None for plain ones.

    Returns:
        What the site is to keep for its next round.

    Raises:
        UpdateError: the weights are no longer finite, or a private step's gradients are not exact.
    """
    training, chain = study.training, adapted.chain

    def drawn(what: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive(study.study.seed, what, site, round_number))

    begun = start(adapted, task, images, training, anchor, memory or {}, frozen, drawn("objective"), round_number)
    begun = replace(begun, seed=derive(study.study.seed, "site", site))
    if chain.select is not None:
        begun = replace(begun, labelled=chain.select(begun, drawn("select")))
    weights = None if chain.weigh is None else chain.weigh(begun)
    objective = chain.objective(lambda model, batch: task.loss(batch.output, batch.target), begun)
    rate, generator = learning_rate(training, round_number, study.rounds.count), drawn("fit")
    with adapted.resting(round_number):
        if private is None:
            steps = _train(adapted, objective, begun, weights, training, rate, generator)
        else:
            steps = train(adapted, objective, make_optimiser(adapted, training, rate), begun, private, generator)
    if not adapted.sound():
        raise UpdateError("training diverged", where=site, remedy="lower training.learning_rate")
    return chain.settle(adapted.network, begun, Trained(rate, steps))


def _train(
    adapted: Adapted,
    objective: Objective,
    begun: Start,
    weights: Tensor | None,
    training: Training,
    rate: float,
    generator: torch.Generator,
) -> int:
    """All steps of a round, and how many they were: none where no gradient trains anything."""
    if not adapted.parameters():
        return 0
    optimiser, steps = make_optimiser(adapted, training, rate), 0
    with adapted.training():
        for places in batches(len(begun.labelled), training, generator, weights):
            step(adapted, objective, optimiser, begun, begun.labelled[places], training, generator)
            steps += 1
    return steps


def step(
    adapted: Adapted,
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    begun: Start,
    chosen: Tensor,
    training: Training,
    generator: torch.Generator,
) -> None:
    """One step on the images at ``chosen``."""
    given = Views(scaled(begun.pool.pixels[chosen], adapted.device), begun.pool.targets[chosen].to(adapted.device))
    given = begun.task.cropped(given, generator)
    views = adapted.chain.batch(adapted.network, begun.task, given, generator)
    with autocast(training, adapted.device):
        encoded = adapted.network.encode(views.pixels)
        output = adapted.network.decide(encoded)
    loss = objective(adapted.network, Batch(views.pixels, encoded.pooled.float(), output.float(), views.target))
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if training.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(adapted.parameters(), training.clip_norm)
    optimiser.step()


def start(
    adapted: Adapted,
    task: Task,
    images: Images,
    training: Training,
    anchor: Anchor,
    memory: Memory,
    frozen: Callable[[], nn.Module] | None,
    generator: torch.Generator,
    round_number: int = 1,
) -> Start:
    """What an objective may know when a round begins.

    The global model shares the frozen weights of ``adapted``; what is personal in it stays as the round found it.
    """

    own = {name: tensor.to(adapted.device) for name, tensor in adapted.read_personal().items()}

    def of_anchor(pixels: Tensor, *, features: bool) -> Tensor:
        given = {"features": features}

        def called(seen: Tensor) -> Tensor:
            output: Tensor = torch.func.functional_call(adapted.network, {**anchor, **own}, (seen,), given)
            return output

        with torch.no_grad(), autocast(training, adapted.device), at_rest(adapted.network):
            output = called(pixels) if features else task.infer(called, pixels)
        return output.float()

    def of_frozen(pixels: Tensor) -> Tensor:
        assert frozen is not None, "no backbone as it was pretrained was given"
        with torch.no_grad(), autocast(training, adapted.device):
            output: Tensor = frozen()(pixels)
        return output.float()

    pool = Pool(torch.from_numpy(images.pixels), torch.from_numpy(images.targets), images.patients)
    return Start(
        anchor,
        partial(of_anchor, features=False),
        partial(of_anchor, features=True),
        of_frozen,
        task,
        pool,
        torch.arange(len(pool.pixels)),
        memory,
        generator,
        round_number,
    )


def batches(
    count: int, training: Training, generator: torch.Generator, weights: Tensor | None = None
) -> Iterator[Tensor]:
    """Indices of each batch of a round: shuffled epochs, the last batch of each as small as it is.

    With ``weights`` [count] an epoch is as many draws, with replacement, in proportion to them.
    """
    left = training.steps
    for _ in range(training.epochs or 1) if left is None else iter(int, 1):
        if weights is None:
            order = torch.randperm(count, generator=generator)
        else:
            order = torch.multinomial(weights, count, replacement=True, generator=generator)
        for chosen in order.split(training.batch_size):
            if left == 0:
                return
            left = None if left is None else left - 1
            yield chosen


def learning_rate(training: Training, round_number: int, rounds: int) -> float:
    """The rate of a round (1 … rounds): linear warm-up over rounds, then constant or half a cosine towards a tenth.

    As ``torch.optim.lr_scheduler.CosineAnnealingLR`` counts: the tenth would be reached in the round after the last.
    """
    if round_number <= training.warmup_rounds:
        return training.learning_rate * round_number / (training.warmup_rounds + 1)
    if training.schedule == "constant":
        return training.learning_rate
    done = (round_number - 1 - training.warmup_rounds) / max(1, rounds - training.warmup_rounds)
    return training.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done)))


def make_optimiser(adapted: Adapted, training: Training, rate: float) -> torch.optim.Optimizer:
    """A fresh optimiser over what travels: its memory does not outlive the round."""
    if training.optimiser == "sgd":
        return torch.optim.SGD(
            adapted.parameters(), lr=rate, momentum=training.momentum, weight_decay=training.weight_decay
        )
    return torch.optim.AdamW(adapted.parameters(), lr=rate, weight_decay=training.weight_decay)


def scaled(pixels: Tensor, device: torch.device) -> Tensor:
    """uint8 [N, C, (D,) S, S] → float32 in [0, 1] on the device."""
    return pixels.to(device).float().div_(255.0)


def autocast(training: Training, device: torch.device) -> torch.autocast:
    """bfloat16 where the study asks for it and a GPU is there; plain float32 elsewhere."""
    wanted = training.precision == "bfloat16" and device.type == "cuda"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)
