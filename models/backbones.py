"""Backbones by reference: ``embedded:NAME``, ``file:PATH``, ``hf:ID_OR_FOLDER``; safetensors only, pinned by hash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.core import registry
from polyclinic.core.errors import BackboneError, PluginError, PolyclinicError
from polyclinic.core.study import Backbone, Study
from polyclinic.models.contracts import Level

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FAMILIES = {"vit": "ViT", "dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}
"""Model types and how transformers calls their classes."""
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "mean", "std")
"""Keys of a configuration whose defaults would pass for true where they are not."""


@dataclass(frozen=True)
class Seen:
    """What an encoder makes of a batch.

    Attributes:
        mean: [N, width] over all places.
        cls: [N, width], the class token; None for an encoder without one.
        maps: [N, channels, (D,) H, W] of every level, the finest first; none unless they were asked for.
    """

    mean: Tensor
    cls: Tensor | None = None
    maps: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Encoder:
    """A frozen network as it was loaded.

    Attributes:
        module: the network itself, by its makers' own names.
        see: (module, normalised pixels [N, channels, (D,) S, S], whether maps are wanted) → what it sees.
        width: of what it sees.
        levels: of its maps, the finest first; empty for one that has none.
        channels: that it takes.
        mean, std: per channel, of pixels in [0, 1].
        sha256: of the weights file.
        has_cls: whether there is a class token.
        leading: tokens before those of patches (the class token, registers), for those that export them.
        volumes: whether it takes volumes, [N, channels, D, S, S], and not flat pictures.
    """

    module: nn.Module
    see: Callable[[nn.Module, Tensor, bool], Seen]
    width: int
    levels: tuple[Level, ...]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    has_cls: bool = True
    leading: int = 0
    volumes: bool = False


LEVELS = 4
"""Depths of a plain transformer at which a decoder looks in."""


def tokens(leading: int, patch: int) -> Callable[[nn.Module, Tensor, bool], Seen]:
    """How transformers' plain vision transformers are seen; what is appended after the patches' tokens is not.

    Maps are the patches' tokens at four depths, evenly spaced, the last one after the final normalisation.
    """

    def see(module: nn.Module, pixels: Tensor, maps: bool) -> Seen:
        height, width = pixels.shape[-2] // patch, pixels.shape[-1] // patch
        found = module(pixel_values=pixels, output_hidden_states=maps)
        last = found.last_hidden_state
        places = last[:, leading : leading + height * width]
        if not maps:
            return Seen(places.mean(dim=1), last[:, 0] if leading else None)
        depth = len(found.hidden_states) - 1
        chosen = [*(found.hidden_states[round(depth * (i + 1) / LEVELS)] for i in range(LEVELS - 1)), last]
        grids = (one[:, leading : leading + height * width].transpose(1, 2) for one in chosen)
        maps_ = tuple(grid.reshape(len(pixels), -1, height, width) for grid in grids)
        return Seen(places.mean(dim=1), last[:, 0] if leading else None, maps_)

    return see


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
    known = {path.stem.replace("_", "-"): path for path in sorted(home.glob("*.safetensors"))}
    if name not in known:
        remedy = f"there is: {', '.join(known)}"
        raise BackboneError(f"no embedded backbone '{name}'", where="backbone.reference", remedy=remedy)
    return file(str(known[name]), image_size, sha256)


def file(path: str, image_size: int, sha256: str | None) -> Encoder:
    """A ``.safetensors`` file with transformers' names, and beside it a ``.json``: configuration, mean and std."""
    weights = Path(path)
    card = weights.with_suffix(".json")
    body, settings = _read(weights, card, path, f"needs {weights.name} and {card.name}")
    found = _check_hash(body, settings.get("sha256") if sha256 is None else sha256, path)
    return _assemble(settings, body, image_size, found, path)


def hf(reference: str, image_size: int, sha256: str | None) -> Encoder:
    """A model on the Hugging Face hub or in a folder of that form; the hub is asked only if it is not forbidden."""
    folder = Path(reference)
    if not folder.is_dir():
        folder = _snapshot(reference)
    if (folder / "model.safetensors.index.json").is_file():
        remedy = "load it with transformers and save it as one: save_pretrained(folder, max_shard_size='100GB')"
        raise BackboneError("its weights lie in several files", where=reference, remedy=remedy)
    remedy = "needs config.json and model.safetensors (one file; pickled weights are refused)"
    body, settings = _read(folder / "model.safetensors", folder / "config.json", reference, remedy)
    found = _check_hash(body, sha256, reference)
    preprocessor = folder / "preprocessor_config.json"
    norms = _document(preprocessor, reference, "mend or delete it") if preprocessor.is_file() else {}
    settings |= {"mean": norms.get("image_mean", IMAGENET[0]), "std": norms.get("image_std", IMAGENET[1])}
    return _assemble(settings, body, image_size, found, reference)


def _read(weights: Path, card: Path, where: str, remedy: str) -> tuple[bytes, dict[str, Any]]:
    """(bytes of the weights, configuration)."""
    try:
        body = weights.read_bytes()
    except OSError as failure:
        raise BackboneError(f"cannot be read: {failure}", where=where, remedy=remedy) from failure
    return body, _document(card, where, remedy)


def _document(path: Path, where: str, remedy: str) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as failure:
        raise BackboneError(f"{path.name} cannot be read: {failure}", where=where, remedy=remedy) from failure
    if not isinstance(document, dict):
        raise BackboneError(f"{path.name} holds no JSON object", where=where, remedy=remedy)
    return document


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


def _assemble(settings: Mapping[str, Any], body: bytes, image_size: int, sha256: str, where: str) -> Encoder:
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise BackboneError(
            f"model type '{kind}' is not supported", where=where, remedy=f"supported: {', '.join(FAMILIES)}"
        )
    if absent := [key for key in NEEDED if key not in settings]:
        raise BackboneError(f"the configuration lacks '{absent[0]}'", where=where, remedy="get the whole of it")
    patch = settings["patch_size"]
    if type(patch) is not int or patch < 1:
        raise BackboneError(f"patch size {patch} is no whole number of pixels", where=where)
    if image_size % patch:
        raise BackboneError(
            f"image_size {image_size} is no multiple of the patch size {patch}",
            where="data.image_size",
            remedy=f"take {max(1, round(image_size / patch)) * patch}",
        )
    try:
        mean, std = _normalisation(settings)
        module = _module(kind, dict(settings) | {"image_size": image_size}, body, (image_size // patch) ** 2)
    except PolyclinicError:
        raise
    except Exception as failure:  # transformers raises whatever it likes on a configuration that does not fit
        problem = f"weights and configuration do not fit: {failure}"
        raise BackboneError(problem, where=where, remedy="get both from the same place, whole") from failure
    leading, width = 1 + int(getattr(module.config, "num_register_tokens", 0)), module.config.hidden_size
    module.requires_grad_(False)
    levels = (Level(width, patch),) * LEVELS
    channels = module.config.num_channels
    return Encoder(module.eval(), tokens(leading, patch), width, levels, channels, mean, std, sha256, leading=leading)


def _normalisation(settings: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = (tuple(float(number) for number in settings[key]) for key in ("mean", "std"))
    if len(mean) != len(std) or min(std) <= 0.0:
        raise ValueError("mean and std need one number each per channel, std above 0")
    return mean, std


def _module(kind: str, settings: Mapping[str, Any], body: bytes, patches: int) -> Any:
    """The model with its weights, through transformers' own code, which knows older names of weights and prefixes of
    task models; never through code from a checkpoint."""
    import transformers

    model, configuration = (getattr(transformers, FAMILIES[kind] + part) for part in ("Model", "Config"))
    config = configuration(**{key: settings[key] for key in configuration.__annotations__ if key in settings})
    state = {name: weight.to(torch.float32, copy=True) for name, weight in load_safetensors(body).items()}
    for name, weight in state.items():
        if name.endswith("embeddings.position_embeddings"):
            state[name] = resize_positions(weight, patches, antialias=kind == "dinov2_with_registers")
    head = {"add_pooling_layer": False} if kind == "vit" else {}
    with quiet():
        module, told = model.from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True, **head
        )
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"weights lack {missing[0]} and {len(missing) - 1} more")
    # what else is left over is a task head or a pooler, which we do not use
    if beyond := sorted(name for name in told["unexpected_keys"] if re.search(r"\blayers?\.\d", name)):
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


def resize_positions(positions: Tensor, patches: int, *, antialias: bool = False) -> Tensor:
    """Position embeddings [1, 1 + old, width] for another number of patches, bicubic on the square grid.

    The families' own interpolation: with ``antialias`` as DINOv2 with registers does it, without as the others do.
    """
    old = positions.shape[1] - 1
    if old == patches:
        return positions
    before, after = round(old**0.5), round(patches**0.5)
    if before**2 != old:
        raise ValueError(f"{old} position embeddings are no square")
    grid = positions[:, 1:].reshape(1, before, before, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(after, after), mode="bicubic", align_corners=False, antialias=antialias)
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, patches, -1)], dim=1)


def normalisation(study: Study, encoder: Encoder) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) per channel of the encoder: the study's, or those that the backbone was trained with.

    Raises:
        BackboneError: they are for another number of channels.
    """
    chosen = study.data.normalisation
    pair = (encoder.mean, encoder.std) if chosen == "backbone" else (chosen.mean, chosen.std)
    if len(pair[0]) not in (1, encoder.channels):
        raise BackboneError(
            f"the normalisation has {len(pair[0])} channels and the backbone {encoder.channels}",
            where="data.normalisation",
            remedy=f"give {encoder.channels} numbers each for mean and std",
        )
    mean, std = (numbers if len(numbers) > 1 else numbers * encoder.channels for numbers in pair)
    return mean, std


__all__ = ["Backbone", "Encoder", "embedded", "file", "hf", "load", "normalisation", "quiet", "resize_positions"]
