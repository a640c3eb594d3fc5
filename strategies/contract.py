"""What a strategy and a server step are: a fold over updates, and a rule that moves the global state."""

from __future__ import annotations

from typing import Protocol, TypeVar

from polyclinic.core.update import Manifest, Tensors, Update

S = TypeVar("S")


class Strategy(Protocol[S]):
    """How updates become an aggregate: a fold whose result is the same bits in whatever order updates arrive.

    ``add`` and ``merge`` may reuse the memory of the state that they are given and return it.
    """

    @property
    def streams(self) -> bool:
        """Whether the state's size does not grow with the number of updates."""

    def expects(self, reference: Tensors) -> Manifest:
        """What a site must send back when the global state is ``reference``."""

    def init(self, reference: Tensors) -> S:
        """The empty fold of a round that starts from ``reference``."""

    def add(self, state: S, update: Update) -> S:
        """The fold with one more update, whose tensors fulfil ``expects``."""

    def merge(self, one: S, other: S) -> S:
        """The fold over the updates of both."""

    def finish(self, state: S) -> Tensors:
        """The aggregate, in the form of a global state; UpdateError if there was no update."""


class Step(Protocol):
    """How the global state moves towards the aggregate (Reddi et al. 2021, "Adaptive Federated Optimization")."""

    def start(self, reference: Tensors) -> Tensors:
        """The step's memory before round 1, as named tensors, so that a journal can keep it."""

    def apply(self, memory: Tensors, old: Tensors, aggregate: Tensors) -> tuple[Tensors, Tensors]:
        """(memory, new global state)."""
