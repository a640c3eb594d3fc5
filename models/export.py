"""Adapters in peft's own format where peft has one, else in ours; merged models in transformers' own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from polyclinic.core import files
from polyclinic.core.errors import RunError, StudyError, UpdateError
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, decode, encode
from polyclinic.models.adaptation import PeftForm
from polyclinic.models.adaptations.injected import ROOT, unworried, unwrap
from polyclinic.models.backbones import quiet
from polyclinic.models.network import Adapted, build, plain, task

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "polyclinic.json"
HEAD, ENCODER = "head.", "encoder.safetensors"


def write_adapter(study: Study, tensors: Tensors, folder: Path, backbone: str) -> str:
    """Writes a global state and returns the SHA-256 of its weights file; ``backbone`` is that of its.

    In peft's format if one adaptation made all of it but the head and peft knows that adaptation: then
    ``PeftModel.from_pretrained(plain(study), folder)`` gives the same outputs. Else the state as it travels. The card
    says which; ``load_adapted`` reads both. What serves training alone is left out.
    """
    adapted = build(study)
    tensors = {name: array for name, array in tensors.items() if not adapted.chain.aside(name)}
    form = None if any(method.fills for method in study.adaptation) else _peft_form(adapted, tensors)
    body = encode(tensors if form is None else form.tensors)
    sha256 = hashlib.sha256(body).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / WEIGHTS, body)
    if form is not None:
        known = {"base_model_name_or_path": study.backbone.reference, "inference_mode": True}
        config = dict(form.config) | known | {"modules_to_save": ["head"]}
        files.write(folder / CONFIG, json.dumps(config, indent=1, sort_keys=True))
    card = {
        "study_digest": study.digest,
        "backbone": study.backbone.reference,
        "backbone_sha256": backbone,
        "sha256": sha256,
        "form": "polyclinic" if form is None else "peft",
    }
    files.write(folder / CARD, json.dumps(card, indent=1))
    return sha256


def form(folder: Path) -> str:
    """In which format the adapter in ``folder`` is: ``peft`` or ``polyclinic``.

    Raises:
        RunError: no adapter there.
    """
    card, _ = _read(folder)
    return str(card["form"])


def load_adapted(study: Study, folder: Path) -> nn.Module:
    """The study's network with the adapter in ``folder``: pixels [N, C, S, S] in [0, 1] → outputs.

    Raises:
        RunError: no adapter there, one of another study, or a damaged one.
    """
    card, body = _read(folder)
    if card["study_digest"] != study.digest:
        raise RunError(
            "the adapter belongs to another study", where=str(folder), remedy="use the run that it came from"
        )
    if hashlib.sha256(body).hexdigest() != card["sha256"]:
        remedy = "restore the folder from a copy, or resume the run with --resume: it is then written anew"
        raise RunError("the adapter's weights were changed or damaged", where=str(folder / WEIGHTS), remedy=remedy)
    adapted = None if card["form"] == "peft" else build(study)
    network = plain(study) if adapted is None else adapted.network
    if network.backbone.sha256 != card["backbone_sha256"]:
        remedy = "get the weights that the run used; pin them with backbone.sha256 in the study"
        raise RunError("the run had another backbone than the study now finds", where=str(folder), remedy=remedy)
    if adapted is None:
        from peft import PeftModel

        with unworried():
            model: nn.Module = PeftModel.from_pretrained(network, str(folder))
        return model.eval()
    try:
        aside = {name: array for name, array in adapted.read().items() if adapted.chain.aside(name)}
        adapted.write(aside | decode(body))
    except UpdateError as failure:
        raise RunError(f"holds no adapter of this study: {failure}", where=str(folder / WEIGHTS)) from failure
    return network.eval()


def write_merged(study: Study, adapter: Path, folder: Path) -> None:
    """Writes backbone with the adapter merged in and the head beside it, as safetensors.

    The backbone in transformers' format where transformers made it; else its weights alone (``encoder.safetensors``),
    by its makers' names, for the network that the card's reference describes.

    Raises:
        StudyError: something in the chain cannot be merged into the backbone's own weights.
    """
    if stuck := [method.method for method in study.adaptation if not method.merges]:
        raise StudyError(
            f"what '{stuck[0]}' adds cannot be merged into the backbone's own weights",
            where="adaptation",
            remedy="export the adapter, without --merged",
        )
    loaded: Any = load_adapted(study, adapter)
    merged = loaded.get_base_model() if hasattr(loaded, "get_base_model") else loaded
    unwrap(merged)
    encoder = merged.backbone.encoder
    if hasattr(encoder, "save_pretrained"):
        with quiet():
            encoder.save_pretrained(folder, safe_serialization=True)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: weight.contiguous() for name, weight in encoder.state_dict().items()}, folder / ENCODER)
    save_file(
        {name: weight.contiguous() for name, weight in merged.head.state_dict().items()}, folder / "head.safetensors"
    )
    card = {
        "study_digest": study.digest,
        "backbone": study.backbone.reference,
        "task": study.task.model_dump(mode="json"),
        "image_size": task(study).seen(study.data).image_size,
        "mean": merged.backbone.mean.flatten().tolist(),
        "std": merged.backbone.std.flatten().tolist(),
        "pooling": study.backbone.pooling,
        "leading_tokens": merged.backbone.leading,
    }
    files.write(folder / CARD, json.dumps(card, indent=1))


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    """(card, bytes of the weights)."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        named = {key: str(card[key]) for key in ("study_digest", "sha256", "backbone_sha256")}
        named["form"] = str(card.get("form", "peft"))  # the first runs had no other
        if named["form"] == "peft":
            json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return named, (folder / WEIGHTS).read_bytes()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as failure:
        raise RunError(f"holds no adapter: {failure}", where=str(folder), remedy="has the run finished?") from failure


def _peft_form(adapted: Adapted, tensors: Tensors) -> PeftForm | None:
    """The state as peft saves it, head included; None where peft could not say all of it."""
    if len(adapted.chain.peft) != 1:
        return None
    found = adapted.chain.peft[0](adapted.network, tensors)
    head = {name: array for name, array in tensors.items() if name.startswith(HEAD)}
    if found is None or tensors.keys() - found.covers - head.keys():
        return None
    named = {ROOT + name: array for name, array in head.items()}
    return PeftForm(found.config, dict(found.tensors) | named, found.covers)
