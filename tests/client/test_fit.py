"""The local loop against a plain torch loop, to the bit, and each of its parts against a calculation by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from polyclinic.client.data.dataset import Images
from polyclinic.client.fit import batches, fit, learning_rate, scaled
from polyclinic.core.config import parse
from polyclinic.core.errors import UpdateError
from polyclinic.core.seeds import derive
from polyclinic.core.study import Study, Training
from polyclinic.core.update import Tensors
from polyclinic.models.network import build, task

COUNT = 10


def images() -> Images:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (COUNT, 1, 32, 32), dtype=np.uint8)
    return Images(pixels, rng.integers(0, 2, COUNT), tuple(f"p{i}" for i in range(COUNT)))


def with_training(study: Study, **keys: Any) -> Study:
    """The study, on LoRA alone, with other training keys."""
    document = study.model_dump(mode="json")
    document["training"] |= keys
    return parse(Study, document, "test")


def fitted(study: Study, site: str = "north", round_number: int = 1) -> Tensors:
    adapted = build(study)
    anchor = adapted.write(adapted.read())
    fit(adapted, task(study), images(), study, site, round_number, anchor)
    return adapted.read()


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def by_hand(study: Study, site: str, round_number: int) -> Tensors:
    """The same in the manner of a torch tutorial, one epoch."""
    training, adapted = study.training, build(study)
    weights = adapted.parameters()
    optimiser: torch.optim.Optimizer
    if training.optimiser == "sgd":
        optimiser = torch.optim.SGD(weights, training.learning_rate, training.momentum, 0, training.weight_decay)
    else:
        optimiser = torch.optim.AdamW(weights, training.learning_rate, weight_decay=training.weight_decay)
    generator = torch.Generator().manual_seed(derive(study.study.seed, "fit", site, round_number))
    data, order = images(), torch.randperm(COUNT, generator=generator).tolist()
    for start in range(0, COUNT, training.batch_size):
        chosen = order[start : start + training.batch_size]
        logits = adapted.network(torch.tensor(data.pixels[chosen]).float() / 255)[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, torch.tensor(data.targets[chosen]).float())
        optimiser.zero_grad()
        loss.backward()
        if training.clip_norm:
            torch.nn.utils.clip_grad_norm_(weights, training.clip_norm)
        optimiser.step()
    return adapted.read()


@pytest.mark.parametrize(
    "keys", [{}, {"optimiser": "sgd", "learning_rate": 0.1}, {"clip_norm": None}, {"batch_size": 3}]
)
def test_it_is_a_plain_torch_loop_to_the_bit(tiny_study: Study, keys: dict[str, Any]) -> None:
    study = with_training(tiny_study, **keys)
    assert same(fitted(study, "south", 2), by_hand(study, "south", 2))


def test_it_depends_on_seed_site_and_round_and_on_nothing_global(tiny_study: Study) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = fitted(tiny_study)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(fitted(tiny_study), one)
    for other in (fitted(tiny_study, "south"), fitted(tiny_study, round_number=2), fitted(tiny_study.with_seed(4))):
        assert not same(other, one)


def test_bfloat16_without_a_gpu_is_plain_float32(tiny_study: Study) -> None:
    assert same(fitted(with_training(tiny_study, precision="bfloat16")), fitted(tiny_study))


def test_the_gradient_is_clipped_as_one_vector(tiny_study: Study) -> None:
    keys = {"optimiser": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 2.0, "steps": 1}
    start = build(tiny_study).read()

    def moved(clip: float | None) -> np.ndarray:
        end = fitted(with_training(tiny_study, **keys, clip_norm=clip))
        return np.concatenate([(end[name].astype(np.float64) - start[name]).ravel() for name in start])

    free = moved(None)
    assert np.linalg.norm(free) > 2.0 * 0.01
    clipped = moved(0.01)
    assert np.linalg.norm(clipped) == pytest.approx(2.0 * 0.01, rel=1e-3)
    np.testing.assert_allclose(clipped, free * 0.02 / np.linalg.norm(free), atol=1e-6)
    np.testing.assert_array_equal(moved(1e6), free)


def test_weight_decay_is_decoupled_from_adam(tiny_study: Study) -> None:
    study = with_training(tiny_study, learning_rate=0.1, weight_decay=0.5, steps=1, clip_norm=None)
    without = with_training(tiny_study, learning_rate=0.1, weight_decay=0.0, steps=1, clip_norm=None)
    start, one, other = build(study).read(), fitted(study), fitted(without)
    for name, array in start.items():
        np.testing.assert_allclose(one[name] - other[name], -0.1 * 0.5 * array, atol=1e-6)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_divergence_is_an_error_that_names_the_site(tiny_study: Study, optimiser: str) -> None:
    study = with_training(tiny_study, optimiser=optimiser, learning_rate=1e30, epochs=3, clip_norm=None)
    with pytest.raises(UpdateError, match=r"north: training diverged \(lower training\.learning_rate\)"):
        fitted(study)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 3), st.integers(0, 2**32))
def test_epochs_see_every_index_once_in_full_batches(count: int, size: int, epochs: int, seed: int) -> None:
    drawn = list(batches(count, Training(batch_size=size, epochs=epochs), torch.Generator().manual_seed(seed)))
    each = -(-count // size)
    assert len(drawn) == each * epochs
    for epoch in range(epochs):
        parts = drawn[epoch * each : (epoch + 1) * each]
        assert sorted(torch.cat(parts).tolist()) == list(range(count))
        assert all(len(part) == size for part in parts[:-1])


@given(st.integers(1, 20), st.integers(1, 8), st.integers(1, 15))
def test_steps_are_counted_exactly_and_go_through_whole_epochs(count: int, size: int, steps: int) -> None:
    drawn = list(batches(count, Training(batch_size=size, steps=steps), torch.Generator().manual_seed(0)))
    assert len(drawn) == steps
    each = -(-count // size)
    epochs = list(batches(count, Training(batch_size=size, epochs=-(-steps // each)), torch.Generator().manual_seed(0)))
    assert all(torch.equal(one, other) for one, other in zip(drawn, epochs, strict=False))


def test_without_a_length_it_is_one_epoch_and_epochs_are_shuffled_anew() -> None:
    assert len(list(batches(10, Training(batch_size=4), torch.Generator()))) == 3
    one, two = batches(50, Training(batch_size=50, epochs=2), torch.Generator().manual_seed(0))
    assert not torch.equal(one, two)


def test_the_rate_by_hand() -> None:
    constant = Training(learning_rate=0.3, warmup_rounds=2)
    assert [learning_rate(constant, n, 5) for n in range(1, 6)] == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.3])
    cosine = Training(learning_rate=1.0, schedule="cosine", warmup_rounds=1)
    # after one round of warm-up, four rounds of a cosine from 1 towards 0.1
    expected = [0.5, 1.0, 0.1 + 0.45 * (1 + 2**-0.5), 0.55, 0.1 + 0.45 * (1 - 2**-0.5)]
    assert [learning_rate(cosine, n, 5) for n in range(1, 6)] == pytest.approx(expected)
    assert learning_rate(Training(learning_rate=0.2, schedule="cosine"), 1, 1) == 0.2
    longer = Training(learning_rate=0.2, schedule="cosine", warmup_rounds=9)
    assert [learning_rate(longer, n, 3) for n in (1, 2, 3)] == pytest.approx([0.02, 0.04, 0.06])


def test_the_cosine_is_torchs() -> None:
    rounds, training = 12, Training(learning_rate=0.02, schedule="cosine")
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, rounds, eta_min=0.002)
    for n in range(1, rounds + 1):
        assert learning_rate(training, n, rounds) == pytest.approx(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    assert learning_rate(training, rounds + 1, rounds) == pytest.approx(0.002)


def test_the_rate_of_the_round_is_the_one_that_is_used(tiny_study: Study) -> None:
    keys = {"optimiser": "sgd", "momentum": 0.0, "weight_decay": 0.0, "steps": 1, "clip_norm": None}
    warm = with_training(tiny_study, **keys, warmup_rounds=1, learning_rate=0.5)
    half = with_training(tiny_study, **keys, learning_rate=0.25)
    assert same(fitted(warm, round_number=1), fitted(half, round_number=1))


def test_pixels_are_scaled_to_the_unit_interval() -> None:
    pixels = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    result = scaled(pixels, torch.device("cpu"))
    assert result.dtype == torch.float32
    assert result.flatten().tolist() == pytest.approx([0.0, 0.2, 1.0])
    assert pixels.flatten().tolist() == [0, 51, 255]
