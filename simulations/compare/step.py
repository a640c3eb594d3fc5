"""What a training step and an answer of one study cost, measured alone in a process: python -m … FOLDER → JSON.

FOLDER holds ``study.toml`` and ``batch.npz`` (pixels, targets, patients of one training batch).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from polyclinic.client.data.dataset import Images
from polyclinic.client.fit import fit, scaled
from polyclinic.client.respond import Workbench
from polyclinic.core import memory
from polyclinic.core import study as studies
from polyclinic.core.config import parse
from polyclinic.core.study import Study
from polyclinic.models import network
from polyclinic.models.network import Network
from polyclinic.simulations.compare.cost import BATCH, STUDY

STEPS, REPEATS, ANSWERS = 6, 3, 25
RESET = Path("/proc/self/clear_refs")


def main(folder: Path) -> None:
    """Prints the figures as one line of JSON."""
    study = studies.load(folder / STUDY)
    torch.set_num_threads(study.training.threads)
    with np.load(folder / BATCH) as batch:
        images = Images(batch["pixels"], batch["targets"], tuple(map(str, batch["patients"])))
    print(json.dumps(measure(study, images)))


def measure(study: Study, images: Images) -> dict[str, float | str | None]:
    """All of them; memory first, before anything else has been taken and given back."""
    bench = Workbench(study)
    start = bench.adapted.read()

    def train(steps: int) -> None:
        anchor = bench.adapted.write(start)
        fit(bench.adapted, bench.task, images, lasting(study, steps), "bench", 1, anchor, {}, bench.frozen)

    step_mb = peak_mb(lambda: train(1))
    pairs = [(seconds(lambda: train(1)), seconds(lambda: train(1 + STEPS))) for _ in range(REPEATS)]
    bench.adapted.write(start)
    adapted, frozen = bench.adapted.network.eval(), network.plain(study).to(bench.device).eval()
    picture = scaled(torch.from_numpy(images.pixels[:1]), bench.device)
    ours, theirs = latency(lambda: answer(bench, adapted, picture), lambda: answer(bench, frozen, picture))
    return {
        "step_mb": step_mb,
        "step_seconds": max(0.0, median(longer - shorter for shorter, longer in pairs) / STEPS),
        "step_flops": float(operations(lambda: train(2)) - operations(lambda: train(1))),
        "inference_flops": float(operations(lambda: answer(bench, adapted, picture))),
        "frozen_flops": float(operations(lambda: answer(bench, frozen, picture))),
        "inference_seconds": ours,
        "frozen_seconds": theirs,
        "latency": ours / theirs,
        "device": "GPU" if bench.device.type == "cuda" else "CPU",
    }


def lasting(study: Study, steps: int) -> Study:
    """The study with rounds of so many steps."""
    document = study.model_dump(mode="json")
    document["training"] |= {"steps": steps, "epochs": None}
    return parse(Study, document, "training.steps")


def answer(bench: Workbench, model: Network, pixels: Tensor) -> None:
    """One answer as the task gives it."""
    with torch.inference_mode():
        bench.task.infer(model, pixels)


def seconds(work: Callable[[], None]) -> float:
    """Wall time of a call."""
    begun = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - begun


def latency(ours: Callable[[], None], theirs: Callable[[], None]) -> tuple[float, float]:
    """Median seconds of both, measured in turn so that whatever slows the machine slows both."""
    for _ in range(3):
        ours()
        theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(ANSWERS)]
    return median(a for a, _ in pairs), median(b for _, b in pairs)


def operations(work: Callable[[], None]) -> int:
    """Floating-point operations of matrix products and convolutions, as torch counts them: 2 for each multiply-add.

    Attention is computed by plain matrix products meanwhile, since torch cannot see into its fused form on CPUs.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        work()
    return int(counted.get_total_flops())


def peak_mb(work: Callable[[], None]) -> float | None:
    """MiB that a call takes beyond what was held before it; None where the system does not tell."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        work()
        return float(torch.cuda.max_memory_allocated() - held) / 2**20
    try:
        if RESET.exists():
            RESET.write_text("5")  # the highest mark falls to what is held now
    except OSError:
        work()
        return None
    before = memory.peak_mb()
    work()
    return memory.peak_mb() - before


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
