"""Auditability: what travels, whether it merges exactly and can be bounded, and how much a reviewer must read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyclinic.core import seeds
from polyclinic.core.statistics.monoid import Floats
from polyclinic.core.study import Study
from polyclinic.core.update import Manifest, Tensors, Update, digest
from polyclinic.models import network
from polyclinic.models.adaptations.injected import unwrap
from polyclinic.simulations.compare.cells import Json, Result


def measure(result: Result) -> Json:
    """What is said of a run's method, and of the change that it left."""
    study, adapted = result.bench.study, result.bench.adapted
    strategy: Any = study.strategy.build()  # type: ignore[attr-defined]
    manifest = strategy.expects(result.start)
    facts = {method.method: method.facts for method in study.adaptation}
    loose = {name: one.because for name, one in facts.items() if one is not None and not one.exact_private}
    changed = [name for name in result.start if not np.array_equal(result.start[name], result.tensors[name])]
    return {
        "tensors": len(manifest.shapes),
        "bytes": manifest.size,
        "personal_tensors": len(adapted.personal),
        "personal_numbers": sum(tensor.numel() for tensor in adapted.read_personal().values()),
        "any_order": any_order(strategy, result.start, study.study.seed),
        "streams": bool(strategy.streams),
        "bounded": not loose,
        "not_bounded_because": loose,
        "clip_norm": study.training.clip_norm,
        "changed_tensors": len(changed),
        "changed_numbers": sum(int(np.sum(result.start[name] != result.tensors[name])) for name in changed),
        "merged": merged(study, result.tensors) if all(method.merges for method in study.adaptation) else None,
    }


def any_order(strategy: Any, reference: Tensors, seed: int) -> bool:
    """Whether three made-up contributions give the same bits in every order and grouping that is tried.

    Tried on this study's own tensors: one after another both ways round, and two partial sums merged.
    """
    manifest: Manifest = strategy.expects(reference)
    rng = seeds.generator(seed, "audit", "any order")
    made = [
        Update(f"s{i}", weight, {n: rng.normal(0, 0.1, s).astype(np.float32) for n, s in manifest.shapes.items()})
        for i, weight in enumerate((3, 50, 997))
    ]

    def fold(*updates: Update) -> Any:
        state = strategy.init(reference)
        for update in updates:
            state = strategy.add(state, update)
        return state

    one, two, three = made
    results = (fold(*made), fold(three, two, one), strategy.merge(fold(three), fold(two, one)))
    return len({digest(strategy.finish(state)) for state in results}) == 1


def merged(study: Study, tensors: Tensors) -> Json:
    """What merging the change into the backbone's own weights changes there.

    ``rank`` and ``full_rank`` are summed over the weights that are matrices: of the change (see ``effective_rank``),
    and as it could be at most.
    """
    built = network.build(study)
    built.write(tensors)
    unwrap(built.network)
    before = dict(network.plain(study).backbone.encoder.named_parameters())
    after = dict(built.network.backbone.encoder.named_parameters())
    return delta(before, after)


def delta(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Json:
    """Weights, numbers and effective ranks by which two sets of weights of the same names differ."""
    changes = {
        name: (after[name].detach().double() - before[name].detach().double()).cpu()
        for name in sorted(before.keys() & after.keys())
        if not torch.equal(before[name].detach().cpu(), after[name].detach().cpu())
    }
    matrices = [change for change in changes.values() if change.ndim == 2]
    return {
        "tensors": len(changes),
        "numbers": int(sum(torch.count_nonzero(change) for change in changes.values())),
        "of_numbers": int(sum(weight.numel() for weight in before.values())),
        "matrices": len(matrices),
        "rank": float(sum(effective_rank(torch.linalg.svdvals(change).numpy()) for change in matrices)),
        "full_rank": int(sum(min(change.shape) for change in matrices)),
    }


def effective_rank(singular: Floats) -> float:
    """exp of the entropy of the singular values as shares of their sum (Roy and Vetterli 2007, EUSIPCO, definition 1).

    k equal ones and otherwise none give k; it lies between 1 and the rank.
    """
    total = float(singular.sum())
    if total <= 0:
        return 0.0
    share = singular[singular > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))
