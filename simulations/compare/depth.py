"""Adaptation depth: how many numbers train, and how far each block's representation moves from the frozen one's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polyclinic.client.fit import scaled
from polyclinic.core.statistics.monoid import Floats
from polyclinic.models import network
from polyclinic.models.network import Adapted, Network
from polyclinic.simulations.compare.cells import Cohort, Json, Result

MOST, BATCH = 256, 64
"""Pictures of each site that are looked at, at most; and at once."""
POOLED = "pooled features"


def linear_cka(x: Floats, y: Floats) -> float:
    """Linear centred kernel alignment of features [N, p] and [N, q] of the same N pictures, in [0, 1].

    Kornblith et al. 2019 (arXiv 1905.00414), equation 4 and section 3.2: ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) with centred columns.
    It is 1 for features that are equal up to rotation and scale. nan where one side does not vary at all.
    """
    x, y = (side.astype(np.float64) - side.mean(axis=0, dtype=np.float64) for side in (x, y))
    scale = float(np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    return min(1.0, float(np.linalg.norm(y.T @ x)) ** 2 / scale) if scale > 0 else float("nan")


def trained(adapted: Adapted) -> tuple[int, int]:
    """(numbers that train, all numbers of the network, what was fitted in included)."""
    of_all = {id(weight): weight.numel() for weight in adapted.network.parameters()}
    return sum(weight.numel() for weight in adapted.parameters()), sum(of_all.values())


def blocks(model: Network) -> tuple[str, ...]:
    """Full names of a plain network's blocks: members of the outermost lists (or else sequences) of its backbone."""
    for kind in (nn.ModuleList, nn.Sequential):
        outermost: list[str] = []
        for name, module in model.named_modules():
            inside = any(name.startswith(f"{outer}.") for outer in outermost)
            if name.startswith("backbone.encoder") and isinstance(module, kind) and len(module) > 1 and not inside:
                outermost.append(name)
        if outermost:
            return tuple(f"{name}.{i}" for name in outermost for i, _ in enumerate(model.get_submodule(name)))  # type: ignore[arg-type]
    return ()


def representations(model: Network, pixels: Tensor, names: tuple[str, ...]) -> dict[str, Floats]:
    """What each named block gives for pictures uint8 [N, C, (D,) S, S], as a mean over its places: [N, width]."""
    found: dict[str, list[Tensor]] = {}
    device = next(model.parameters()).device

    def keeper(name: str, count: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, given: Any, output: Any) -> None:
            if (mean := _mean(output, count)) is not None:
                found.setdefault(name, []).append(mean)

        return keep

    with torch.inference_mode(), ExitStack() as whole_batches:
        whole_batches.callback(setattr, model.backbone, "prefix", model.backbone.prefix)
        model.backbone.prefix = None  # a frozen prefix is given pictures one by one, and hooks want the batch
        for part in pixels.split(BATCH):
            with ExitStack() as hooks:
                for name, module in _present(model, names):
                    hooks.callback(module.register_forward_hook(keeper(name, len(part))).remove)
                pooled = model.encode(scaled(part, device)).pooled
            found.setdefault(POOLED, []).append(pooled.float().cpu())
    whole = {name: torch.cat(parts).numpy().astype(np.float64) for name, parts in found.items()}
    return {name: array for name, array in whole.items() if len(array) == len(pixels)}


def measure(result: Result, cohort: Cohort) -> Json:
    """Counts, and CKA by block on validation pictures, each site's seen through the model as that site has it."""
    bench = result.bench
    count, total = trained(bench.adapted)
    frozen = network.plain(bench.study).to(bench.device).eval()
    names = blocks(frozen)
    sides: tuple[dict[str, list[Floats]], ...] = ({}, {})
    pictures = 0
    for site, held in sorted(cohort.items()):
        pixels = torch.from_numpy(held.data.images("val").pixels[:MOST])
        if len(pixels) == 0:
            continue
        pictures += len(pixels)
        for side, model in zip(sides, (frozen, result.at(site)), strict=True):
            for name, rows in representations(model, pixels, names).items():
                side.setdefault(name, []).append(rows)
    alike = {name: _alike(sides, name) for name in (*names, POOLED) if pictures}
    cka = {name: value for name, value in alike.items() if value is not None}
    moved = [1.0 - value for name, value in cka.items() if name != POOLED] or [1.0 - value for value in cka.values()]
    change = float(np.mean(moved)) if moved else None
    return {"trained": count, "total": total, "pictures": pictures, "cka": cka, "change": change}


def _alike(sides: tuple[dict[str, list[Floats]], ...], name: str) -> float | None:
    one, other = (side.get(name, []) for side in sides)
    if not one or [len(rows) for rows in one] != [len(rows) for rows in other]:
        return None
    value = linear_cka(np.concatenate(one), np.concatenate(other))
    return value if np.isfinite(value) else None


def _present(model: nn.Module, names: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    """Those blocks that are still there after an adaptation."""
    there = dict(model.named_modules())
    return ((name, there[name]) for name in names if name in there)


def _mean(output: Any, count: int) -> Tensor | None:
    """[N, width] from tokens [N, T, width] or maps [N, width, (D,) H, W]; None for what is neither."""
    first = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(first, Tensor) or first.ndim < 2 or len(first) != count:
        return None
    places = (1,) if first.ndim == 3 else tuple(range(2, first.ndim))
    return (first.float().mean(dim=places) if places else first.float()).cpu()
