"""Networks that transformers builds: which ones, what their files must say, and how they are fitted and seen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from polyclinic.core.errors import BackboneError, PolyclinicError
from polyclinic.models.backbones import hierarchical, sam, tokens
from polyclinic.models.backbones.encoder import Encoder, View, encoder
from polyclinic.models.backbones.files import demand_multiple, unfit
from polyclinic.models.backbones.tokens import Plain, resize_positions

Settings = Mapping[str, Any]
State = Mapping[str, Tensor]
TRANSFORMER = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size")


@dataclass(frozen=True)
class Family:
    """One kind of network.

    Attributes:
        name: how transformers calls its classes, without Model and Config.
        needed: keys of a configuration whose defaults would pass for true where they are not.
        view: how a module is seen.
        step: what the side of a picture must be a multiple of.
        fit: the weights, for pictures of ``config.image_size``.
        given: what the class is told besides its configuration.
    """

    name: str
    needed: tuple[str, ...]
    view: Callable[[Any], View]
    step: Callable[[Settings], int]
    fit: Callable[[State, Any], State] = lambda state, config: state
    given: Mapping[str, Any] = field(default_factory=dict)


def _patch(settings: Settings) -> int:
    patch = settings["patch_size"]
    if type(patch) is not int or patch < 1:
        raise BackboneError(f"patch size {patch} is no whole number of pixels", where="backbone.reference")
    return patch


def _coarsest(settings: Settings) -> int:
    """The stride of the last stage."""
    return int(_patch(settings) * 2 ** (len(settings["depths"]) - 1))


def _positions(antialias: bool, leading: int, state: State, config: Any) -> State:
    patches, place = (config.image_size // config.patch_size) ** 2, "embeddings.position_embeddings"
    fitted = dict(state)
    for name in state:
        if name.endswith(place):
            fitted[name] = resize_positions(state[name], patches, antialias=antialias, leading=leading)
    return fitted


_NO_POOLER = {"add_pooling_layer": False}
_DINO = Plain("encoder.layer", "layernorm")
_SAM = Family("SamVision", (), sam.view, lambda settings: _patch({"patch_size": 16} | dict(settings)), sam.fit)
FAMILIES = {
    "vit": Family(
        "ViT",
        TRANSFORMER,
        partial(tokens.view, Plain("layers", "layernorm")),
        _patch,
        partial(_positions, False, 1),
        _NO_POOLER,
    ),
    "dinov2": Family("Dinov2", TRANSFORMER, partial(tokens.view, _DINO), _patch, partial(_positions, False, 1)),
    "dinov2_with_registers": Family(
        "Dinov2WithRegisters", TRANSFORMER, partial(tokens.view, _DINO), _patch, partial(_positions, True, 1)
    ),
    "dinov3_vit": Family(
        "DINOv3ViT", TRANSFORMER, partial(tokens.view, Plain("model.layer", "norm", rotary=True)), _patch
    ),
    "dinov3_convnext": Family(
        "DINOv3ConvNext",
        ("hidden_sizes", "depths"),
        hierarchical.convnext,
        lambda settings: _coarsest({"patch_size": 4} | dict(settings)),
    ),
    "swin": Family(
        "Swin",
        ("embed_dim", "depths", "num_heads", "window_size", "patch_size"),
        hierarchical.swin,
        _coarsest,
        partial(_positions, False, 0),
        _NO_POOLER,
    ),
    "convnext": Family("ConvNext", ("hidden_sizes", "depths", "patch_size"), hierarchical.convnext, _coarsest),
    "sam": _SAM,
    "sam_vision_model": _SAM,
}
"""By the model type in a configuration."""


def assemble(settings: Settings, body: bytes, image_size: int, sha256: str, where: str) -> Encoder:
    """The encoder that a configuration (with ``mean`` and ``std``) and the bytes of a safetensors file make.

    Raises:
        BackboneError: an unsupported kind, or something does not fit.
    """
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise BackboneError(
            f"model type '{kind}' is not supported", where=where, remedy=f"supported: {', '.join(FAMILIES)}"
        )
    family, whole = FAMILIES[kind], dict(settings)
    if isinstance(nested := whole.get("vision_config"), dict):
        whole = nested | {key: whole[key] for key in ("mean", "std") if key in whole}
    if absent := [key for key in (*family.needed, "mean", "std") if key not in whole]:
        raise BackboneError(f"the configuration lacks '{absent[0]}'", where=where, remedy="get the whole of it")
    try:
        demand_multiple(image_size, family.step(whole), "patch size or coarsest stride")
        mean, std = _normalisation(whole)
        module = _module(family, whole | {"image_size": image_size}, body)
        return encoder(module, family.view(module), module.config.num_channels, (mean, std), sha256)
    except PolyclinicError:
        raise
    except Exception as failure:  # transformers raises whatever it likes on a configuration that does not fit
        raise unfit(failure, where) from failure


def _normalisation(settings: Settings) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = (tuple(float(number) for number in settings[key]) for key in ("mean", "std"))
    if len(mean) != len(std) or min(std) <= 0.0:
        raise ValueError("mean and std need one number each per channel, std above 0")
    return mean, std


def _module(family: Family, settings: Settings, body: bytes) -> Any:
    """The model with its weights, through transformers' own code, which knows older names of weights and prefixes of
    task models; never through code from a checkpoint."""
    import transformers

    model, configuration = (getattr(transformers, family.name + part) for part in ("Model", "Config"))
    config = configuration(**{key: settings[key] for key in configuration.__annotations__ if key in settings})
    state = {name: weight.to(torch.float32, copy=True) for name, weight in load_safetensors(body).items()}
    with quiet():
        module, told = model.from_pretrained(
            None,
            config=config,
            state_dict=dict(family.fit(state, config)),
            dtype=torch.float32,
            output_loading_info=True,
            **family.given,
        )
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"weights lack {missing[0]} and {len(missing) - 1} more")
    # what else is left over is a task head or a pooler, which we do not use
    beyond = sorted(name for name in told["unexpected_keys"] if re.search(r"\b(layers?|blocks?|stages?)\.\d", name))
    if beyond:
        raise ValueError(f"the configuration has no place for {beyond[0]} and {len(beyond) - 1} more")
    return module


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and load reports."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
