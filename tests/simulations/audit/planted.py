"""Ten bugs as they are made in earnest, each small: planted into the code that a site runs, for an audit to find."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from polyclinic.client.private import answer
from polyclinic.client.private.noise import released
from polyclinic.client.private.step import Gradients, Make, Portion, PrivateStep
from polyclinic.core.privacy.events import Event
from polyclinic.core.privacy.noise import Chance
from polyclinic.models.contracts import Views


class Unclipped(PrivateStep):
    """No clipping."""

    def scales(self, each: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return {name: torch.ones(len(rows)) for name, rows in each.items()}


class Own(PrivateStep):
    """Sums of its own making."""

    def summed(self, portion: Portion) -> Gradients:
        each = self.by_patient(portion)
        return {name: torch.tensordot(scale, each[name], dims=1).double() for name, scale in self.scales(each).items()}

    def zeros(self) -> Gradients:
        return {name: torch.zeros(weight.shape, dtype=torch.float64) for name, weight in self._weights.items()}

    @property
    def deviation(self) -> float:
        return self.terms.noise * self.terms.clip

    def told(self, sums: Gradients, deviation: float) -> Gradients:
        return {
            name: (released(total, deviation, self._chance) / self.terms.expected).float()
            for name, total in sums.items()
        }


class ClippedAfterwards(Own):
    """The mean of all gradients is clipped, and no patient's own."""

    def gradient(self, portions: Iterator[Portion], public: Views) -> Gradients:
        sums, count = self.zeros(), 0
        for portion in portions:
            count += portion.count
            for name, rows in self.by_patient(portion).items():
                sums[name] += rows.double().sum(dim=0)
        means = {name: total / max(count, 1) for name, total in sums.items()}
        norm = sum(float(mean.square().sum()) for mean in means.values()) ** 0.5
        scale = min(1.0, self.terms.clip / max(norm, 1e-30))
        return self.told({name: mean * scale * self.terms.expected for name, mean in means.items()}, self.deviation)


class LastForgotten(Own):
    """Noise goes into each portion, the less the more there are, and the last one gets none."""

    def gradient(self, portions: Iterator[Portion], public: Views) -> Gradients:
        held, sums = list(portions), self.zeros()
        for i, portion in enumerate(held):
            deviation = self.deviation / len(held) ** 0.5 if i < len(held) - 1 else 0.0
            for name, total in self.summed(portion).items():
                sums[name] += released(total, deviation, self._chance)
        return self.told(sums, 0.0 if held else self.deviation)


class WrongBatch(Own):
    """Noise is divided by the number of pictures that were drawn, and then by the expected number."""

    def gradient(self, portions: Iterator[Portion], public: Views) -> Gradients:
        sums, pictures = self.zeros(), 0
        for portion in portions:
            pictures += len(portion.patients)
            for name, total in self.summed(portion).items():
                sums[name] += total
        return self.told(sums, self.deviation / max(1, pictures))


class Forgetful(PrivateStep):
    """The head's bias is none of the weights whose gradients are recorded."""

    def by_patient(self, portion: Portion) -> Gradients:
        found = super().by_patient(portion)
        return found | {name: torch.zeros_like(rows) for name, rows in found.items() if name == "head.bias"}


class Bare(Own):
    """The head's bias gets its plain gradient, past clipping and noise."""

    def gradient(self, portions: Iterator[Portion], public: Views) -> Gradients:
        held = list(portions)
        found = super().gradient(iter(held), public)
        plain = sum((self.by_patient(portion)["head.bias"].sum(dim=0) for portion in held), torch.zeros(1))
        return found | {"head.bias": plain.detach() / self.terms.expected}


def shuffled(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Epochs in random order, batch by batch, while the ledger is told of Poisson samples."""
    left: list[int] = []

    def drawn(chance: Chance, count: int, rate: float) -> Any:
        size = round(count * rate)
        if len(left) < size:
            left[:] = np.argsort(chance.uniform(count)).tolist()
        batch, left[:] = left[:size], left[size:]
        return np.sort(batch)

    monkeypatch.setattr("polyclinic.client.private.fit.drawn", drawn)
    return PrivateStep


def reset(monkeypatch: pytest.MonkeyPatch) -> Make:
    """The account begins anew with every round."""
    path = "polyclinic.client.privacy.record.Record.charged"

    def charged(record: Any, study: str = "", upto: int | None = None) -> Any:
        return list(list(record.reserved.values())[-1].charges) if record.reserved else []

    monkeypatch.setattr(path, charged)
    return PrivateStep


def by_image(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Every picture is drawn and clipped by itself, though patients are the unit."""
    monkeypatch.setattr(
        "polyclinic.client.private.fit.held", lambda pool, labelled, private: [[i] for i in labelled.tolist()]
    )
    return PrivateStep


def reused(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Every round's randomness comes from one seed."""
    monkeypatch.setattr("polyclinic.client.privacy.record.Reservation.stream", lambda self, what: bytes(32))
    return PrivateStep


def told_bare(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Figures leave as they were counted, and say that they have noise."""
    true = answer.noised

    def bare(blank: Any, rows: Any, patients: Any, event: Event, chance: Any) -> Any:
        found = true(blank, rows, patients, replace(event, noise=1e-6), chance)
        return replace(found, variance=round(event.noise**2 * 2**20))

    monkeypatch.setattr(answer, "noised", bare)
    return PrivateStep


def told_quieter(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Figures have half of the noise that was paid for."""
    true = answer.noised
    monkeypatch.setattr(
        answer,
        "noised",
        lambda blank, rows, patients, event, chance: true(
            blank, rows, patients, replace(event, noise=event.noise / 2), chance
        ),
    )
    return PrivateStep


@dataclass(frozen=True)
class Planted:
    """One bug, and the checks that must fail on it."""

    name: str
    plant: Callable[[pytest.MonkeyPatch], Make]
    caught_by: tuple[str, ...]


TEN = (
    Planted("shuffled loader accounted as Poisson", shuffled, ("sampling",)),
    Planted("accountant reset", reset, ("ledger",)),
    Planted("no clipping", lambda _: Unclipped, ("sensitivity",)),
    Planted("clipping after averaging", lambda _: ClippedAfterwards, ("sensitivity",)),
    Planted("noise forgotten in the last micro-batch", lambda _: LastForgotten, ("noise",)),
    Planted("noise scaled by the wrong batch size", lambda _: WrongBatch, ("noise",)),
    Planted("patients counted as images", by_image, ("sensitivity",)),
    Planted("a parameter skipped", lambda _: Forgetful, ("gradients",)),
    Planted("a reused seed", reused, ("fresh noise",)),
    Planted("statistics released without noise", told_bare, ("statistics",)),
)
MORE = (
    Planted("a parameter neither clipped nor noised", lambda _: Bare, ("sensitivity", "noise")),
    Planted("statistics with half of their noise", told_quieter, ("statistics",)),
)
