"""What a site does with a message: nothing but answer, or one round of LoRA on the backbone.

Flower begins a process for every message: what is needed is imported, loaded and decoded anew each time.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

if TYPE_CHECKING:
    from torch.nn import Parameter

    from polyclinic.simulations.bench.bare import Model

app = ClientApp()


@app.train()
def answer(message: Message, context: Context) -> Message:
    """The changed arrays, and the seconds that the work itself took."""
    told = message.content["arrays"]
    assert isinstance(told, ArrayRecord)
    arrays = told.to_numpy_ndarrays()
    config, examples, worked = context.run_config, 100, 0.0
    if int(config["values"]):
        rng = np.random.default_rng()
        answer = {"weights": arrays[0] + rng.standard_normal(len(arrays[0]), np.float32)}
    else:
        state = dict(zip(told.keys(), arrays, strict=True))
        manifest, site = (str(context.node_config[name]) for name in ("manifest", "site"))
        answer, examples, worked = train(state, str(config["weights"]), int(config["rank"]), Path(manifest), site)
    content = RecordDict({
        "arrays": ArrayRecord({name: Array(array) for name, array in answer.items()}),
        "metrics": MetricRecord({"num-examples": examples, "seconds": worked}),
    })  # fmt: skip
    return Message(content, reply_to=message)


def build(weights: str, rank: int) -> tuple[Model, dict[str, Parameter]]:
    """Backbone, LoRA layers and head, and what of it is trained."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    from polyclinic.simulations.bench.bare import Model, Work

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Model(Work(Path(), Path(weights), 1, 16, rank, 2.0 * rank, 1e-3, ("normal", "lesion")))
    layers = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    inject_adapter_in_model(layers, model.encoder)
    trained = {name: weight for name, weight in model.named_parameters() if "lora_" in name or name.startswith("head.")}
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in trained)
    return model, trained


def train(
    state: dict[str, np.ndarray], weights: str, rank: int, manifest: Path, site: str
) -> tuple[dict[str, np.ndarray], int, float]:
    """(weights, images, seconds): judges the weights that came, trains one epoch, judges again, as a site of ours."""
    import torch

    from polyclinic.simulations.bench import bare

    model, trained = build(weights, rank)
    work = bare.Work(manifest, Path(weights), 1, 16, rank, 2.0 * rank, 1e-3, ("normal", "lesion"))
    splits = bare.read(work)[site]
    bare.load(trained, {name: torch.from_numpy(array.copy()) for name, array in state.items()})
    begun = time.monotonic()
    bare.judge(model, splits["val"])
    bare.train(model, list(trained.values()), splits["train"], work, lambda: None)
    bare.judge(model, splits["val"])
    worked = time.monotonic() - begun
    return {name: weight.detach().numpy() for name, weight in trained.items()}, len(splits["train"][1]), worked
