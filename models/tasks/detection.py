"""Detection in flat pictures: which things lie where, each in a box."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.core.config import Method
from polyclinic.core.errors import DataError, StudyError
from polyclinic.core.facts import Facts
from polyclinic.core.statistics.detected import IOUS, Detected, tally
from polyclinic.models.contracts import Example, Findings, Needs, Shape, Views
from polyclinic.models.heads.fcos import aims, drawn, fcos
from polyclinic.models.tasks import drawing
from polyclinic.models.tasks.boxes import carried, giou, kept, matched

if TYPE_CHECKING:
    from polyclinic.core.study import Data, Study

CANDIDATES = 1000
"""Cells with the highest scores of an image from which boxes are made; as FCOS."""
LARGEST = 2**20
"""Whole numbers in an outcome: what a reply can carry."""


class Detection(Method):
    """Any number of boxes an image, each of one class.

    A target is float32 [M, 5] an image, M = ``most``: class (-1: no box), left, top, right, bottom, the latter four in
    shares of the study's square. A cell of the head's grid stands for at most ``stride`` pixels. A detection is kept if
    its score is ``score_threshold`` or more and it overlaps no better one of its class by more than ``nms_iou``; at
    most ``most_detections`` an image.
    """

    facts: ClassVar[Facts] = Facts(
        families=(),
        paper="",
        exact_private=True,
        because="the loss is a mean over pictures, each its own",
        travels="the head",
    )
    needs: ClassVar[Needs] = "boxes"
    dense: ClassVar[bool] = True
    exclusive: ClassVar[bool] = False

    method: Literal["detection"] = "detection"
    classes: tuple[str, ...] = Field(min_length=1, max_length=1000)
    most: int = Field(default=100, ge=1, le=1000)
    most_detections: int = Field(default=100, ge=1, le=1000)
    score_threshold: float = Field(default=0.05, ge=0.0, lt=1.0)
    nms_iou: float = Field(default=0.6, gt=0.0, le=1.0)
    stride: int = Field(default=8, ge=2, le=64)
    width: int = Field(default=64, ge=8, le=512, multiple_of=8)
    depth: int = Field(default=2, ge=0, le=8)
    radius: float = Field(default=1.5, gt=0.0, le=8.0)
    gamma: float = Field(default=2.0, ge=0.0, le=10.0)
    alpha: float = Field(default=0.25, gt=0.0, lt=1.0)
    box_weight: float = Field(default=1.0, gt=0.0, le=100.0)

    @model_validator(mode="after")
    def _names(self) -> Self:
        if len(set(self.classes)) < len(self.classes) or not all(self.classes):
            raise ValueError("classes must differ, and none may be empty")
        return self

    def check(self, study: Study) -> None:
        """Refuses studies without boxes, of volumes, or of an outcome too large to tell."""
        if study.data.boxes is None:
            raise StudyError("detection needs boxes", where="data.boxes", remedy='write data.boxes = "boxes.csv"')
        if study.data.volume == "whole":
            raise StudyError("detection is for flat pictures", where="data.volume", remedy='write "middle"')
        numbers = len(self.classes) * (len(IOUS) + 1) * study.monitoring.score_bins
        if numbers > LARGEST:
            remedy = f"at most {LARGEST // len(self.classes) // (len(IOUS) + 1)} for so many classes"
            raise StudyError(f"outcomes of {numbers:,} counts", where="monitoring.score_bins", remedy=remedy)

    def head(self, shape: Shape, generator: torch.Generator) -> nn.Module:
        """An anchor-free head: see ``heads.fcos``."""
        return fcos(shape, len(self.classes), self.stride, self.width, self.depth, generator)

    def target(self, label: str) -> int:
        """Index of the class of a box.

        Raises:
            ValueError: a label that is no class.
        """
        if label not in self.classes:
            raise ValueError(f"unknown label '{label}'; the study knows {', '.join(self.classes)}")
        return self.classes.index(label)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """FCOS's (arXiv 1904.01355, equation 2): focal loss of classes, GIoU loss of boxes, cross-entropy of centres.

        Each is divided by the number of positive cells of its picture, and the mean over pictures taken; box losses
        weigh by their cells' centre-ness. GIoU stands for IoU, as in FCOS's own later code.
        """
        logits, centre, distances = output.split([len(self.classes), 1, 4], dim=1)
        height, width = output.shape[-2:]
        aim = aims(target.to(output.dtype), len(self.classes), height, width, self.radius)
        over = (1, 2)
        positives = aim.positive.sum(dim=over).clamp(min=1.0)
        named = self._focal(logits, aim.classes).sum(dim=1)
        far = 1.0 - giou(drawn(distances), aim.boxes)
        weights = aim.centre / aim.centre.sum(dim=over, keepdim=True).clamp(min=1e-6)
        central = F.binary_cross_entropy_with_logits(centre[:, 0], aim.centre, reduction="none") * aim.positive
        each = (named.sum(dim=over) + central.sum(dim=over)) / positives + self.box_weight * (far * weights).sum(
            dim=over
        )
        return each.mean()

    def _focal(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """Lin et al. 2017, arXiv 1708.02002, equation 5, of every logit by itself."""
        entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        p = torch.sigmoid(logits)
        wrong = wanted * (1 - p) + (1 - wanted) * p
        balance = wanted * self.alpha + (1 - wanted) * (1 - self.alpha)
        return balance * wrong**self.gamma * entropy

    def moved(self, target: Tensor, inverse: Tensor) -> Tensor:
        """Boxes go with their picture, each to the hull of its moved corners; one that leaves it vanishes."""
        boxes, left = carried(target[..., 1:], inverse.to(target.dtype))
        there = left & (target[..., 0] >= 0)
        kind = torch.where(there, target[..., 0], -1.0)
        return torch.cat([kind[..., None], torch.where(there[..., None], boxes, 0.0)], dim=-1)

    def presence(self, target: np.ndarray) -> np.ndarray:
        """0 or 1 [N, classes]: whether the image has a box of each."""
        return (self._truths(target) > 0).astype(np.int64)

    def _truths(self, target: np.ndarray) -> np.ndarray:
        """Boxes of each class: int64 [N, classes]."""
        each = target[..., 0, None] == np.arange(len(self.classes))
        return np.asarray(each.sum(axis=1, dtype=np.int64))

    def seen(self, data: Data) -> Data:
        """Whole pictures."""
        return data

    def cropped(self, views: Views, generator: torch.Generator) -> Views:
        """As they are."""
        return views

    def infer(self, model: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        """One pass."""
        output: Tensor = model(pixels)
        return output

    def detect(self, output: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Detections in outputs [N, classes + 5, H, W], best first: boxes float32 [N, D, 4] in shares of the picture,
        classes int64 [N, D] (-1: none) and scores float32 [N, D], D = ``most_detections``.

        A score is the probability of the class times that of the centre, as in FCOS (section 3.2 of the paper).

        Raises:
            DataError: outputs that are no numbers.
        """
        if not np.isfinite(output).all():
            problem, remedy = "outputs are no numbers", "the model may have diverged: train more gently"
            raise DataError(problem, where="outcome", remedy=remedy)
        k, found = len(self.classes), torch.from_numpy(np.ascontiguousarray(output))
        scores = (found[:, :k].sigmoid() * found[:, k : k + 1].sigmoid()).flatten(1).numpy()
        boxes = drawn(found[:, k + 1 :]).clamp(0.0, 1.0).flatten(1, 2).numpy()
        rows = [self._best(*pair) for pair in zip(boxes, scores, strict=True)]
        d = self.most_detections
        empty = (np.zeros((0, d, 4), np.float32), np.zeros((0, d), np.int64), np.zeros((0, d), np.float32))
        return tuple(np.stack(column) for column in zip(*rows, strict=True)) if rows else empty  # type: ignore[return-value]

    def _best(self, boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of one image with boxes [cells, 4] and scores [classes · cells]; see ``detect``."""
        sure = np.flatnonzero(scores >= self.score_threshold)
        sure = sure[np.argsort(-scores[sure], kind="stable")][:CANDIDATES]
        kinds, cells = np.divmod(sure, len(boxes))
        own = [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]
        left = [group[kept(boxes[cells[group]], scores[sure[group]], self.nms_iou)] for group in own]
        order = np.sort(np.concatenate(left))[: self.most_detections] if left else np.zeros(0, np.int64)
        chosen, gap = sure[order], (0, self.most_detections - len(order))
        return (
            np.pad(boxes[cells[order]], (gap, (0, 0))),
            np.pad(kinds[order], gap, constant_values=-1),
            np.pad(scores[chosen], gap),
        )

    def examine(
        self, output: np.ndarray, target: np.ndarray, *, bins: int | None = None, spacing: np.ndarray | None = None
    ) -> Findings:
        """Of each image the classes and scores of what was detected, which of it hits a true box, and how many of these
        there are of each class; matched as COCO does it. Neither ``bins`` nor ``spacing`` matters here."""
        boxes, kinds, scores = self.detect(output)
        hits = np.zeros((*kinds.shape, len(IOUS)), bool)
        for i, j in np.argwhere(self._truths(target) > 0):
            own = np.flatnonzero(kinds[i] == j)
            hits[i, own] = matched(boxes[i, own], target[i, target[i, :, 0] == j, 1:])
        return {"kinds": kinds, "scores": scores, "hits": hits, "truths": self._truths(target)}

    def tally(self, findings: Findings, patients: Sequence[str], *, bins: int, score_bins: int) -> Detected:
        """Mergeable outcome of what ``examine`` found."""
        kinds, scores, hits, truths = (findings[name] for name in ("kinds", "scores", "hits", "truths"))
        return tally(kinds, scores, hits, truths, patients, bins=bins, score_bins=score_bins)

    def drawn(self, pixels: np.ndarray, output: np.ndarray, target: np.ndarray) -> Example:
        """The picture with both kinds of boxes, blue the true ones; found ones from a score of one half on."""
        boxes, _, scores = self.detect(output[None])
        sure, true = scores[0] >= 0.5, target[:, 0] >= 0
        picture = drawing.boxed(drawing.flat(pixels), target[true, 1:], drawing.TRUE)
        picture = drawing.boxed(picture, boxes[0][sure], drawing.FOUND)
        return Example(picture, f"blue: {int(true.sum())} boxes", f"orange: {int(sure.sum())} boxes")

    def trained(self, pooling: str) -> str:
        """The head."""
        return "An anchor-free detection head (FCOS) trains from the backbone's maps of places."

    def told(self, *, bins: int, score_bins: int) -> str:
        """What an outcome holds."""
        return (
            f"of every class how many images, patients and true boxes there are, and how many detections and hits at "
            f"{len(IOUS)} overlaps in {score_bins} bins of score; {bins} reliability bins"
        )

    def blank(self, *, bins: int, score_bins: int) -> Detected:
        """The outcome of no image."""
        d, k = self.most_detections, len(self.classes)
        none = {"kinds": np.zeros((0, d), np.int64), "scores": np.zeros((0, d)), "truths": np.zeros((0, k), np.int64)}
        return self.tally(none | {"hits": np.zeros((0, d, len(IOUS)), bool)}, (), bins=bins, score_bins=score_bins)

    def explain(self) -> str:
        """What is predicted."""
        return f"In every image boxes are drawn around each {' or '.join(self.classes)}, with a score (detection)."
