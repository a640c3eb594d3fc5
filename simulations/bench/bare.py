"""The same work as a federation, written as a plain PyTorch loop: what a simulation's price is measured against.

Nothing of Polyclinic is used: PIL, transformers, peft and torch alone. Per round and site it loads the global
weights, judges them on validation images, trains, judges again and adds the result to a running mean; at the end it
judges validation and test images once more. In round 1 it also passes one training image a patient through the frozen
backbone.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Work:
    """What there is to do.

    Attributes:
        manifest: CSV with path, site, label, split.
        weights: safetensors of a ViT, its configuration as JSON beside it.
        rounds, batch_size, rank, alpha, learning_rate: as in the study.
        classes: label texts, the positive one last.
    """

    manifest: Path
    weights: Path
    rounds: int
    batch_size: int
    rank: int
    alpha: float
    learning_rate: float
    classes: tuple[str, str]


Split = tuple[Tensor, Tensor]
"""uint8 [N, 1, S, S] and labels float [N]."""


class Model(nn.Module):
    """Backbone and linear head."""

    def __init__(self, work: Work) -> None:
        from safetensors.torch import load_file
        from transformers import ViTConfig, ViTModel

        super().__init__()
        settings = json.loads(work.weights.with_suffix(".json").read_text())
        self.mean, self.std = (
            torch.tensor(settings["mean"]).view(1, -1, 1, 1),
            torch.tensor(settings["std"]).view(1, -1, 1, 1),
        )
        known = {k: v for k, v in settings.items() if k in ViTConfig().to_dict()}
        self.encoder = ViTModel(ViTConfig(**known), add_pooling_layer=False).eval()
        self.encoder.load_state_dict({name: weight.float() for name, weight in load_file(work.weights).items()})
        self.head = nn.Linear(2 * settings["hidden_size"], 1)

    def features(self, pixels: Tensor) -> Tensor:
        """[N, 2 · width]."""
        tokens = self.encoder(pixel_values=(pixels.float() / 255 - self.mean) / self.std).last_hidden_state
        return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """[N]."""
        output: Tensor = self.head(self.features(pixels))[:, 0]
        return output


def run(work: Work, on_step: Callable[[], None] = lambda: None) -> dict[str, Tensor]:
    """Does all of it and returns the last global weights; ``on_step`` is called after each optimiser step."""
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    model = Model(work)
    frozen = Model(work)
    config = LoraConfig(r=work.rank, lora_alpha=work.alpha, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    inject_adapter_in_model(config, model.encoder)
    trained = {n: p for n, p in model.named_parameters() if "lora_" in n or n.startswith("head.")}
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in trained)
    sites = read(work)
    state = {name: weight.detach().clone() for name, weight in trained.items()}
    for number in range(work.rounds):
        total, count = {name: torch.zeros_like(weight) for name, weight in state.items()}, 0
        for splits in sites.values():
            load(trained, state)
            judge(model, splits["val"])
            if number == 0:
                outputs(frozen.features, splits["train"][0])
            train(model, list(trained.values()), splits["train"], work, on_step)
            judge(model, splits["val"])
            images = len(splits["train"][1])
            for name, weight in trained.items():
                total[name] += weight.detach() * images
            count += images
        state = {name: weight / count for name, weight in total.items()}
    load(trained, state)
    for splits in sites.values():
        judge(model, splits["val"])
        judge(model, splits["test"])
    return state


def read(work: Work) -> dict[str, dict[str, Split]]:
    """Site → split → images, all decoded."""
    from PIL import Image

    rows: dict[str, dict[str, list[tuple[np.ndarray, int]]]] = {}
    with work.manifest.open(newline="") as lines:
        for row in csv.DictReader(lines):
            with Image.open(work.manifest.parent / row["path"]) as picture:
                pixels = np.asarray(picture)
            splits = rows.setdefault(row["site"], {"train": [], "val": [], "test": []})
            splits[row["split"]].append((pixels, work.classes.index(row["label"])))
    return {site: {split: stack(pairs) for split, pairs in splits.items()} for site, splits in rows.items()}


def stack(pairs: list[tuple[np.ndarray, int]]) -> Split:
    """Images and labels as tensors."""
    pixels = torch.from_numpy(np.stack([image for image, _ in pairs]))[:, None]
    return pixels, torch.tensor([float(label) for _, label in pairs])


def load(trained: dict[str, nn.Parameter], state: dict[str, Tensor]) -> None:
    """Sets the trained weights."""
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(state[name])


def train(model: Model, weights: list[nn.Parameter], split: Split, work: Work, on_step: Callable[[], None]) -> None:
    """One epoch."""
    optimiser = torch.optim.AdamW(weights, lr=work.learning_rate, weight_decay=0.01)
    for chosen in torch.randperm(len(split[1])).split(work.batch_size):
        loss = nn.functional.binary_cross_entropy_with_logits(model(split[0][chosen]), split[1][chosen])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        on_step()


def judge(model: Model, split: Split) -> float:
    """Mean loss."""
    return float(nn.functional.binary_cross_entropy_with_logits(outputs(model, split[0]), split[1]))


def outputs(function: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """What ``function`` gives for all images."""
    with torch.inference_mode():
        return torch.cat([function(part) for part in pixels.split(64)])
