"""What a model may learn of pictures without labels: that it should say the same of them however they look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.core.errors import StudyError
from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Start
from polyclinic.models.adaptations.data import Augment
from polyclinic.models.adaptations.data_policies import Policy, changed
from polyclinic.models.adaptations.objective import ClassObjectives
from polyclinic.models.contracts import Batch, Choosing, Objective, Views

if TYPE_CHECKING:
    from polyclinic.core.study import Study


class FixMatch(ClassObjectives):
    """``method = "fixmatch"`` (Sohn et al. 2020, arXiv 2001.07685): the loss + weight·mean [max p ≥ threshold]·CE.

    Every step takes ``ratio`` times the batch of the site's pictures that are not labelled: each is moved a little
    (weak), which gives p and from it a label without a gradient, and what was moved goes through one of MONAI's
    policies (strong), which the label is for. The mean is over all choices, the doubtful ones counting 0, as in
    equation 4. Both views are moved alike, so that it holds for a label of every pixel, too. Each site does this with
    its own current model; nothing more travels.
    """

    facts: ClassVar[Facts] = Facts(
        families=("objective",),
        paper="Sohn et al. 2020 (FixMatch), arXiv 2001.07685",
        exact_private=False,
        because="unlabelled patients enter every step beside those of the batch",
    )

    method: Literal["fixmatch"] = "fixmatch"
    weight: float = Field(default=1.0, gt=0.0)
    threshold: float = Field(default=0.95, ge=0.0, lt=1.0)
    ratio: int = Field(default=1, ge=1, le=16)
    flip: bool = False
    shift: float = Field(default=0.125, ge=0.0, le=0.5)
    policy: Policy = "strong"

    def check(self, study: Study) -> None:
        """Refuses a chain in which every picture is labelled, and volumes, which are not moved here."""
        super().check(study)
        before: tuple[Any, ...] = study.adaptation[: study.adaptation.index(self)]
        if all(method.build().select is None for method in before):
            raise StudyError(
                "'fixmatch' learns from pictures that are not labelled, and here all are",
                where="adaptation",
                remedy='put an [[adaptation]] before it that selects, such as method = "label_budget"',
            )
        if study.data.depth is not None:
            raise StudyError(
                "'fixmatch' moves pictures, and these are volumes",
                where="adaptation",
                remedy='leave it out, or write volume = "middle"',
            )

    def explain(self) -> str:
        """What it does."""
        return (
            f"Pictures without labels are given the model's own label where it is at least {self.threshold:.4g} sure "
            f"(FixMatch, weight = {self.weight:g}); they and their labels stay at the site."
        )

    def objective(self, objective: Objective, start: Start) -> Objective:
        """See the class."""
        labelled = torch.zeros(len(start.pool.pixels), dtype=torch.bool)
        labelled[start.labelled] = True
        others = (~labelled).nonzero()[:, 0]
        if not len(others):
            return objective

        def consistent(model: nn.Module, batch: Batch) -> Tensor:
            count = self.ratio * len(batch.target)
            places = others[torch.randint(len(others), (count,), generator=start.generator)]
            weak, strong = self._views(model, start, places, batch.pixels.device)
            return objective(model, batch) + self.weight * self._disagreement(model, start, weak, strong)

        return consistent

    def _views(self, model: nn.Module, start: Start, places: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """(weak, strong) views of the pool's pictures at ``places``."""
        pixels = start.pool.pixels[places].to(device).float().div_(255.0)
        moving = Augment(flip=self.flip, shift=self.shift, zoom=0.0, rotate=0.0, brightness=0.0, contrast=0.0).build()
        weak = moving.batch(model, start.task, Views(pixels, _blank(start, pixels)), start.generator).pixels
        return weak, changed(weak, self.policy, start.generator)

    def _disagreement(self, model: nn.Module, start: Start, weak: Tensor, strong: Tensor) -> Tensor:
        """Mean over all choices of the cross-entropy of the strong view's against the weak view's, where it is sure."""
        choose, blank = cast(Choosing, start.task).choices, _blank(start, weak)
        with torch.no_grad():
            given, _ = choose(model(weak).float(), blank)
            sure, label = given.softmax(dim=1).max(dim=1)
        learned, _ = choose(model(strong).float(), blank)
        return (F.cross_entropy(learned, label, reduction="none") * (sure >= self.threshold)).mean()


def _blank(start: Start, pixels: Tensor) -> Tensor:
    """Targets that say nothing, one a picture: those of the pool are not looked at."""
    shape = (len(pixels), *start.pool.targets.shape[1:])
    return torch.zeros(shape, dtype=start.pool.targets.dtype, device=pixels.device)
