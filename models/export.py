"""Adapters in peft's own format, and merged models in transformers' own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors.torch import save_file
from torch import nn

from polyclinic.core import files
from polyclinic.core.errors import RunError, StudyError
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, encode
from polyclinic.models.adaptations.parameter import RESIDUAL, Lora
from polyclinic.models.backbones import quiet
from polyclinic.models.network import plain

A, B = ".lora_A.default.weight", ".lora_B.default.weight"
WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "polyclinic.json"


def write_adapter(study: Study, tensors: Tensors, folder: Path, backbone: str) -> str:
    """Writes a global state as a peft adapter and returns the SHA-256 of its weights file; ``backbone`` is that of its.

    ``PeftModel.from_pretrained(plain(study), folder)`` gives the same outputs. Residuals of ``exact`` are folded into
    the factors by a singular value decomposition that cuts nothing but rounding, so their rank may be higher.
    """
    lora = _lora(study)
    factors, ranks = _factors(tensors)
    body = encode({f"base_model.model.{name.replace('.default', '')}": array for name, array in factors.items()})
    sha256 = hashlib.sha256(body).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / WEIGHTS, body)
    files.write(folder / CONFIG, json.dumps(_config(study, lora, ranks), indent=1, sort_keys=True))
    named = {"backbone": study.backbone.reference, "backbone_sha256": backbone}
    card = {"study_digest": study.digest, **named, "sha256": sha256}
    files.write(folder / CARD, json.dumps(card, indent=1))
    return sha256


def load_adapted(study: Study, folder: Path) -> nn.Module:
    """The study's network with the adapter in ``folder``: pixels [N, C, S, S] in [0, 1] → outputs.

    Raises:
        RunError: no adapter there, one of another study, or a damaged one.
    """
    from peft import PeftModel

    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        digest, sha256, backbone = card["study_digest"], card["sha256"], card["backbone_sha256"]
        json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        body = (folder / WEIGHTS).read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as failure:
        raise RunError(f"holds no adapter: {failure}", where=str(folder), remedy="has the run finished?") from failure
    if digest != study.digest:
        raise RunError(
            "the adapter belongs to another study", where=str(folder), remedy="use the run that it came from"
        )
    if hashlib.sha256(body).hexdigest() != sha256:
        remedy = "restore the folder from a copy, or resume the run with --resume: it is then written anew"
        raise RunError("the adapter's weights were changed or damaged", where=str(folder / WEIGHTS), remedy=remedy)
    network = plain(study)
    if network.backbone.sha256 != backbone:
        remedy = "get the weights that the run used; pin them with backbone.sha256 in the study"
        raise RunError("the run had another backbone than the study now finds", where=str(folder), remedy=remedy)
    model: nn.Module = PeftModel.from_pretrained(network, str(folder))
    return model.eval()


def write_merged(study: Study, adapter: Path, folder: Path) -> None:
    """Writes backbone with the adapter merged in (transformers' format, safetensors) and the head beside it."""
    merged: Any = cast(Any, load_adapted(study, adapter)).merge_and_unload()
    with quiet():
        merged.backbone.encoder.save_pretrained(folder, safe_serialization=True)
    save_file(
        {name: weight.contiguous() for name, weight in merged.head.state_dict().items()}, folder / "head.safetensors"
    )
    card = {
        "study_digest": study.digest,
        "task": study.task.model_dump(mode="json"),
        "image_size": study.data.image_size,
        "mean": merged.backbone.mean.flatten().tolist(),
        "std": merged.backbone.std.flatten().tolist(),
        "pooling": study.backbone.pooling,
        "leading_tokens": merged.backbone.leading,
    }
    files.write(folder / CARD, json.dumps(card, indent=1))


def _lora(study: Study) -> Lora:
    for method in study.adaptation:
        if isinstance(method, Lora):
            return method
    raise StudyError("the chain has no LoRA, so there is no peft adapter to write", where="adaptation")


def _config(study: Study, lora: Lora, ranks: Mapping[str, int]) -> dict[str, Any]:
    """peft's adapter_config.json; layers whose rank is not the study's are named in its patterns."""
    from peft import LoraConfig

    layers = {layer: rank for layer, rank in ranks.items() if rank != lora.rank}
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=sorted(ranks),
        modules_to_save=["head"],
        rank_pattern=layers,
        alpha_pattern={layer: rank * lora.alpha / lora.rank for layer, rank in layers.items()},
        inference_mode=True,
        base_model_name_or_path=study.backbone.reference,
    ).to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def _factors(tensors: Tensors) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """(tensors without residuals, rank by layer)."""
    factors = {name: array for name, array in tensors.items() if not name.endswith(RESIDUAL)}
    ranks = {name.removesuffix(A): array.shape[0] for name, array in factors.items() if name.endswith(A)}
    for name, residual in tensors.items():
        if name.endswith(RESIDUAL):
            layer = name.removesuffix(RESIDUAL)
            product = residual.astype(np.float64) + factors[layer + B].astype(np.float64) @ factors[layer + A]
            b, a = factorise(product)
            factors[layer + B], factors[layer + A], ranks[layer] = b, a, len(a)
    return factors, ranks


def factorise(product: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B [out, r], A [r, in]) float32 with B·A = ``product`` up to rounding, r as small as that allows (at least 1)."""
    u, s, vt = np.linalg.svd(product, full_matrices=False)
    rank = max(1, int((s > s[0] * 1e-8).sum()))
    root = np.sqrt(s[:rank])
    return (u[:, :rank] * root).astype(np.float32), (root[:, None] * vt[:rank]).astype(np.float32)
