"""What a private step costs: ours and Opacus' ways beside a plain step, in turn, on one network and one batch."""

from __future__ import annotations

import copy
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.client.private.step import Portion, PrivateStep, Terms
from polyclinic.core.errors import EngineError
from polyclinic.core.memory import peak_mb
from polyclinic.core.privacy.noise import Keyed
from polyclinic.models.backbone import Backbone
from polyclinic.models.backbones import Encoder
from polyclinic.models.backbones.tokens import tokens
from polyclinic.models.contracts import Batch, Views
from polyclinic.models.network import Network
from polyclinic.simulations.bench.figure import Measured

GOAL = 1.0
NOISE, CLIP, RATE = 1.0, 1.0, 1e-4
ATTENTION = ("q_proj", "v_proj")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")
ALONE = "import sys; from polyclinic.simulations.bench.private_step import alone; alone(int(sys.argv[1]), sys.argv[2])"
Step = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """A network's layout and what of it trains: LoRA of rank 8 on ``targets``, and the head."""

    name: str
    side: int
    targets: tuple[str, ...]
    batch: int = 32


CASES = (
    Case("vit-s 112 q,v", 112, ATTENTION),
    Case("vit-s 112 all", 112, ALL),
    Case("vit-s 224 q,v", 224, ATTENTION),
    Case("vit-s 224 all", 224, ALL),
)


def network(case: Case) -> Network:
    """ViT-S layout, random weights, LoRA fitted in."""
    from peft.tuners.lora import LoraConfig, LoraModel
    from transformers import ViTConfig, ViTModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
        config = ViTConfig(**sizes, image_size=case.side, patch_size=16)
        encoder = ViTModel(config, add_pooling_layer=False).eval()
        half = (0.5,) * 3
        seen = Encoder(encoder, tokens(1, 16), 384, (), 3, half, half, "")
        made = Network(Backbone(seen, half, half, "mean"), nn.Linear(384, 2), dense=False)
        LoraModel(made, LoraConfig(r=8, lora_alpha=16, target_modules=list(case.targets)), "default")
        del made.peft_config
    for name, weight in made.named_parameters():
        weight.requires_grad_("lora_" in name or name.startswith("head."))
    return made


def batch(case: Case) -> tuple[Tensor, Tensor]:
    """(pixels, targets)."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand((case.batch, 3, case.side, case.side), generator=generator)
    return pixels, torch.randint(0, 2, (case.batch,), generator=generator)


def plain(model: Network, pixels: Tensor, targets: Tensor) -> Step:
    """A step of everyday training."""
    optimiser = torch.optim.SGD(trained(model), RATE)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(model(pixels), targets).backward()
        torch.nn.utils.clip_grad_norm_(trained(model), CLIP)
        optimiser.step()

    return step


def ours(model: Network, pixels: Tensor, targets: Tensor) -> Step:
    """Polyclinic's."""
    optimiser = torch.optim.SGD(trained(model), RATE)

    def objective(model: nn.Module, seen: Batch) -> Tensor:
        return F.cross_entropy(seen.output, seen.target)

    terms = Terms(NOISE, CLIP, "flat", float(len(pixels)))
    private = PrivateStep(model, objective, terms, Keyed(bytes(32)))
    portion = Portion(Views(pixels, targets), torch.arange(len(pixels)), len(pixels))
    public = Views(torch.zeros_like(pixels[:1]), torch.zeros_like(targets[:1]))
    weights = dict(model.named_parameters())

    def step() -> None:
        for name, gradient in private.gradient(iter([portion]), public).items():
            weights[name].grad = gradient
        optimiser.step()

    return step


def hooks(model: Network, pixels: Tensor, targets: Tensor, functorch: bool = False) -> Step:
    """Opacus' gradients by picture, by its hooks or by functorch, and its optimiser."""
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    wrapped: Any = GradSampleModule(model, force_functorch=functorch)
    inner = torch.optim.SGD(trained(model), RATE)
    optimiser: Any = DPOptimizer(inner, noise_multiplier=NOISE, max_grad_norm=CLIP, expected_batch_size=len(pixels))

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(wrapped(pixels), targets).backward()
        optimiser.step()

    return step


def ghost(model: Network, pixels: Tensor, targets: Tensor) -> Step:
    """Opacus' ghost clipping: two backward passes, no gradients by picture in memory."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    wrapped: Any = GradSampleModuleFastGradientClipping(model, max_grad_norm=CLIP, use_ghost_clipping=True)
    inner = torch.optim.SGD(trained(model), RATE)
    how = {"noise_multiplier": NOISE, "max_grad_norm": CLIP, "expected_batch_size": len(pixels)}
    optimiser: Any = DPOptimizerFastGradientClipping(inner, **how)
    loss: Any = DPLossFastGradientClipping(wrapped, optimiser, nn.CrossEntropyLoss())

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss(wrapped(pixels), targets).backward()
        optimiser.step()

    return step


def functorch(model: Network, pixels: Tensor, targets: Tensor) -> Step:
    """See ``hooks``."""
    return hooks(model, pixels, targets, functorch=True)


WAYS: dict[str, Callable[[Network, Tensor, Tensor], Step]] = {
    "plain": plain,
    "ours": ours,
    "opacus hooks": hooks,
    "opacus ghost": ghost,
    "opacus functorch": functorch,
}


def trained(model: Network) -> list[nn.Parameter]:
    """Weights that train."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def compared(case: Case, repeats: int) -> Measured:
    """Median time of our step ÷ a plain one's; peak memory and Opacus' ratios in the detail."""
    pixels, targets = batch(case)
    model = network(case)
    steps = {name: way(copy.deepcopy(model), pixels, targets) for name, way in WAYS.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            if turn:  # the first warms up
                times[name].append(time.perf_counter() - begun)
    base = median(times["plain"])
    ratios = {name: round(median(found) / base, 3) for name, found in times.items()}
    peaks = {name: peak(case, name) for name in ("plain", "ours")}
    detail: dict[str, float | list[float]] = {f"time, {name}": ratio for name, ratio in ratios.items()}
    detail |= {f"seconds, {name}": [round(x, 3) for x in found] for name, found in times.items() if name in peaks}
    detail |= {f"peak MiB, {name}": value for name, value in peaks.items()}
    detail["memory, ours"] = round(peaks["ours"] / peaks["plain"], 3)
    worst = max(ratios["ours"], peaks["ours"] / peaks["plain"])
    return Measured(f"private ÷ plain: {case.name}", ratios["ours"], f"<= {GOAL}", worst <= GOAL, detail=detail)


def peak(case: Case, way: str) -> float:
    """Peak memory of three steps in a process of their own, MiB.

    Raises:
        EngineError: the process failed.
    """
    command = [sys.executable, "-c", ALONE, str(CASES.index(case)), way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"the measured process failed: {done.stderr[-500:]}", where="bench")
    return round(float(done.stdout), 1)


def alone(number: int, way: str) -> None:
    """Three steps of one way, and the process's peak memory on standard output."""
    case = CASES[number]
    step = WAYS[way](network(case), *batch(case))
    for _ in range(3):
        step()
    print(peak_mb())
