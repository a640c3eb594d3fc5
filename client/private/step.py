"""The private step: one gradient a patient, clipped once, summed, noised, divided by the expected number.

Abadi et al. 2016 (arXiv 1607.00133) with patients for the unit: what one patient can change of the released sum is at
most ``clip``, whatever that patient's pictures are and however many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from polyclinic.client.private.noise import released
from polyclinic.core.errors import UpdateError
from polyclinic.core.privacy.noise import Chance
from polyclinic.models.contracts import Batch, Objective, Views
from polyclinic.models.network import Network
from polyclinic.models.per_example import Hooked, PerExample

Clipping = Literal["flat", "per_layer", "automatic"]
MARGIN = 1e-5
"""Of the clip, that is left for the rounding of lengths and of sums in float32."""
GAMMA = 0.01
"""Stabiliser of automatic clipping (Bu et al. 2023, arXiv 2206.07136, their default)."""


@dataclass(frozen=True)
class Terms:
    """What a private step promises.

    Attributes:
        noise: noise multiplier: the noise's standard deviation is ``noise`` × ``clip``.
        clip: most that one patient's gradient can be long, over all weights together.
        clipping: "flat" shortens the whole gradient; "per_layer" every weight's by itself, to an equal share of the
            square of ``clip``; "automatic" brings every gradient to about ``clip`` (Bu et al. 2023).
        expected: patients expected in a step; what the sum is divided by.
    """

    noise: float
    clip: float
    clipping: Clipping
    expected: float


@dataclass(frozen=True)
class Portion:
    """Whole patients' pictures that go through the model together.

    Attributes:
        views: pictures and targets [N, …].
        patients: [N] whose each is: 0 … count − 1, in this order.
        count: how many patients.
        places: [N] of the pictures in the site's pool; () where they come from none.
    """

    views: Views
    patients: Tensor
    count: int
    places: tuple[int, ...] = ()


Gradients = dict[str, Tensor]


class PrivateStep:
    """Gradients of ``objective`` under ``terms``; see ``gradient``.

    Where some weight has no gradient by picture of its own (a bare parameter: a class token, a scale), patients go
    through the model one after another: as exact, and slower.
    """

    def __init__(
        self, network: Network, objective: Objective, terms: Terms, chance: Chance, *, opacus: bool = False
    ) -> None:
        self._network, self._objective, self.terms, self._chance = network, objective, terms, chance
        self._recorder = PerExample(network)
        self._gradients = Hooked(network) if opacus else self._recorder
        self._asks: bool | None = None
        self._weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}

    @property
    def one_by_one(self) -> bool:
        """Whether patients go through the model one after another."""
        return bool(self._recorder.without)

    def gradient(self, portions: Iterator[Portion], public: Views) -> Gradients:
        """Name → what an optimiser is to take for the gradient, float32.

        Args:
            portions: the pictures of the patients who were drawn; may be none.
            public: one picture of nobody's, for what an objective asks of the weights themselves.
        """
        sums = {name: torch.zeros(w.shape, dtype=torch.float64, device=w.device) for name, w in self._weights.items()}
        for portion in portions:
            each = self.by_patient(portion)
            for name, (scale, rows) in with_numbers(self.scales(each), each).items():
                sums[name] += torch.tensordot(scale, rows, dims=1)
        deviation = self.terms.noise * self.terms.clip
        own = self.of_nobody(public) if self._asks is not False else {}
        self._asks = bool(own)  # of an objective's kind, not of data: once nothing, always nothing
        return {
            name: (released(total, deviation, self._chance) / self.terms.expected).float() + own.get(name, 0.0)
            for name, total in sums.items()
        }

    def by_patient(self, portion: Portion) -> Gradients:
        """Name → [count, …]: the gradient of the mean of each patient's losses."""
        if self.one_by_one:
            return brute_force(self._network, self._objective, portion)
        pictures = torch.bincount(portion.patients, minlength=portion.count)
        with self._gradients.recording() as found:
            losses = self._losses(portion.views)
            (losses / pictures[portion.patients].to(losses)).sum().backward()
        for weight in self._weights.values():
            weight.grad = None  # what an objective asks of the weights themselves: see ``of_nobody``
        return {name: self._summed(found, name, portion) for name in self._weights}

    def scales(self, each: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Name → [count] by what each patient's gradient is multiplied."""
        squares = {name: squared(rows) for name, rows in each.items()}
        clip, tiny = self.terms.clip * (1.0 - MARGIN), torch.finfo(torch.float32).tiny
        if self.terms.clipping == "per_layer":
            share = clip / len(squares) ** 0.5
            return {name: (share / s.sqrt().clamp_min(tiny)).clamp_max(1.0).float() for name, s in squares.items()}
        norm = torch.stack(list(squares.values())).sum(dim=0).sqrt()
        if self.terms.clipping == "automatic":
            return dict.fromkeys(squares, (clip / (norm + GAMMA)).float())
        return dict.fromkeys(squares, (clip / norm.clamp_min(tiny)).clamp_max(1.0).float())

    def of_nobody(self, public: Views) -> Gradients:
        """What the objective asks of the weights themselves, such as a pull to the global model; depends on no data.

        Nothing where patients go one by one: it is then part of each patient's gradient, and clipped with it.
        """
        if self.one_by_one:
            return {}
        with self._recorder.recording():
            loss = self._losses(public).sum()
            gradients = torch.autograd.grad(loss, list(self._weights.values()), allow_unused=True)
        return {name: found for name, found in zip(self._weights, gradients, strict=True) if found is not None}

    def _losses(self, views: Views) -> Tensor:
        """[N]: each picture's by itself, so that whatever an objective averages over, it averages over one picture."""
        encoded = self._network.encode(views.pixels)
        features, output = encoded.pooled.float(), self._network.decide(encoded).float()
        rows: Sequence[Batch] = [
            Batch(views.pixels[i : i + 1], features[i : i + 1], output[i : i + 1], views.target[i : i + 1])
            for i in range(len(output))
        ]
        return torch.stack([self._objective(self._network, row) for row in rows])

    def _summed(self, found: Mapping[str, Tensor], name: str, portion: Portion) -> Tensor:
        rows = found.get(name)
        if rows is None:  # the loss does not depend on it
            return self._weights[name].new_zeros((portion.count, *self._weights[name].shape))
        pictures = len(portion.patients)
        if len(rows) % pictures:
            raise UpdateError(
                "sees something else than pictures or windows of pictures, so that no gradient is a picture's",
                where=name,
                remedy="choose another method or backbone for a private study",
            )
        if len(rows) != pictures:  # of windows: the check before the first step would find another order than this
            rows = rows.unflatten(0, (pictures, -1)).sum(dim=1)
        if portion.count == pictures:
            return rows
        total = rows.new_zeros((portion.count, *rows.shape[1:]))
        return total.index_add_(0, portion.patients, rows)


class Make(Protocol):
    """How a private step is made: ``PrivateStep``, or one that an audit looks into."""

    def __call__(
        self, network: Network, objective: Objective, terms: Terms, chance: Chance, *, opacus: bool = False
    ) -> PrivateStep: ...


def squared(rows: Tensor) -> Tensor:
    """[count] squared lengths of [count, …], float64: of each row of a weight in float32, of these the sum in float64.

    A float32 sum over millions of numbers would come out too small, and the clip too large.
    """
    lines = rows.flatten(2) if rows.ndim > 2 else rows.unsqueeze(1)
    lengths: Tensor = torch.linalg.vector_norm(lines, dim=-1)
    return lengths.double().square().sum(dim=1)


def with_numbers(scales: Mapping[str, Tensor], each: Gradients) -> dict[str, tuple[Tensor, Tensor]]:
    """Name → (scale, rows), both 0 for every patient whose gradient is not all numbers, or of no finite length.

    A global model may be made so that one patient's images alone give none. If that ended the round, the end would tell
    of the patient; so such a patient adds nothing.
    """
    sound = torch.stack([torch.isfinite(scale) & (scale > 0.0) for scale in scales.values()]).all(dim=0)
    if bool(sound.all()):
        return {name: (scale, each[name]) for name, scale in scales.items()}
    kept = {name: sound.view(-1, *[1] * (rows.ndim - 1)) for name, rows in each.items()}
    return {
        name: (torch.where(sound, scale, 0.0), torch.where(kept[name], each[name], 0.0))
        for name, scale in scales.items()
    }


def brute_force(network: Network, objective: Objective, portion: Portion) -> Gradients:
    """The same as ``by_patient``, one patient at a time and by autograd alone: the truth that steps are held to."""
    weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    rows: dict[str, list[Tensor]] = {name: [] for name in weights}
    for patient in range(portion.count):
        losses = []
        for i in torch.nonzero(portion.patients == patient).flatten().tolist():
            views = Views(portion.views.pixels[i : i + 1], portion.views.target[i : i + 1])
            encoded = network.encode(views.pixels)
            output = network.decide(encoded).float()
            losses.append(objective(network, Batch(views.pixels, encoded.pooled.float(), output, views.target)))
        found = torch.autograd.grad(torch.stack(losses).mean(), list(weights.values()), allow_unused=True)
        for (name, weight), gradient in zip(weights.items(), found, strict=True):
            rows[name].append(torch.zeros_like(weight) if gradient is None else gradient)
    return {name: torch.stack(gradients) for name, gradients in rows.items()}
