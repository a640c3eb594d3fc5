"""The gradient of every picture by itself, from one backward pass; only of what trains, frozen weights have none.

While recording, a layer that owns weights that train works with detached copies of them: nothing of the data reaches
their ``grad``, and the layer's input with the gradient at its output gives every picture's own gradient (Goodfellow
2015, arXiv 1510.01799). Of layers that are not linear Opacus works it out (Yousefpour et al. 2021, arXiv 2109.12298).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Sampler = Callable[[nn.Module, Tensor, Tensor], Mapping[str, Tensor]]
"""(layer, its input [N, …], gradient at its output [N, …]) → own parameter's name → its gradient by picture [N, …]."""


class Shared(nn.Module):
    """A parameter that every picture is given alike, such as prompts: a layer, so that its gradient is had by picture.

    Attributes:
        weight: [1, …].
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, beside: Tensor) -> Tensor:
        """[N, …] the parameter, once for each of the pictures in ``beside`` [N, …], in its type."""
        return self.weight.to(beside.dtype).expand(len(beside), *self.weight.shape[1:])


class PerExample:
    """Records gradients by picture of a model's weights that train.

    Attributes:
        without: names of those that it cannot, sorted: bare parameters, and weights of layers of an unknown kind.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        self._owners: list[tuple[str, nn.Module, Sampler]] = []
        covered: set[str] = set()
        for prefix, module in model.named_modules():
            own = {f"{prefix}.{name}" if prefix else name for name, _ in module.named_parameters(recurse=False)}
            sampler = sampler_of(module)
            if own & trained and sampler is not None:
                self._owners.append((prefix, module, sampler))
                covered |= own & trained
        self.without = tuple(sorted(trained - covered))

    @contextmanager
    def recording(self) -> Iterator[dict[str, Tensor]]:
        """Within it, a backward pass fills the dictionary: name → gradients [N, …], summed over a layer's uses.

        Row n is the gradient of the loss's part that came through picture n: all of it, if no layer mixes pictures. A
        layer that sees k windows of each picture, one after another, gives k rows for each.
        """
        found: dict[str, Tensor] = {}
        for prefix, module, sampler in self._owners:
            module.forward = partial(_recorded, module, f"{prefix}." if prefix else "", sampler, found)
        try:
            yield found
        finally:
            for _, module, _ in self._owners:
                del module.forward  # that of its class comes back


class Hooked(PerExample):
    """The same, worked out by Opacus' own hooks: the reference that ours is compared with."""

    @contextmanager
    def recording(self) -> Iterator[dict[str, Tensor]]:
        """See ``PerExample``; autograd's own gradients, which the hooks leave, are thrown away."""
        from opacus.grad_sample import GradSampleModule

        GradSampleModule.GRAD_SAMPLERS.setdefault(Shared, _shared_for_opacus)
        hooked = GradSampleModule(self._model, loss_reduction="sum", strict=False)
        found: dict[str, Tensor] = {}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Full backward hook is firing")  # as frozen inputs make it
                yield found
            for name, weight in self._model.named_parameters():
                if (rows := getattr(weight, "grad_sample", None)) is not None:
                    found[name] = rows
        finally:
            hooked.remove_hooks()
            for weight in self._model.parameters():
                weight.grad = weight.grad_sample = None  # type: ignore[attr-defined]


def _recorded(
    module: nn.Module, prefix: str, sampler: Sampler, found: dict[str, Tensor], given: Tensor, *more: Any, **named: Any
) -> Tensor:
    if not torch.is_grad_enabled():
        return type(module).forward(module, given, *more, **named)  # type: ignore[no-any-return]
    output = _detached(module, given, *more, **named)
    if not output.requires_grad:
        output.requires_grad_()
    held = given.detach()

    def seen(gradient: Tensor) -> None:
        for name, rows in sampler(module, held, gradient).items():
            if prefix + name in found:
                found[prefix + name] = found[prefix + name] + rows
            else:
                found[prefix + name] = rows

    output.register_hook(seen)
    return output


def _detached(module: nn.Module, given: Tensor, *more: Any, **named: Any) -> Tensor:
    """What the layer gives, with its weights out of autograd's sight."""
    if type(module) is nn.Linear:
        return F.linear(given, module.weight.detach(), None if module.bias is None else module.bias.detach())
    own = {name: weight for name, weight in module._parameters.items() if weight is not None}
    try:
        for name, weight in own.items():
            module._parameters[name] = weight.detach()  # type: ignore[assignment]
        output: Tensor = type(module).forward(module, given, *more, **named)
    finally:
        module._parameters.update(own)
    return output


def sampler_of(module: nn.Module) -> Sampler | None:
    """How a layer's gradients by picture are worked out; None if nobody knows."""
    if type(module) is nn.Linear:
        return linear
    if type(module) is Shared:
        return shared
    from opacus.grad_sample import GradSampleModule

    known = GradSampleModule.GRAD_SAMPLERS.get(type(module))
    return None if known is None else partial(_opacus, known)


def linear(module: nn.Module, given: Tensor, gradient: Tensor) -> Mapping[str, Tensor]:
    """Of y = x·Wᵀ + b with x [N, …, in]: Σ over places of (∂y)ᵀ·x, and of ∂y."""
    found = {}
    if gradient.ndim == 2:
        x, g = given.unsqueeze(1), gradient.unsqueeze(1)
    else:
        x, g = given.flatten(1, -2), gradient.flatten(1, -2)
    if module.weight.requires_grad:
        found["weight"] = torch.bmm(g.transpose(1, 2), x)
    if module.bias is not None and module.bias.requires_grad:
        found["bias"] = g.sum(dim=1)
    return found


def shared(module: nn.Module, given: Tensor, gradient: Tensor) -> Mapping[str, Tensor]:
    """What arrives at each picture's copy."""
    return {"weight": gradient.unsqueeze(1)}


def _shared_for_opacus(module: Shared, given: list[Tensor], gradient: Tensor) -> dict[nn.Parameter, Tensor]:
    return {module.weight: gradient.unsqueeze(1)}


def _opacus(known: Any, module: nn.Module, given: Tensor, gradient: Tensor) -> Mapping[str, Tensor]:
    names = {id(weight): name for name, weight in module.named_parameters(recurse=False) if weight.requires_grad}
    rows = known(module, [given.contiguous()], gradient.contiguous())  # it takes strides for granted
    return {names[id(weight)]: found for weight, found in rows.items() if id(weight) in names}
