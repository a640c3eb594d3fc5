"""The study's ``[privacy]``: whose privacy, how much of it, and how the private step is taken."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from polyclinic.core.config import Config
from polyclinic.core.privacy.events import Generator, Unit

FAINTEST, LOUDEST = 0.3, 1e6
"""Noise multipliers that a study may ask for; below, epsilon is in the hundreds: no privacy worth the name."""


class Privacy(Config):
    """Differential privacy at every site; a study without this section has none.

    Attributes:
        unit: what is protected: a "patient" with all pictures together, or each "image" by itself.
        noise: standard deviation of the noise on the sum of clipped gradients, in multiples of ``clip``.
        epsilon: in place of ``noise``: what the whole run may cost a patient of the site, by training or by statistics;
            each site works out its own noise from it, as sizes differ.
        delta: at which epsilon is told; a site refuses one of 1/its patients or more.
        clip: L2 norm to which the gradient of each unit is clipped.
        clipping: "flat" (all weights together), "per_layer" (each tensor to ``clip``/√tensors), or "automatic"
            (every gradient normalised to ``clip``; Bu et al. 2023, arXiv 2206.07136).
        expected: units drawn in a step on average: a site draws each with the rate expected ÷ its units.
        pictures: of a drawn patient, at most so many are looked at: the first by name.
        step: "fused", or the reference "opacus".
        generator: "system" (secure), or "simulated" (from the study's seed: for tests; no privacy).
        statistics_share: what may be spent on all that leaves beside the update, as a share of the run's epsilon.
            Other patients stand behind it (validation, test), so 1 takes nothing from training. 0: only the update
            leaves.
        judged: how often the model is judged on validation patients, evenly over the run and at its end; the more
            often, the more noise each time.
        limit: epsilon of this study at which a site stops, rounds that were trained twice included.
    """

    unit: Unit = "patient"
    noise: float | None = Field(default=None, ge=FAINTEST, le=LOUDEST)
    epsilon: float | None = Field(default=None, gt=0.0, le=100.0)
    delta: float = Field(default=1e-5, ge=1e-12, lt=0.1)
    clip: float = Field(default=1.0, ge=1e-6, le=1e6)
    clipping: Literal["flat", "per_layer", "automatic"] = "flat"
    expected: int = Field(default=16, ge=1)
    pictures: int = Field(default=4, ge=1)
    step: Literal["fused", "opacus"] = "fused"
    generator: Generator = "system"
    statistics_share: float = Field(default=1.0, ge=0.0, le=1.0)
    judged: int = Field(default=4, ge=1)
    limit: float | None = Field(default=None, gt=0.0)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.noise is None) == (self.epsilon is None):
            raise ValueError("give noise, or epsilon from which each site works out its noise: one of them")
        if self.limit is not None and self.epsilon is not None and self.limit < self.epsilon:
            raise ValueError("limit is below epsilon: no run could end")
        return self
