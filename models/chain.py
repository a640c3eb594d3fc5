"""Several adaptations as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from polyclinic.core.study import Data
from polyclinic.models.adaptation import Adaptation, Memory, Select, Start, Trained, Weigh, same_batch
from polyclinic.models.contracts import Objective, Task, Views

if TYPE_CHECKING:
    from polyclinic.models.backbones import Encoder


def chain(*parts: Adaptation) -> Adaptation:
    """The adaptations one after another, in order; ``chain()`` is the identity and ``chain`` is associative."""

    def recast(encoder: Encoder, data: Data) -> Encoder:
        for part in parts:
            encoder = part.recast(encoder, data)
        return encoder

    def fit_in(model: nn.Module, generator: torch.Generator) -> None:
        for part in parts:
            part.fit_in(model, generator)

    def mirror(model: nn.Module, names: Sequence[str]) -> None:
        for part in parts:
            part.mirror(model, names)

    def receive(model: nn.Module, extra: Mapping[str, Tensor]) -> frozenset[str]:
        return frozenset().union(*(part.receive(model, extra) for part in parts))

    def objective(loss: Objective, start: Start) -> Objective:
        for part in parts:
            loss = part.objective(loss, start)
        return loss

    def batch(model: nn.Module, task: Task, views: Views, generator: torch.Generator) -> Views:
        for part in parts:
            views = part.batch(model, task, views, generator)
        return views

    def settle(model: nn.Module, start: Start, trained: Trained) -> Memory:
        kept: dict[str, Tensor] = {}
        for part in parts:
            kept |= part.settle(model, start, trained)
        return kept

    return Adaptation(
        families=frozenset().union(*(part.families for part in parts)),
        recast=recast,
        fit_in=fit_in,
        mirror=mirror,
        travels=lambda name: any(part.travels(name) for part in parts),
        chosen=lambda model: frozenset().union(*(part.chosen(model) for part in parts)),
        constant=lambda name: any(part.constant(name) for part in parts),
        still=lambda name: any(part.still(name) for part in parts),
        given=lambda name: any(part.given(name) for part in parts),
        rests=lambda name, round_number: any(part.rests(name, round_number) for part in parts),
        aside=lambda name: any(part.aside(name) for part in parts),
        personal=lambda model: frozenset().union(*(part.personal(model) for part in parts)),
        receive=receive,
        select=_selected(parts),
        weigh=_weighed(parts),
        objective=objective,
        # that pictures stay as they are is worth knowing: then what a frozen part makes of them does, too
        batch=same_batch if all(part.batch is same_batch for part in parts) else batch,
        settle=settle,
        peft=tuple(describe for part in parts for describe in part.peft),
    )


def _selected(parts: tuple[Adaptation, ...]) -> Select | None:
    chosen = [part.select for part in parts if part.select is not None]

    def select(start: Start, generator: torch.Generator) -> Tensor:
        for one in chosen:
            start = replace(start, labelled=one(start, generator))
        return start.labelled

    return select if chosen else None


def _weighed(parts: tuple[Adaptation, ...]) -> Weigh | None:
    weights = [part.weigh for part in parts if part.weigh is not None]

    def weigh(start: Start) -> Tensor:
        return torch.stack([one(start) for one in weights]).prod(dim=0)

    return weigh if weights else None
