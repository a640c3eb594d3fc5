"""FedSVD (Lee et al. 2025, arXiv 2505.12805): the mean product of factors, factored anew along its singular vectors.

All sites train B beside the same A, so mean(B)·A is the mean of their products, exactly. Of its singular value
decomposition U·Σ·Vᵀ the sites then get A' = Vᵀ and B' = U·Σ: the same product, on the directions that matter, best
first. Nothing enters it but what the sites sent and what they had been sent, so it costs no privacy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from polyclinic.core.config import Method
from polyclinic.core.errors import StudyError
from polyclinic.core.update import Manifest, Tensors, Update
from polyclinic.strategies.mean import MeanStrategy, Sums

if TYPE_CHECKING:
    from polyclinic.core.study import Study

A, B = ".lora_A.", ".lora_B."


class FedSvd(Method):
    """``method = "fedsvd"``: the averaged product B·A of every layer in its singular vectors; all else is averaged.

    It is no plain mean of every tensor: A and B have other coordinates after every round, so that what a method or a
    server step remembers of them from one round says nothing in the next.
    """

    refactors: ClassVar[bool] = True

    method: Literal["fedsvd"] = "fedsvd"

    def check(self, study: Study) -> None:
        """Refuses chains whose sites change A, and server steps after which the product would be another one."""
        if not any(method.refactors for method in study.adaptation):
            raise StudyError(
                "'fedsvd' makes an A that sites leave as it is, and nothing in the chain does",
                where="strategy.method",
                remedy="use [[adaptation]] method 'fedsvd', or strategy 'mean'",
            )
        if not study.server_step.averages():
            raise StudyError(
                "'fedsvd' factors the averaged product anew, so that the server must take it as it is",
                where="server_step",
                remedy="use method 'sgd' with learning_rate 1.0",
            )

    def build(self) -> FedSvdStrategy:
        """The strategy."""
        return FedSvdStrategy()

    def explain(self) -> str:
        """What the server does."""
        return (
            "The server averages what the sites send and writes every layer's averaged low-rank product in its "
            "singular vectors: the same product, with a new common factor A for the next round."
        )


@dataclass
class Fold:
    """Sums of what sites send, and the factors A that they were given."""

    sums: Sums
    given: Tensors


class FedSvdStrategy:
    """A fold over fixed-point sums of all but A; memory does not grow with the sites."""

    streams = True
    _mean = MeanStrategy()

    def expects(self, reference: Tensors) -> Manifest:
        """Everything but the factors A comes back."""
        return Manifest.of({name: array for name, array in reference.items() if A not in name})

    def init(self, reference: Tensors) -> Fold:
        """Empty sums."""
        given = {name: array for name, array in reference.items() if A in name}
        return Fold(self._mean.init({name: array for name, array in reference.items() if name not in given}), given)

    def add(self, state: Fold, update: Update) -> Fold:
        """One more update."""
        self._mean.add(state.sums, update)
        return state

    def merge(self, one: Fold, other: Fold) -> Fold:
        """Both."""
        self._mean.merge(one.sums, other.sums)
        return one

    def finish(self, state: Fold) -> Tensors:
        """The averages, with every layer's product factored anew."""
        averages = dict(self._mean.finish(state.sums))
        for name, a in state.given.items():
            b = name.replace(A, B)
            averages[b], averages[name] = refactored(averages[b], a)
        return averages


def refactored(b: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B' [out, r], A' [r, in]) float32 with B'·A' = B·A up to rounding.

    A' has orthonormal rows, B' orthogonal columns by falling length, and the sign of each direction is such that A's
    largest number in it is positive. The product itself is never made: with Aᵀ = Q·R the singular vectors of B·Rᵀ
    [out, r] are enough. A product of zero has none, and its factors stay as they are. The rank is at most ``out`` and
    ``in``.
    """
    if not b.any():
        return b, a
    q, r = np.linalg.qr(a.astype(np.float64).T)
    u, s, wt = np.linalg.svd(b.astype(np.float64) @ r.T, full_matrices=False)
    rows = wt @ q.T
    signs = np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)])
    return (u * (s * signs)).astype(np.float32), (signs[:, None] * rows).astype(np.float32)
