"""Prototypes: what pictures of a class look like on average, as the federation sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from polyclinic.core.config import Method
from polyclinic.core.errors import StudyError
from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Adaptation, Memory, Start, Trained
from polyclinic.models.adaptations.pooled import Pooling, enough, features, fill
from polyclinic.models.contracts import Anchor, Batch, Objective

if TYPE_CHECKING:
    from polyclinic.core.study import Study

PLACES = ("head", "prototypes")
"""Where a model has its prototypes: as the head that predicts by them, or beside it."""


class Prototypes(nn.Module):
    """Mass [C, width], the sum of a class's features over n images, and share [C], their number, over n."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.mass = nn.Parameter(torch.zeros(classes, width), requires_grad=False)
        self.share = nn.Parameter(torch.zeros(classes), requires_grad=False)


class Nearest(Prototypes):
    """A head that gives −‖f − prototype‖² / (temperature · width), as one logit of two classes or [N, C].

    A class without a prototype gets the lowest of the others' logits; while there is none at all, all are 0.
    """

    def __init__(self, classes: int, width: int, temperature: float) -> None:
        super().__init__(classes, width)
        self.temperature = temperature

    def forward(self, pooled: Tensor) -> Tensor:
        """[N, width] → [N, 1] or [N, C]."""
        prototypes, there = means(self.mass, self.share)
        scaled = self.temperature * self.mass.shape[1]
        # ‖f‖² is the same for all classes, and left out
        logits = (2.0 * pooled @ prototypes.T - prototypes.square().sum(dim=1)) / scaled
        lowest = torch.where(there, logits, torch.inf).amin(dim=1, keepdim=True)
        logits = torch.where(there, logits, torch.where(there.any(), lowest, 0.0))
        return logits[:, 1:] - logits[:, :1] if len(there) == 2 else logits


class Prototyped(Pooling):
    """Base of methods that live on prototypes: one class an image, and a linear head to see how many there are."""

    relies_on: ClassVar[frozenset[str]] = frozenset({"neck"})  # prototypes of one round are compared with in the next

    @classmethod
    def fits(cls, task: type[Method]) -> bool:
        """Whether the task is to classify whole images."""
        return hasattr(task, "choices") and getattr(task, "dense", True) is False

    def check(self, study: Study) -> None:
        """Refuses images of several classes at once."""
        super().check(study)
        if not getattr(study.task, "exclusive", False):
            raise StudyError(
                f"'{self.method}' has one prototype a class, and an image here may have several classes",
                where="task",
                remedy="leave it out, or make the task binary or multi-class",
            )

    def settle(self, model: nn.Module, start: Start, trained: Trained) -> Memory:
        """Fills in this site's prototypes, by the model as it was trained."""
        mass, share = local_prototypes(model, start, self.minimum_patients)
        for place in PLACES:
            if isinstance(found := getattr(model, place, None), Prototypes):
                fill(found.mass, mass)
                fill(found.share, share)
        return {}


class FedProto(Prototyped):
    """``method = "fedproto"`` (Tan et al. 2022, arXiv 2105.00243): the loss + weight/width·‖f − prototype‖².

    Features are pulled to the federation's prototype of their class, where it has one: the mean over all sites' images
    of that class, by the models that the sites had trained in the round before. The paper exchanges nothing but
    prototypes; here they travel beside what else the chain lets travel. The squared distance is averaged over the
    features, as in the authors' code. Round 1 has no prototypes.
    """

    facts: ClassVar[Facts] = Facts(
        families=("representation",),
        paper="Tan et al. 2022 (FedProto), arXiv 2105.00243",
        exact_private=False,
        because="prototypes are sums of patients' features, and leave beside the gradients",
        travels="of each class the mean features and the share of the site's images, if it has patients enough",
    )

    method: Literal["fedproto"] = "fedproto"
    weight: float = Field(default=1.0, gt=0.0)

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(
            families=frozenset({"representation"}),
            fit_in=self._fit_in,
            travels=_beside,
            still=_beside,
            aside=_beside,
            objective=self.objective,
            settle=self.settle,
        )

    def explain(self) -> str:
        """What it does and sends."""
        return (
            f"Features are pulled to the federation's mean of their class (FedProto, weight = {self.weight:g}); every "
            f"site sends its own, and its share of images, for classes of {self.minimum_patients} patients or more."
        )

    def objective(self, objective: Objective, start: Start) -> Objective:
        """See the class."""
        prototypes, there = held(start.anchor)

        def pulled(model: nn.Module, batch: Batch) -> Tensor:
            right = batch.target.reshape(-1)
            apart = (batch.features - prototypes[right]).square().mean(dim=1)
            return objective(model, batch) + self.weight * torch.where(there[right], apart, 0.0).mean()

        return pulled

    def _fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        if not isinstance(model.head, Prototypes):
            model.prototypes = Prototypes(*_size(model))


class NearestPrototype(Prototyped):
    """``method = "prototypes"``: the class whose prototype is nearest (Snell et al. 2017, arXiv 1703.05175), federated.

    The head has no weights of its own: logits are −‖f − prototype‖² / (temperature · width), prototypes the means over
    all sites' images. What else the chain trains is trained under these logits; beside ``probe`` nothing is, and what
    remains is a nearest-mean classifier on frozen features, the same as on pooled data. Round 1 gathers prototypes.
    """

    fills: ClassVar[frozenset[str]] = frozenset({"head"})
    merges: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        families=("representation",),
        paper="Snell et al. 2017, arXiv 1703.05175; Tan et al. 2022, arXiv 2105.00243",
        exact_private=False,
        identity=False,
        because="prototypes are sums of patients' features, and leave beside the gradients",
        travels="in place of a head, of each class the mean features and the share of the site's images, if it has "
        "patients enough",
    )

    method: Literal["prototypes"] = "prototypes"
    temperature: float = Field(default=0.1, gt=0.0, le=1e3)

    def build(self) -> Adaptation:
        """The adaptation; all that is the head's travels."""
        return Adaptation(
            families=frozenset({"representation"}),
            fit_in=self._fit_in,
            still=lambda name: name.startswith("head."),
            settle=self.settle,
        )

    def explain(self) -> str:
        """What it does and sends."""
        return (
            "In place of a trained head, an image gets the class whose mean features are nearest; every site sends its "
            f"own means, and its share of images, for classes of {self.minimum_patients} patients or more."
        )

    def _fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        model.head = Nearest(*_size(model), self.temperature)


def local_prototypes(model: nn.Module, start: Start, minimum: int) -> tuple[Tensor, Tensor]:
    """(mass [C, width], share [C]) over a site's labelled images, by ``model``; 0 for classes of too few patients."""
    right, chosen = start.targets.reshape(-1), start.labelled
    seen = torch.cat(list(features(model, start.pool.pixels[chosen])))
    classes = len(start.task.classes)
    mass, share = torch.zeros(classes, seen.shape[1], dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)
    for c in range(classes):
        if enough(start, chosen[right == c], minimum):
            mass[c], share[c] = seen[right == c].sum(dim=0), (right == c).sum()
    return mass / len(start.pool.pixels), share / len(start.pool.pixels)


def means(mass: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """(prototypes [C, width], whether there is one [C])."""
    there = share > 0
    return mass / torch.where(there, share, 1.0)[:, None], there


def held(anchor: Anchor) -> tuple[Tensor, Tensor]:
    """The federation's prototypes, as a round began: see ``means``."""
    place = next(place for place in PLACES if f"{place}.mass" in anchor)
    return means(anchor[f"{place}.mass"], anchor[f"{place}.share"])


def _beside(name: str) -> bool:
    return name.startswith("prototypes.")


def _size(model: nn.Module) -> tuple[int, int]:
    """(classes, width); a binary head has one output."""
    head = model.head
    if not isinstance(head, nn.Linear):
        raise StudyError("prototypes need a linear head to stand beside", where="adaptation", remedy="leave them out")
    return max(2, head.out_features), head.in_features
