"""What every method of peft shares: layers are wrapped, small weights beside them train and travel."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from polyclinic.core.config import Method
from polyclinic.core.update import Tensors
from polyclinic.models.adaptation import Adaptation, PeftForm
from polyclinic.models.adaptations.layers import Targets, named

ROOT = "base_model.model."
"""What peft puts before the names of a model's weights."""


class Injected(Method):
    """Base of methods that peft has. A subclass says which weights are peft's own and how peft is configured.

    ``targets`` names layers by their role in the backbone: the projections of attention, the MLP, or all of these.
    """

    adapts: ClassVar[bool] = True
    changes: ClassVar[frozenset[str]] = frozenset({"linear layers"})
    marks: ClassVar[tuple[str, ...]]
    """What stands between a layer's name and the rest in the names of the weights that train."""

    targets: Targets = "attention"

    def config(self, layers: Sequence[str]) -> Any:
        """peft's configuration for these layers."""
        raise NotImplementedError

    def layers(self, model: nn.Module) -> list[str]:
        """Full names of the layers that are adapted; StudyError if there is none."""
        return named(model, self.targets)

    def inject(self, model: nn.Module) -> None:
        """Puts peft's layers into the model, as its own model classes do; draws from torch's global generator."""
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

        config = self.config(self.layers(model))
        PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](model, config, "default")
        del model.peft_config  # where peft would look for other adapters of one kind: ours are of several

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(
            families=frozenset({"parameter"}),
            fit_in=self.fit_in,
            travels=lambda name: any(mark in name for mark in self.marks),
            peft=(self.in_peft,),
        )

    def fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        """Wraps the layers; what peft draws from the global generator follows from ``generator``."""
        with seeded(generator), unworried():
            self.inject(model)

    def in_peft(self, model: nn.Module, tensors: Tensors) -> PeftForm:
        """The state's part that is this method's, as peft saves it."""
        own = {name: array for name, array in tensors.items() if any(mark in name for mark in self.marks)}
        layers = sorted({self.layer(name) for name in own})
        body = {saved_name(name): array for name, array in own.items()}
        return PeftForm(plain_config(self.config(layers)), body, frozenset(own))

    def layer(self, name: str) -> str:
        """The layer that a weight of this method belongs to."""
        (mark,) = (mark for mark in self.marks if mark in name)
        return name.split(mark, maxsplit=1)[0]


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Within it, what is drawn from torch's global CPU generator follows from ``generator``; after it, nothing has."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach for GPUs, too
        yield


@contextmanager
def unworried() -> Iterator[None]:
    """Without peft's warning about layers that are not linear: those that are tuned on purpose, such as norms."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unsupported layer type", category=UserWarning)
        yield


def saved_name(name: str) -> str:
    """A weight's name in peft's files, which leave out what an adapter is called."""
    return ROOT + name.replace(".default", "")


def plain_config(config: Any) -> dict[str, Any]:
    """adapter_config.json as JSON has it."""
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}


def wrapped(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, peft layer) of every layer that peft wraps, outermost first."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            yield name, module


def unwrap(model: nn.Module) -> None:
    """Merges what peft's layers add into the backbone's own weights and takes the layers out, in place.

    peft's ``merge_and_unload`` does not do it for chains of several kinds, and for norms leaves the head wrapped.
    """
    from peft.utils import ModulesToSaveWrapper

    for name, layer in wrapped(model):
        _merge(layer)
        _replace(model, name, layer.get_base_layer())
    for name, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            _replace(model, name, module.modules_to_save["default"])


def _merge(layer: Any) -> None:
    """As peft does it; but a convolution over volumes with a kernel of one, at which peft fails, here."""
    base = layer.get_base_layer()
    if not isinstance(base, nn.Conv3d) or set(base.kernel_size) != {1}:
        layer.merge()
        return
    down, up = (weights["default"].weight for weights in (layer.lora_A, layer.lora_B))
    with torch.no_grad():
        base.weight.add_(torch.einsum("orxyz,rixyz->oixyz", up, down), alpha=layer.scaling["default"])


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def exact_draw(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> torch.Tensor:
    """Uniform in ±bound, float32: the same bits on every processor, since only whole numbers are drawn."""
    whole = torch.randint(-(2**24), 2**24 + 1, shape, generator=generator).to(torch.float64)
    return (whole * (bound / 2**24)).to(torch.float32)


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """float32 array of a tensor."""
    array: np.ndarray = tensor.detach().cpu().to(torch.float32).numpy()
    return array
