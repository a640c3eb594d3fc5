"""The network that a study trains: a frozen backbone, whatever is fitted into it, and a head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from polyclinic.core.errors import StudyError, UpdateError
from polyclinic.core.seeds import derive
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors
from polyclinic.models import backbones
from polyclinic.models.adaptation import Adaptation, same_batch
from polyclinic.models.backbone import Backbone
from polyclinic.models.chain import chain
from polyclinic.models.contracts import Anchor, Detailed, Encoded, Shape, Task
from polyclinic.models.prefix import Prefix, untouched, whole_blocks


class Network(nn.Module):
    """pixels [N, C, (D,) S, S] in [0, 1] → entry → backbone → neck → head → outputs [N, …].

    ``entry`` and ``neck`` are places for adaptations and change nothing as the network is built; a dense head takes
    the backbone's maps, past the neck; a ``Detailed`` one the picture before them.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, *, dense: bool) -> None:
        super().__init__()
        self.entry: nn.Module = nn.Identity()
        self.backbone = backbone
        self.neck: nn.Module = nn.Identity()
        self.head, self.dense, self.detailed = head, dense, isinstance(head, Detailed)

    def encode(self, pixels: Tensor) -> Encoded:
        """What the head is given."""
        entered = self.entry(pixels)
        encoded = self.backbone.encode(entered, maps=self.dense)
        picture = (self.backbone.normalised(entered),) if self.detailed else ()
        return Encoded(self.neck(encoded.pooled), (*picture, *encoded.maps))

    def decide(self, encoded: Encoded) -> Tensor:
        """Outputs from what was encoded."""
        output: Tensor = self.head(encoded.maps if self.dense else encoded.pooled)
        return output

    def forward(self, pixels: Tensor, *, features: bool = False) -> Tensor:
        """Outputs of a batch, or its pooled features."""
        if features:
            return self.encode(self.backbone.shrunk(pixels)).pooled
        return self.decide(self.encode(pixels))


class Adapted:
    """A network with the study's chain fitted in; ``read`` and ``write`` move what travels and what is personal.

    Attributes:
        network: on ``device``.
        chain: the study's adaptations, combined.
        travelling: names of the parameters that travel, sorted.
        personal: names of the parameters and buffers that stay at a site as its own, sorted.
    """

    def __init__(self, network: Network, chained: Adaptation, device: torch.device) -> None:
        self.network, self.chain, self.device = network.to(device), chained, device
        personal = chained.personal(network)
        trains = [name for name in self._leaving(personal) if not self._idle(name)]
        chained.mirror(network, trains)
        self.network.to(device)
        travelling = self._leaving(personal)
        found = dict(network.named_parameters())
        own = {name: tensor for name, tensor in (*found.items(), *network.named_buffers()) if name in personal}
        for name, weight in found.items():
            weight.requires_grad_((name in travelling or name in own) and not self._idle(name))
        self._parameters = {name: travelling[name] for name in sorted(travelling)}
        self._personal = {name: own[name] for name in sorted(own)}
        self._pretrained = {name: tensor.detach().clone() for name, tensor in self._personal.items()}
        self.travelling, self.personal = tuple(self._parameters), tuple(self._personal)
        buffers = {name.rpartition(".")[0] for name, _ in network.named_buffers() if name in own}
        self._live = [network.get_submodule(name) for name in sorted(buffers)]
        network.backbone.prefix = lasting(network, chained, frozenset((*self.travelling, *self.personal)))
        if device.type != "cpu":  # there, one picture at a time costs more than is saved
            network.backbone.prefix = None

    def _leaving(self, personal: frozenset[str]) -> dict[str, nn.Parameter]:
        """What travels, by name, in the model's order."""
        chosen = self.chain.chosen(self.network)
        return {
            name: weight
            for name, weight in self.network.named_parameters()
            if name not in personal and (name.startswith("head.") or self.chain.travels(name) or name in chosen)
        }

    def _idle(self, name: str) -> bool:
        """Whether no gradient ever trains it, though it travels or is personal."""
        return self.chain.constant(name) or self.chain.still(name) or self.chain.given(name)

    def read(self) -> Tensors:
        """Copies of what travels."""
        return {name: weight.detach().cpu().numpy().copy() for name, weight in self._parameters.items()}

    def sent(self) -> Tensors:
        """Copies of what a site sends: all that travels but what the server alone changes."""
        return {name: array for name, array in self.read().items() if not self.chain.given(name)}

    def read_personal(self) -> dict[str, Tensor]:
        """Copies of what is a site's own, on the CPU."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self._personal.items()}

    def parameters(self) -> list[nn.Parameter]:
        """What trains: what travels in the order of names, then what is personal."""
        weights = (*self._parameters.values(), *self._personal.values())
        return [weight for weight in weights if isinstance(weight, nn.Parameter) and weight.requires_grad]

    def sound(self) -> bool:
        """Whether all that travels or is personal is finite."""
        return all(
            bool(torch.isfinite(tensor).all()) for tensor in (*self._parameters.values(), *self._personal.values())
        )

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within it, modules with personal buffers gather them anew; nothing else behaves otherwise than in use."""
        for module in self._live:
            module.train()
        try:
            yield
        finally:
            for module in self._live:
                module.eval()

    @contextmanager
    def resting(self, round_number: int) -> Iterator[None]:
        """Within it, what rests in a round asks for no gradient, so that no optimiser and no noise is made for it."""
        trained = [(name, weight) for name, weight in self._parameters.items() if weight.requires_grad]
        resting = [weight for name, weight in trained if self.chain.rests(name, round_number)]
        for weight in resting:
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for weight in resting:
                weight.requires_grad_(True)

    def write(self, tensors: Tensors, personal: Mapping[str, Tensor] | None = None) -> Anchor:
        """Takes over a global state, whatever was there before; returns it as the anchor of a round.

        Args:
            personal: a site's own tensors; without them, the pretrained model's.

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
            for name, own in self._personal.items():
                kept = self._pretrained if personal is None else personal
                if name not in kept or kept[name].shape != own.shape:
                    raise UpdateError("is absent from what this site kept as its own, or misshapen", where=name)
                own.copy_(kept[name])
        extra: Mapping[str, Tensor] = {name: value for name, value in values.items() if name not in self._parameters}
        unclaimed = extra.keys() - self.chain.receive(self.network, extra)
        if unclaimed:
            raise UpdateError("no adaptation of this study knows this tensor", where=min(unclaimed))
        return {name: values[name] for name in self._parameters}


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Within it, nothing in the model gathers anything or mixes pictures, whether it trains or not."""
    busy = [module for module in model.modules() if module.training]
    for module in busy:
        module.training = False
    try:
        yield
    finally:
        for module in busy:
            module.training = True


def lasting(network: Network, chained: Adaptation, changing: frozenset[str]) -> Prefix | None:
    """The part of the backbone in front of all that is ``changing``, if pictures reach it as they are.

    None where a part of it trains or is a site's own, where an adaptation changes pictures, or where the prefix is not
    made as it was loaded: then it cannot be said to see tomorrow what it sees today.
    """
    backbone = network.backbone
    if type(network) is not Network or type(backbone) is not Backbone or type(network.entry) is not nn.Identity:
        return None
    if chained.batch is not same_batch or backbone.see is not backbone.made.see or "forward" in vars(backbone):
        return None
    own, inside = "backbone.encoder.", {name for name in changing if name.startswith("backbone.")}
    if any(not name.startswith(own) for name in inside):
        return None
    cut, blocks = (backbone.made.cut, None) if inside else (None, 0)
    if inside:
        blocks = whole_blocks(frozenset(name.removeprefix(own) for name in inside), cut, backbone.encoder)
    if blocks is None or not untouched(backbone.encoder, backbone.anatomy, cut, blocks):
        return None
    return Prefix(backbone.made, cut, blocks, backbone.normalised)


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
    """The study's network before anything is fitted in; its head is drawn from the study's seed.

    Raises:
        StudyError: the backbone is for flat pictures and the study has volumes, or the other way round.
    """
    predicts = task(study)
    seen = predicts.seen(study.data)
    encoder = _chained(study).recast(backbones.load(study.model_copy(update={"data": seen})), seen)
    _demand_dimensions(study, encoder)
    mean, std = backbones.normalisation(study, encoder)
    size = (*(() if seen.depth is None else (seen.depth,)), seen.image_size, seen.image_size)
    backbone = Backbone(encoder, mean, std, study.backbone.pooling, None if seen == study.data else size)
    generator = torch.Generator().manual_seed(derive(study.study.seed, "head"))
    shape = Shape(backbone.width, backbone.levels, seen.image_size, seen.depth, encoder.channels)
    return Network(backbone, predicts.head(shape, generator), dense=predicts.dense)


def build(study: Study, device: torch.device | None = None) -> Adapted:
    """The study's network with its chain fitted in, in the state that round 1 starts from."""
    network, chained = plain(study), _chained(study)
    chained.fit_in(network, torch.Generator().manual_seed(derive(study.study.seed, "adaptation")))
    return Adapted(network, chained, device or torch.device("cpu"))


def _chained(study: Study) -> Adaptation:
    return chain(*(method.build() for method in study.adaptation))  # type: ignore[attr-defined]


def _demand_dimensions(study: Study, encoder: backbones.Encoder) -> None:
    if encoder.volumes == (study.data.depth is not None):
        return
    if encoder.volumes:
        problem, remedy = "flat pictures for a backbone of volumes", 'write volume = "whole" and a depth in [data]'
    else:
        problem = "volumes for a backbone of flat pictures"
        remedy = 'add an [[adaptation]] that makes it take them (family architecture), or write volume = "middle"'
    raise StudyError(f"the study has {problem}", where="data.volume", remedy=remedy)
