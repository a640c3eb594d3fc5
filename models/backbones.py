"""Backbones by reference: ``embedded:NAME``, ``file:PATH``, ``hf:ID_OR_FOLDER``; safetensors only, pinned by hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.core import registry
from polyclinic.core.errors import BackboneError, PluginError
from polyclinic.core.study import Backbone, Study

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FAMILIES = ("vit", "dinov2", "dinov2_with_registers")


@dataclass(frozen=True)
class Encoder:
    """A transformer as it was loaded.

    Attributes:
        module: takes ``pixel_values`` [N, channels, S, S], gives ``last_hidden_state`` [N, tokens, width].
        width: of a token.
        leading: tokens before those of patches (the class token, registers).
        mean, std: per channel, of pixels in [0, 1].
        sha256: of the weights file.
    """

    module: nn.Module
    width: int
    leading: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str


Loader = Callable[[str, int, str | None], Encoder]
"""(what follows the colon, image size in pixels, pinned SHA-256 or None) → encoder."""


def load(study: Study) -> Encoder:
    """The encoder that the study names, its position embeddings fitted to the study's image size.

    Raises:
        BackboneError: unknown reference, missing or unsuitable files, or another hash than the pinned one.
    """
    scheme, _, rest = study.backbone.reference.partition(":")
    try:
        loader: Loader = registry.load("backbones", scheme)
    except PluginError as failure:
        raise BackboneError(
            f"unknown kind of backbone '{scheme}:'", where="backbone.reference", remedy=failure.remedy
        ) from failure
    return loader(rest, study.data.image_size, study.backbone.sha256)


def embedded(name: str, image_size: int, sha256: str | None) -> Encoder:
    """One of the backbones that ship with Polyclinic."""
    home = Path(__file__).parent / "embedded"
    weights = home / f"{name.replace('-', '_')}.safetensors"
    if not weights.is_file():
        known = ", ".join(sorted(p.stem.replace("_", "-") for p in home.glob("*.safetensors")))
        raise BackboneError(f"no embedded backbone '{name}'", where="backbone.reference", remedy=f"there is: {known}")
    return file(str(weights), image_size, sha256)


def file(path: str, image_size: int, sha256: str | None) -> Encoder:
    """A ``.safetensors`` file with transformers' names, and beside it a ``.json``: configuration, mean and std."""
    weights = Path(path)
    card = weights.with_suffix(".json")
    try:
        body = weights.read_bytes()
        settings = json.loads(card.read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise BackboneError(
            f"cannot be read: {failure}", where=path, remedy=f"needs {weights.name} and {card.name}"
        ) from failure
    found = _check_hash(body, settings.get("sha256") if sha256 is None else sha256, path)
    return _assemble(settings, load_safetensors(body), image_size, found, path)


def hf(reference: str, image_size: int, sha256: str | None) -> Encoder:
    """A model on the Hugging Face hub or in a folder of that form; the hub is asked only if it is not forbidden."""
    folder = Path(reference)
    if not folder.is_dir():
        folder = _snapshot(reference)
    weights = folder / "model.safetensors"
    try:
        body = weights.read_bytes()
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise BackboneError(
            f"cannot be read: {failure}",
            where=reference,
            remedy="needs config.json and model.safetensors (one file; pickled weights are refused)",
        ) from failure
    found = _check_hash(body, sha256, reference)
    preprocessor = folder / "preprocessor_config.json"
    norms = json.loads(preprocessor.read_text(encoding="utf-8")) if preprocessor.is_file() else {}
    settings |= {"mean": norms.get("image_mean", IMAGENET[0]), "std": norms.get("image_std", IMAGENET[1])}
    return _assemble(settings, load_safetensors(body), image_size, found, reference)


def _snapshot(reference: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(reference, allow_patterns=["*.json", "model.safetensors"]))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as failure:
        raise BackboneError(
            "is no folder, is not in the local cache, and the hub did not give it",
            where=f"hf:{reference}",
            remedy="download it on a machine with network and give the folder's path",
        ) from failure


def _check_hash(body: bytes, pinned: str | None, where: str) -> str:
    found = hashlib.sha256(body).hexdigest()
    if pinned is not None and found != pinned:
        raise BackboneError(
            f"SHA-256 is {found}, pinned is {pinned}",
            where=where,
            remedy="these are other weights than the study was made for: get the right file",
        )
    return found


def _assemble(
    settings: Mapping[str, Any], state: dict[str, Tensor], image_size: int, sha256: str, where: str
) -> Encoder:
    kind = settings.get("model_type")
    if kind not in FAMILIES:
        raise BackboneError(
            f"model type '{kind}' is not supported", where=where, remedy=f"supported: {', '.join(FAMILIES)}"
        )
    patch = settings["patch_size"]
    if image_size % patch:
        raise BackboneError(
            f"image_size {image_size} is no multiple of the patch size {patch}",
            where="data.image_size",
            remedy=f"take {max(1, round(image_size / patch)) * patch}",
        )
    module = _module(kind, dict(settings) | {"image_size": image_size})
    state = _strip(state, module)
    leading = 1 + int(settings.get("num_register_tokens", 0))
    name = "embeddings.position_embeddings"
    state[name] = resize_positions(state[name].float(), (image_size // patch) ** 2)
    missing, unexpected = module.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    if missing:
        raise BackboneError(f"weights lack {missing[0]} and {len(missing) - 1} more", where=where)
    del unexpected  # a task head or a pooler that the checkpoint carries and we do not use
    module.requires_grad_(False)
    return Encoder(
        module.eval(), settings["hidden_size"], leading, tuple(settings["mean"]), tuple(settings["std"]), sha256
    )


def _module(kind: str, settings: Mapping[str, Any]) -> nn.Module:
    """The architecture, from our own list and transformers' code; never code from a checkpoint."""
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        ViTConfig,
        ViTModel,
    )

    if kind == "vit":
        module: nn.Module = ViTModel(ViTConfig(**_known(settings, ViTConfig)), add_pooling_layer=False)
    elif kind == "dinov2":
        module = Dinov2Model(Dinov2Config(**_known(settings, Dinov2Config)))
    else:
        module = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**_known(settings, Dinov2WithRegistersConfig)))
    return module


def _known(settings: Mapping[str, Any], config: type) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key in config().to_dict() and key != "model_type"}


def _strip(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Names without the prefix under which a task model's checkpoint keeps its backbone."""
    known = module.state_dict().keys()
    for prefix in ("", "vit.", "dinov2.", "dinov2_with_registers."):
        stripped = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if known & stripped.keys() >= {"embeddings.cls_token"}:
            return stripped
    return state


def resize_positions(positions: Tensor, patches: int) -> Tensor:
    """Position embeddings [1, 1 + old, width] for another number of patches, bicubic on the square grid."""
    old = positions.shape[1] - 1
    if old == patches:
        return positions
    before, after = round(old**0.5), round(patches**0.5)
    grid = positions[:, 1:].reshape(1, before, before, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(after, after), mode="bicubic", align_corners=False, antialias=False)
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, patches, -1)], dim=1)


def normalisation(study: Study, encoder: Encoder) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) per channel: the study's, or those that the backbone was trained with."""
    chosen = study.data.normalisation
    return (encoder.mean, encoder.std) if chosen == "backbone" else (chosen.mean, chosen.std)


__all__ = ["Backbone", "Encoder", "embedded", "file", "hf", "load", "normalisation", "resize_positions"]
