"""What noise at the server buys whole sites: little for ten, something for a hundred, much for a thousand.

    python examples/central.py [--seeds 5]

Prints Markdown tables. By the accountant alone: the noise in the averaged update, the epsilon at which that noise is as
long as the clip, and what it is worth to draw sites or to ask groups in turn. Measured, by the server's own sums and
noise (simulated, so that figures repeat): the accuracy of a linear probe on made-up features.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import toeplitz

from polyclinic.core import study as studies
from polyclinic.core.privacy import banded
from polyclinic.core.privacy.accounting import epsilon, noise_for
from polyclinic.core.privacy.central import Central
from polyclinic.core.privacy.events import Event
from polyclinic.core.update import Tensors, Update
from polyclinic.server.central import Mechanism
from polyclinic.server.journal import Journal, State

SITES, ROUNDS, DELTA = (10, 100, 1000), 20, 1e-5
PROBE, LORA = 65, 150_000
"""Numbers that travel: of the probe below; of LoRA on a small backbone."""
PATIENTS, CLIP, LEARNING_RATE, STEPS = 50, 0.25, 0.5, 5
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ward:
    """A made-up site: features [n, 64] and a column of ones, and labels 0 or 1."""

    features: Floats
    labels: Floats

    @staticmethod
    def of(rng: np.random.Generator, truth: Floats, count: int) -> Ward:
        """``count`` patients, whose features have a shift of the site's own."""
        shift = 0.3 * rng.normal(size=len(truth))
        features = np.column_stack([rng.normal(size=(count, len(truth))) + shift, np.ones(count)])
        chance = 1 / (1 + np.exp(-features[:, :-1] @ truth))
        return Ward(features, (rng.random(count) < chance).astype(float))

    def trained(self, weights: Floats) -> Floats:
        """``STEPS`` steps of logistic regression from ``weights``, all patients in each."""
        for _ in range(STEPS):
            error = 1 / (1 + np.exp(-self.features @ weights)) - self.labels
            weights = weights - LEARNING_RATE * self.features.T @ error / len(self.labels)
        return weights

    def settled(self) -> Floats:
        """As many steps as all rounds have."""
        weights = np.zeros(PROBE)
        for _ in range(ROUNDS):
            weights = self.trained(weights)
        return weights

    def accuracy(self, weights: Floats) -> float:
        """Share of patients who are told right."""
        return float(np.mean((self.features @ weights > 0) == (self.labels > 0)))


def federation(sites: int, central: str, seed: int) -> float:
    """Accuracy of the probe after all rounds, on patients of sites that took no part."""
    wards, judges = drawn(sites, seed)
    study = studies.loads(
        f'[study]\nname = "x"\nseed = {seed}\n[[adaptation]]\nmethod = "probe"\n'
        f'[rounds]\nweight = "equal"\ncount = {ROUNDS}\n'
        f'[central]\nsites = {sites}\nclip = {CLIP}\ndelta = {DELTA}\ngenerator = "simulated"\n'
        f"{central or 'noise = 1.0'}\n"
    )
    mechanism, journal = Mechanism.of(study), Journal.create(None, {"run": "run"})
    assert mechanism is not None
    state = State(0, {"w": np.zeros(PROBE, np.float32)}, mechanism.start())
    for number in range(1, ROUNDS + 1):
        strategy = mechanism.strategy(state.memory)
        fold = strategy.init(state.tensors)
        for site in mechanism.choose(sorted(wards), number, journal):
            moved = wards[site].trained(state.tensors["w"].astype(float))
            fold = strategy.add(fold, Update(site, 1, {"w": moved.astype(np.float32)}))
        total = strategy.finish(fold)
        memory, tensors = mechanism.noised(state, total) if central else (state.memory, plain(state, total, sites))
        state = State(number, tensors, memory)
    return judged(judges, state.tensors["w"].astype(float))


def alone(sites: int, seed: int) -> float:
    """What a site's own probe reaches on the same patients, on average over (at most 20) sites: nothing leaves any."""
    wards, judges = drawn(sites, seed)
    return float(np.mean([judged(judges, ward.settled()) for ward in list(wards.values())[:20]]))


def drawn(sites: int, seed: int) -> tuple[dict[str, Ward], list[Ward]]:
    """(sites that take part, sites that judge)."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=PROBE - 1) / 4
    wards = {f"s{i:04d}": Ward.of(rng, truth, PATIENTS) for i in range(sites)}
    return wards, [Ward.of(rng, truth, 200) for _ in range(20)]


def judged(judges: list[Ward], weights: Floats) -> float:
    """Mean accuracy."""
    return float(np.mean([judge.accuracy(weights) for judge in judges]))


def plain(state: State, total: Tensors, sites: int) -> Tensors:
    """The mean of clipped changes without noise."""
    return {"w": (state.tensors["w"] + total["w"] / sites).astype(np.float32)}


def lengths() -> Iterator[str]:
    """How long the noise in the averaged update is, in clips: no site's update is longer than 1."""
    yield f"| ε of {ROUNDS} rounds | noise | numbers | {' | '.join(f'{n} sites' for n in SITES)} |"
    yield "|---|---|---|" + "---|" * len(SITES)
    for budget in (1.0, 4.0, 8.0):
        noise = Central(sites=10, epsilon=budget).multiplier(ROUNDS)
        for size in (PROBE, LORA):
            found = " | ".join(f"{short(noise * math.sqrt(size) / n)}" for n in SITES)
            yield f"| {budget:g} | {noise:.3g} | {size:,} | {found} |"


def budgets() -> Iterator[str]:
    """Epsilon at which the noise of one round is as long as the longest possible mean update."""
    yield f"| numbers | {' | '.join(f'{n} sites' for n in SITES)} |"
    yield "|---|" + "---|" * len(SITES)
    for size in (PROBE, LORA):
        costs = (epsilon([Event("gaussian", n / math.sqrt(size), 1.0, ROUNDS, "site")], DELTA) for n in SITES)
        yield f"| {size:,} | {' | '.join(short(cost) for cost in costs)} |"


def turns() -> Iterator[str]:
    """Root mean square, over 32 rounds, of the noise on the model in clips ÷ sites; a site answers 32 ÷ b times."""
    rounds = 32
    yield "| ε | b | one in b, drawn in secret | b groups, plain | b groups, banded |"
    yield "|---|---|---|---|---|"
    plain = math.sqrt((rounds + 1) / 2)
    for budget in (2.0, 8.0):
        for b in (1, 2, 4, 8):
            drawn_ones = noise_for(budget, DELTA, 1 / b, rounds) * b * plain
            grouped = noise_for(budget, DELTA, 1.0, rounds // b) * b
            column = np.concatenate([banded.coefficients(b), np.zeros(rounds - b)])
            summed = np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(np.tril(toeplitz(column)))
            correlated = banded.length(b) * math.sqrt(np.square(summed).sum() / rounds)
            cells = (drawn_ones, grouped * plain, grouped * correlated)
            yield f"| {budget:g} | {b} | {' | '.join(short(cell) for cell in cells)} |"


def accuracies(seeds: int) -> Iterator[str]:
    """Mean and standard deviation over seeds of ``federation``."""
    yield f"| noise at the server | {' | '.join(f'{n} sites' for n in SITES)} |"
    yield "|---|" + "---|" * len(SITES)
    rows = {
        "no federation: each site's own probe": None,
        "none (clipped)": "",
        "ε = 8, all asked": "epsilon = 8.0",
        "ε = 8, each with rate 0.2": "epsilon = 8.0\nrate = 0.2",
        "ε = 8, four groups in turn, banded": 'epsilon = 8.0\nmechanism = "banded"\nbands = 4',
        "ε = 2, all asked": "epsilon = 2.0",
    }
    for title, central in rows.items():
        cells = []
        for n in SITES:
            found = [alone(n, seed) if central is None else federation(n, central, seed) for seed in range(seeds)]
            cells.append(f"{np.mean(found):.3f} ± {np.std(found, ddof=1):.3f}")
        yield f"| {title} | {' | '.join(cells)} |"


def short(number: float) -> str:
    """Two digits, and no exponent."""
    return f"{float(f'{number:.2g}'):,g}"


def main() -> None:
    """Prints the tables."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, default=5)
    seeds = options.parse_args().seeds
    for title, lines in (
        ("Length of the noise in the averaged update, in clips", lengths()),
        (f"ε of {ROUNDS} rounds in which that noise is one clip long", budgets()),
        ("Noise on the model over 32 rounds, in clips ÷ sites, where a site answers in one of b rounds", turns()),
        (f"Accuracy of a linear probe at sites that took no part, {seeds} seeds", accuracies(seeds)),
    ):
        print(f"{title} (by site, add or remove one, δ = {DELTA:g}):\n")
        for line in lines:
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
