"""The local loop: what one site does with its training images in one round."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from polyclinic.client.data.dataset import Images
from polyclinic.core.errors import UpdateError
from polyclinic.core.seeds import derive
from polyclinic.core.study import Study, Training
from polyclinic.models.contracts import Anchor, Batch, Start, Task
from polyclinic.models.network import Adapted


def fit(
    adapted: Adapted, task: Task, images: Images, study: Study, site: str, round_number: int, anchor: Anchor
) -> None:
    """Trains what travels, in place, from the state that ``anchor`` describes.

    Every random choice follows from (study seed, site, round), so that any engine gives the same bits.

    Raises:
        UpdateError: the weights are no longer finite.
    """
    training = study.training
    generator = torch.Generator().manual_seed(derive(study.study.seed, "fit", site, round_number))
    objective = adapted.chain.objective(
        lambda model, batch: task.loss(batch.output, batch.target), start(adapted, task, images, training, anchor)
    )
    optimiser = make_optimiser(adapted, training, learning_rate(training, round_number, study.rounds.count))
    pixels, targets = torch.from_numpy(images.pixels), torch.from_numpy(images.targets)
    for chosen in batches(len(pixels), training, generator):
        seen = adapted.chain.batch(scaled(pixels[chosen], adapted.device), generator)
        with autocast(training, adapted.device):
            output = adapted.network(seen)
        loss = objective(adapted.network, Batch(seen, output.float(), targets[chosen].to(adapted.device)))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(adapted.parameters(), training.clip_norm)
        optimiser.step()
    if not all(torch.isfinite(weight).all() for weight in adapted.parameters()):
        raise UpdateError("training diverged", where=site, remedy="lower training.learning_rate")


def start(adapted: Adapted, task: Task, images: Images, training: Training, anchor: Anchor) -> Start:
    """What an objective may know when a round begins; the global model shares the frozen weights of ``adapted``."""

    def forward(pixels: Tensor) -> Tensor:
        with torch.no_grad(), autocast(training, adapted.device):
            output: Tensor = torch.func.functional_call(adapted.network, dict(anchor), (pixels,))
        return output.float()

    return Start(anchor, forward, task, torch.from_numpy(images.targets).to(adapted.device))


def batches(count: int, training: Training, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of each batch of a round: shuffled epochs, the last batch of each as small as it is."""
    left = training.steps
    for _ in range(training.epochs or 1) if left is None else iter(int, 1):
        for chosen in torch.randperm(count, generator=generator).split(training.batch_size):
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
    """uint8 [N, C, S, S] → float32 in [0, 1] on the device."""
    return pixels.to(device).float().div_(255.0)


def autocast(training: Training, device: torch.device) -> torch.autocast:
    """bfloat16 where the study asks for it and a GPU is there; plain float32 elsewhere."""
    wanted = training.precision == "bfloat16" and device.type == "cuda"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted)
