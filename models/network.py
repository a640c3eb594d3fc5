"""The network that a study trains: a frozen backbone, whatever is fitted into it, and a head."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from polyclinic.core.errors import DataError, UpdateError
from polyclinic.core.seeds import derive
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors
from polyclinic.models import backbones
from polyclinic.models.contracts import Adaptation, Anchor, Task, chain


class Backbone(nn.Module):
    """An encoder with its normalisation and pooling: pixels [N, C, S, S] in [0, 1] → features [N, width].

    Grey pictures (C = 1) are repeated over the encoder's channels; colour is refused by an encoder of one channel.
    """

    def __init__(
        self, encoder: backbones.Encoder, mean: tuple[float, ...], std: tuple[float, ...], pooling: str
    ) -> None:
        super().__init__()
        self.encoder = encoder.module
        self.leading, self.pooling, self.sha256 = encoder.leading, pooling, encoder.sha256
        self.width = encoder.width * (2 if pooling == "cls+mean" else 1)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor

    def normalised(self, pixels: Tensor) -> Tensor:
        """What the encoder was trained to see; one channel broadcasts over the encoder's.

        Raises:
            DataError: pictures in colour for an encoder of one channel.
        """
        if pixels.shape[1] not in (1, self.mean.shape[1]):
            raise DataError(
                f"pictures have {pixels.shape[1]} channels, the backbone takes {self.mean.shape[1]}",
                where="data.colour",
                remedy='write colour = "grey" in the study',
            )
        return (pixels - self.mean) / self.std

    def forward(self, pixels: Tensor) -> Tensor:
        """Features of a batch."""
        tokens = self.encoder(pixel_values=self.normalised(pixels)).last_hidden_state
        cls, mean = tokens[:, 0], tokens[:, self.leading :].mean(dim=1)
        return {"cls": cls, "mean": mean}[self.pooling] if self.pooling != "cls+mean" else torch.cat([cls, mean], 1)


class Network(nn.Module):
    """Backbone and linear head: pixels [N, C, S, S] in [0, 1] → outputs [N, outputs]."""

    def __init__(self, backbone: Backbone, outputs: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.width, outputs)

    def forward(self, pixels: Tensor) -> Tensor:
        """Outputs of a batch."""
        output: Tensor = self.head(self.backbone(pixels))
        return output


class Adapted:
    """A network with the study's chain fitted in; ``read`` and ``write`` move what travels.

    Attributes:
        network: on ``device``.
        chain: the study's adaptations, combined.
        travelling: names of the parameters that travel, sorted; all but constants train.
    """

    def __init__(self, network: Network, chained: Adaptation, device: torch.device) -> None:
        self.network, self.chain, self.device = network.to(device), chained, device
        chosen = chained.chosen(network)
        travelling = {}
        for name, weight in network.named_parameters():
            if name.startswith("head.") or chained.travels(name) or name in chosen:
                travelling[name] = weight
            weight.requires_grad_(name in travelling and not chained.constant(name))
        self._parameters = {name: travelling[name] for name in sorted(travelling)}
        self.travelling = tuple(self._parameters)

    def read(self) -> Tensors:
        """Copies of what travels."""
        return {name: weight.detach().cpu().numpy().copy() for name, weight in self._parameters.items()}

    def parameters(self) -> list[nn.Parameter]:
        """What trains, in the order of names."""
        return [weight for weight in self._parameters.values() if weight.requires_grad]

    def write(self, tensors: Tensors) -> Anchor:
        """Takes over a global state, whatever was there before; returns it as the anchor of a round.

        Raises:
            UpdateError: a tensor is missing, misshapen, unknown, or a constant that is another one here.
        """
        values = {name: torch.from_numpy(array).to(self.device) for name, array in tensors.items()}
        with torch.no_grad():
            for name, weight in self._parameters.items():
                if name not in values or values[name].shape != weight.shape:
                    raise UpdateError("is absent from the global state or misshapen", where=name)
                if self.chain.constant(name):
                    _demand_same(name, weight, values[name])
                weight.copy_(values[name])
        extra: Mapping[str, Tensor] = {name: value for name, value in values.items() if name not in self._parameters}
        unclaimed = extra.keys() - self.chain.receive(self.network, extra)
        if unclaimed:
            raise UpdateError("no adaptation of this study knows this tensor", where=min(unclaimed))
        return {name: values[name] for name in self._parameters}


def _demand_same(name: str, own: Tensor, arrived: Tensor) -> None:
    if not torch.equal(own, arrived):
        raise UpdateError(
            "this machine works out other numbers than the rest of the federation for what must be the same everywhere",
            where=name,
            remedy="use the same versions and kind of processor as the others, or a method without such a start",
        )


def task(study: Study) -> Task:
    """The study's task."""
    return study.task  # type: ignore[return-value]


def plain(study: Study) -> Network:
    """The study's network before anything is fitted in; its head is drawn from the study's seed."""
    encoder = backbones.load(study)
    mean, std = backbones.normalisation(study, encoder)
    with torch.random.fork_rng(devices=[]):  # nn.Linear draws from the global generator
        network = Network(Backbone(encoder, mean, std, study.backbone.pooling), task(study).outputs)
    generator = torch.Generator().manual_seed(derive(study.study.seed, "head"))
    nn.init.normal_(network.head.weight, std=0.02, generator=generator)
    nn.init.zeros_(network.head.bias)
    return network


def build(study: Study, device: torch.device | None = None) -> Adapted:
    """The study's network with its chain fitted in, in the state that round 1 starts from."""
    network = plain(study)
    chained = chain(*(method.build() for method in study.adaptation))  # type: ignore[attr-defined]
    chained.fit_in(network, torch.Generator().manual_seed(derive(study.study.seed, "adaptation")))
    return Adapted(network, chained, device or torch.device("cpu"))
