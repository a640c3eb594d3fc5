"""Checkpoints of every supported family, as transformers itself writes them, with weights that matter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from polyclinic.models.backbones import quiet

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8, "mlp_ratio": 2,
}  # fmt: skip

Save = Callable[..., Path]


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """``save("Dinov2Model", dtype, **settings)`` → folder of a random model, the same each time."""

    def saved(name: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
        kind = getattr(transformers, name)
        known = kind.config_class.__annotations__
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = kind(kind.config_class(**{k: v for k, v in (SMALL | settings).items() if k in known}))
            for weight in model.parameters():
                torch.nn.init.normal_(weight, std=0.2)
        folder = tmp_path_factory.mktemp("checkpoint")
        with quiet():
            model.to(dtype).save_pretrained(folder)
        return folder

    return saved
