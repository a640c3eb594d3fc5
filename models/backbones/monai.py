"""``monai:NAME`` makes one of MONAI's networks from scratch; ``monai:FOLDER`` reads one from a bundle."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from polyclinic.core.errors import BackboneError, PolyclinicError
from polyclinic.core.seeds import derive
from polyclinic.models.backbones.encoder import Encoder, Normalisation, encoder
from polyclinic.models.backbones.files import body, check_hash, demand_multiple, document, unfit
from polyclinic.models.backbones.monai_kinds import KINDS, Kind, fit_positions

WEIGHTS = ("model.safetensors", "models/model.safetensors", "model.pt", "models/model.pt")
DEFINITIONS = ("network.json", "configs/inference.json", "configs/train.json")
FRESH = (0.5,), (0.25,)
"""Mean and deviation for a network that has seen nothing yet."""
AS_IS = (0.0,), (1.0,)
"""For bundles that do not say: pixels in [0, 1], as MONAI's ScaleIntensity leaves them."""


def monai(reference: str, image_size: int, sha256: str | None, depth: int | None = None) -> Encoder:
    """A network of MONAI's.

    ``NAME?word=value&…`` (``unet?channels=1&features=16,32,64``) is made anew, and its random weights follow from that
    text alone. A folder holds ``network.json`` (or a bundle's ``configs/inference.json``) with a ``network_def``, and
    ``model.safetensors``, or a ``model.pt`` of nothing but tensors that the study pins.

    Raises:
        BackboneError: an unknown name or word, missing or unsuitable files, or another hash than the pinned one.
    """
    sides = (image_size, image_size) if depth is None else (depth, image_size, image_size)
    name, _, query = reference.partition("?")
    if name in KINDS:
        return _from_scratch(KINDS[name], f"monai:{reference}", query, sides, sha256)
    if not Path(name).is_dir():
        remedy = f"there is: {', '.join(KINDS)}; or give a bundle's folder"
        raise BackboneError(f"no network '{name}' and no such folder", where="backbone.reference", remedy=remedy)
    return _from_bundle(Path(name), sides, sha256)


def _from_scratch(kind: Kind, where: str, query: str, sides: tuple[int, ...], sha256: str | None) -> Encoder:
    arguments = kind.defaults() | dict(kind.scratch)
    arguments |= {"spatial_dims": len(sides), "in_channels": 3 if len(sides) == 2 else 1}
    for word, value in parse_qsl(query, keep_blank_values=True):
        if word not in kind.words:
            raise BackboneError(f"has no setting '{word}'", where=where, remedy=f"known: {', '.join(kind.words)}")
        arguments[kind.words[word]] = _number(word, value, arguments.get(kind.words[word]), where)
    arguments |= kind.follows(arguments)
    _demand_sides(kind, arguments, sides, where)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(where))
            module = kind.build(arguments, sides, kind.last)
    except Exception as failure:
        raise BackboneError(f"MONAI cannot make it: {failure}", where=where, remedy="change its settings") from failure
    state = {name: weight.contiguous() for name, weight in sorted(module.state_dict().items())}
    found = check_hash(save_safetensors(state), sha256, where)
    return _encoder(kind, module, arguments, FRESH, found, pretrained=False)


def _number(word: str, text: str, like: Any, where: str) -> Any:
    """A whole number, or several where several are meant."""
    several = isinstance(like, list | tuple)
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1 or (len(numbers) > 1 and not several):
        meant = "whole numbers with commas between them" if several else "one whole number"
        raise BackboneError(f"{word} = '{text}' cannot be", where=where, remedy=f"write {meant}, above 0")
    return numbers if several else numbers[0]


def _from_bundle(folder: Path, sides: tuple[int, ...], sha256: str | None) -> Encoder:
    where = str(folder)
    kind, arguments, norms = definition(folder)
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), folder / WEIGHTS[0])
    weights = body(path, where, f"needs one of {', '.join(WEIGHTS)}")
    if path.suffix == ".pt" and sha256 is None:
        remedy = "pin it with backbone.sha256 in the study, or save its tensors as model.safetensors"
        raise BackboneError("a file in torch's own format is read only if it is pinned", where=str(path), remedy=remedy)
    found, left_out = check_hash(weights, sha256, where), (*kind.last, *kind.task)
    try:
        before = _sides(arguments.pop("img_size", sides), len(sides))
        arguments = kind.defaults() | arguments
        if isinstance(patches := arguments.get("patch_size"), list):
            (arguments["patch_size"],) = set(patches)  # a cube, or nothing that is known here
        _demand_sides(kind, arguments, sides, where)
        module = kind.build(arguments, sides, left_out)
        state = _unpickled(weights) if path.suffix == ".pt" else load_safetensors(weights)
        state = {name: value for name, value in state.items() if not name.startswith(tuple(f"{n}." for n in left_out))}
        _take(module, fit_positions(state, arguments.get("patch_size", 16), before, sides) if kind.sized else state)
        return _encoder(kind, module, arguments, norms, found, pretrained=True)
    except PolyclinicError:
        raise
    except Exception as failure:  # MONAI and torch raise whatever they like
        raise unfit(failure, where) from failure


def _sides(told: Any, dims: int) -> tuple[int, ...]:
    """The sides of the pictures that a bundle was made for."""
    return tuple(int(side) for side in told) if isinstance(told, list | tuple) else (int(told),) * dims


def definition(folder: Path) -> tuple[Kind, dict[str, Any], Normalisation]:
    """(kind of network, what its class is told, mean and std) as a bundle says it; expressions are not run.

    Raises:
        BackboneError: it says nothing of a network, or something that is not known here.
    """
    where, remedy = str(folder), f"needs a network_def in one of {', '.join(DEFINITIONS)}"
    path = next((folder / name for name in DEFINITIONS if (folder / name).is_file()), folder / DEFINITIONS[0])
    whole = document(path, where, remedy)
    told = whole.get("network_def")
    if not isinstance(told, dict):
        raise BackboneError(f"{path.name} holds no network_def", where=where, remedy=remedy)
    kind = KINDS.get(str(told.get("_target_", "")).rpartition(".")[2].lower())
    if kind is None:
        supported = ", ".join(kind.target for kind in KINDS.values())
        problem = f"network '{told.get('_target_')}' is not supported"
        raise BackboneError(problem, where=where, remedy=f"supported: {supported}")
    arguments = {key: value for key, value in told.items() if not key.startswith("_")}
    for key, value in arguments.items():
        parts = value if isinstance(value, list) else [value]
        if any(isinstance(part, str) and part[:1] in ("$", "@", "%") for part in parts):
            problem = f"{key} = '{value}' is an expression, which is not run"
            raise BackboneError(problem, where=where, remedy="write the value itself")
    if foreign := sorted(arguments.keys() - kind.knows()):
        raise BackboneError(f"{kind.target} has no '{foreign[0]}'", where=where, remedy="correct network_def")
    try:
        mean, std = (tuple(map(float, whole.get(key, own))) for key, own in zip(("mean", "std"), AS_IS, strict=True))
    except (TypeError, ValueError) as failure:
        raise BackboneError("mean and std need one number each per channel", where=where) from failure
    return kind, arguments | ({"pretrained": False} if "pretrained" in arguments else {}), (mean, std)


def _demand_sides(kind: Kind, arguments: Mapping[str, Any], sides: tuple[int, ...], where: str) -> None:
    """Nothing, if the network sees pictures of those sides.

    Raises:
        BackboneError: it is for pictures and these are volumes, or the other way round, or the sides do not divide.
    """
    if arguments.get("spatial_dims") != len(sides):
        problem = f"a network of {arguments.get('spatial_dims')} dimensions cannot see images of {len(sides)}"
        remedy = 'leave dims out; volumes need volume = "whole" and a depth in [data]'
        raise BackboneError(problem, where=where, remedy=remedy)
    step = kind.step(arguments)
    for key, side in zip(("image_size", "depth"), (sides[-1], *sides[:-2]), strict=False):
        demand_multiple(side, step, "coarsest stride", key)
        if side < kind.fewest * step:
            problem, remedy = f"{key} {side} is too small for this network", f"take {kind.fewest * step} or more"
            raise BackboneError(problem, where=f"data.{key}", remedy=remedy)


def _unpickled(weights: bytes) -> dict[str, Tensor]:
    """Named tensors of a file in torch's own format, in which MONAI publishes bundles; its hash was checked before.

    Beside the embedded backbone's teacher this is the one place that unpickles, and it takes nothing but tensors.
    """
    found = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)  # noqa: TID251
    for key in ("state_dict", "model_state_dict", "model"):
        found = found.get(key, found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError("the file holds no named tensors")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def _take(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads the weights, all of them and no others; ValueError if they are for another network."""
    told = module.load_state_dict(state, strict=False)
    if missing := told.missing_keys:
        raise ValueError(f"weights lack {missing[0]} and {len(missing) - 1} more")
    if beyond := told.unexpected_keys:
        raise ValueError(f"network_def has no place for {beyond[0]} and {len(beyond) - 1} more")


def _encoder(
    kind: Kind, module: nn.Module, arguments: Mapping[str, Any], norms: Normalisation, sha256: str, *, pretrained: bool
) -> Encoder:
    view, volumes = kind.view(module, arguments), arguments["spatial_dims"] == 3
    return encoder(module, view, arguments["in_channels"], norms, sha256, volumes=volumes, pretrained=pretrained)
