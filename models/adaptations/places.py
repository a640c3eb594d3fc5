"""What methods share that change every picture or every feature by what the federation knows of them all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from polyclinic.core.errors import StudyError
from polyclinic.core.privacy.central import demand_untouched

if TYPE_CHECKING:
    from polyclinic.core.study import Study


def after(place: nn.Module, name: str, module: nn.Module) -> nn.Sequential:
    """What is at a place of the network and then ``module``, whose parameters are found under ``name``."""
    held: dict[str, nn.Module] = {} if isinstance(place, nn.Identity) else {"before": place}
    return nn.Sequential(OrderedDict(held | {name: module}))


def within(name: str, parameter: str) -> bool:
    """Whether a parameter is one of the module that ``after`` put somewhere under ``name``."""
    return name in parameter.split(".")[:-1]


def entering(module: nn.Module, run: Callable[[Tensor], object], given: Tensor) -> Tensor:
    """What reaches ``module`` when ``run`` is given a batch; without a gradient."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with torch.no_grad():
            run(given)
    finally:
        hook.remove()
    return seen[0]


def demand_plain_average(study: Study, method: str) -> None:
    """Nothing, if the server takes the average as it is: what a method tells is a mean, and no step of descent.

    Raises:
        StudyError: another server step, or noise at the server.
    """
    demand_untouched(study, method, "it sends means, which must stay the means that they are")
    step = study.server_step
    if step.method != "sgd" or getattr(step, "learning_rate", None) != 1.0:
        raise StudyError(
            f"'{method}' sends means, which must stay the means that they are",
            where="server_step",
            remedy="use method 'sgd' with learning_rate 1.0",
        )
