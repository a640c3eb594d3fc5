"""Segmentation of pictures and volumes: a class for every pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.core.config import Method
from polyclinic.core.errors import StudyError
from polyclinic.core.facts import Facts
from polyclinic.core.statistics import noised_segmented
from polyclinic.core.statistics.monoid import Floats
from polyclinic.core.statistics.noised_segmented import NoisedSegmented
from polyclinic.core.statistics.segmented import Segmented, tally
from polyclinic.core.study import Data, Study
from polyclinic.models.contracts import IGNORED, Example, Findings, Needs, Shape, Views
from polyclinic.models.heads.decoder import decoder
from polyclinic.models.tasks import mask_losses
from polyclinic.models.tasks.drawing import FOUND, TRUE, flat, outlined
from polyclinic.models.tasks.mask_figures import compared
from polyclinic.models.tasks.windows import cropped, slid

CRITERIA = {
    "dice_ce": "Dice and cross-entropy",
    "dice": "Dice",
    "ce": "cross-entropy",
    "boundary": "Dice and the distance to the true boundary",
}


class Segmentation(Method):
    """One class a pixel: one of ``classes``, or background, which is not listed. A binary task has one class.

    ``values`` says what the numbers in a mask mean: "number" (k is the k-th class), "any" (everything above 0 is the
    only class, as in masks of 0 and 255), or the number of each class. 0 is background, and ``unlabelled`` a number
    that says nothing of a pixel; neither such pixels nor those outside of a padded picture count anywhere.

    ``criterion`` is what is minimised: MONAI's Dice plus cross-entropy, either alone, or "boundary": Dice plus
    ``boundary_weight`` times the boundary loss of Kervadec et al. 2019 (arXiv 1812.07032), in pixels; the authors begin
    with 0.01. ``unit`` is that of distances and volumes, and of ``tolerance``, the distance within which the surface
    Dice takes two surfaces for one; "mm" needs masks that say how large their pixels are.

    With ``window`` (the side of a square) and ``window_depth`` the model sees a part of a picture or volume at once: in
    training one random window of each, in use windows that overlap by ``overlap`` (MONAI's sliding window).
    """

    facts: ClassVar[Facts] = Facts(
        families=(),
        paper="",
        exact_private=True,
        because="the loss is a mean over pictures, each its own",
        travels="the head",
    )
    discloses: ClassVar[bool] = True
    needs: ClassVar[Needs] = "mask"
    dense: ClassVar[bool] = True
    exclusive: ClassVar[bool] = False

    method: Literal["segmentation"] = "segmentation"
    classes: tuple[str, ...] = Field(min_length=1, max_length=254)
    values: Literal["number", "any"] | tuple[int, ...] = "number"
    unlabelled: int | None = Field(default=None, ge=1)
    criterion: Literal["dice_ce", "dice", "ce", "boundary"] = "dice_ce"
    boundary_weight: float = Field(default=0.01, gt=0.0)
    unit: Literal["pixel", "mm"] = "pixel"
    tolerance: float = Field(default=1.0, ge=0.0, le=1000.0)
    window: int | None = Field(default=None, ge=16, le=2048)
    window_depth: int | None = Field(default=None, ge=4, le=1024)
    overlap: float = Field(default=0.25, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _meant(self) -> Self:
        if len(set(self.classes)) < len(self.classes) or not all(self.classes):
            raise ValueError("classes must differ, and none be empty")
        if self.values == "any" and (len(self.classes) > 1 or self.unlabelled is not None):
            raise ValueError('values = "any" is for one class and no other number')
        numbers = self.numbers
        if len(set(numbers)) < len(self.classes) or len(numbers) != len(self.classes) or min(numbers) < 1:
            raise ValueError("values has one number above 0 for each class, all different")
        if self.unlabelled in numbers:
            raise ValueError("unlabelled is the number of a class")
        return self

    @property
    def numbers(self) -> tuple[int, ...]:
        """The number of each class in a mask."""
        return tuple(range(1, len(self.classes) + 1)) if isinstance(self.values, str) else self.values

    @property
    def options(self) -> int:
        """Background and classes."""
        return len(self.classes) + 1

    def check(self, study: Study) -> None:
        """Refuses windows that are larger than the pictures."""
        for key, part, whole in (
            ("window", self.window, study.data.image_size),
            ("window_depth", self.window_depth, study.data.depth or 0),
        ):
            if part is not None and part > whole:
                raise StudyError(
                    f"a window of {part} does not fit into pictures of {whole}"
                    if whole
                    else "flat pictures have no depth",
                    where=f"task.{key}",
                    remedy="make it smaller, or leave it out",
                )

    def seen(self, data: Data) -> Data:
        """The window's size, where there is one."""
        depth = data.depth if self.window_depth is None else self.window_depth
        return data.model_copy(update={"image_size": self.window or data.image_size, "depth": depth})

    def cropped(self, views: Views, generator: torch.Generator) -> Views:
        """A window of each picture, if they are larger than one."""
        size = self._size(views.target.shape[1:])
        return views if size == views.target.shape[1:] else cropped(views, size, generator)

    def head(self, shape: Shape, generator: torch.Generator) -> nn.Module:
        """A light decoder, or one convolution where the backbone brings its own: see ``models/heads/decoder.py``."""
        return decoder(shape, self.options, generator)

    def target(self, label: str) -> int:
        """There are no labels.

        Raises:
            ValueError: always.
        """
        raise ValueError("a segmentation learns from masks, not from labels")

    def indexed(self, values: np.ndarray) -> np.ndarray:
        """uint8: 0 for background, k for the k-th class, 255 for what counts nowhere; below 0 is outside the picture.

        Raises:
            ValueError: a number that stands for nothing.
        """
        found = np.full(values.shape, IGNORED, dtype=np.uint8)
        found[values == 0] = 0
        if self.values == "any":
            found[values > 0] = 1
            return found
        for k, number in enumerate(self.numbers):
            found[values == number] = k + 1
        nameless = np.unique(values[(found == IGNORED) & (values >= 0)]).tolist()
        if unknown := [number for number in nameless if number != self.unlabelled]:
            known = ", ".join(f"{n} ({name})" for n, name in zip(self.numbers, self.classes, strict=True))
            raise ValueError(f"holds the value {unknown[0]}; the study knows 0 (background), {known}")
        return found

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """What ``criterion`` says, of logits [N, K + 1, …] against classes uint8 [N, …]: the mean over pictures."""
        if self.criterion == "ce":
            return mask_losses.cross_entropy(output, target)
        overlap = mask_losses.dice(output, target)
        if self.criterion == "dice":
            return overlap
        if self.criterion == "boundary":
            return overlap + self.boundary_weight * mask_losses.boundary(output, target)
        return overlap + mask_losses.cross_entropy(output, target)

    def choices(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [M, options], index of the right one [M]) of every pixel that counts, picture by picture."""
        counted = target != IGNORED
        return output.movedim(1, -1)[counted], target[counted].long()

    def lowered(self, output: Tensor, by: Tensor) -> Tensor:
        """Outputs with each option's logit lowered by [options]."""
        return output - by.view(1, -1, *[1] * (output.dim() - 2))

    def occurrences(self, target: Tensor) -> Tensor:
        """[options]: pixels of each, background first."""
        return torch.bincount(target[target != IGNORED].flatten(), minlength=self.options).to(torch.float32)

    def moved(self, target: Tensor, inverse: Tensor) -> Tensor:
        """Masks moved as their pictures, each pixel from the nearest one; what comes from outside counts nowhere.

        All slices of a volume alike.
        """
        slices = target[:, None] if target.dim() == 3 else target
        grid = F.affine_grid(inverse, list(slices.shape), align_corners=False)
        # grid_sample fills with 0, so classes are counted from 1 meanwhile
        seen = F.grid_sample(slices.to(inverse.dtype) + 1.0, grid, mode="nearest", align_corners=False).round()
        outside = seen == 0.0
        return torch.where(outside, float(IGNORED), seen - 1.0).to(target.dtype).view_as(target)

    def presence(self, target: np.ndarray) -> np.ndarray:
        """int64 [N, classes]: 1 where a picture has a pixel of the class."""
        held = [(target == k).any(axis=tuple(range(1, target.ndim))) for k in range(1, self.options)]
        return np.stack(held, axis=1).astype(np.int64)

    def infer(self, model: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        """One pass, or a window slid over all of a picture that is larger."""
        size = self._size(pixels.shape[2:])
        return model(pixels) if size == pixels.shape[2:] else slid(model, pixels, size, self.overlap)

    def _size(self, whole: Sequence[int]) -> tuple[int, ...]:
        """Of a window, along (D,) H, W."""
        square = whole[-2:] if self.window is None else (self.window, self.window)
        return (*(whole[:-2] if self.window_depth is None else (self.window_depth,)), *square)

    def examine(self, output: np.ndarray, target: np.ndarray, *, bins: int, spacing: np.ndarray) -> Findings:
        """Overlap, distances, volumes and calibration, case by case; in pixels unless ``unit`` is "mm"."""
        apart = spacing if self.unit == "mm" else np.ones((len(target), target.ndim - 1))
        return compared(output, target, apart, bins=bins, tolerance=self.tolerance)

    def tally(self, findings: Findings, patients: Sequence[str], *, bins: int, score_bins: int) -> Segmented:
        """Mergeable outcome."""
        return tally(findings, patients, classes=len(self.classes), unit=self.unit, tolerance=self.tolerance)

    def disclosed(self, findings: Findings) -> Floats:
        """[N, K, 2]: see ``noised_segmented.rows``."""
        return noised_segmented.rows(findings["true"], findings["dice"])

    def undisclosed(self) -> NoisedSegmented:
        """What ``disclosed`` sums to over nobody."""
        return NoisedSegmented.blank(len(self.classes))

    def drawn(self, pixels: np.ndarray, output: np.ndarray, target: np.ndarray) -> Example:
        """The picture with both outlines, blue the true one; of a volume the slice with most of what is true."""
        found = output.argmax(axis=0)
        truth = np.where(target == IGNORED, 0, target)
        share = 2 * ((found == truth) & (truth > 0)).sum() / max(1, (found > 0).sum() + (truth > 0).sum())
        depth = None if truth.ndim == 2 else int((truth > 0).sum(axis=(1, 2)).argmax())
        if depth is not None:
            found, truth = found[depth], truth[depth]
        picture = outlined(outlined(flat(pixels, depth), truth, TRUE), found, FOUND)
        held = [name for number, name in enumerate(self.classes, 1) if (target == number).any()]
        return Example(picture, f"blue: {', '.join(held) or 'none'}", f"orange; Dice {share:.2f}")

    def trained(self, pooling: str) -> str:
        """The decoder."""
        return "A light decoder trains from the backbone's maps, which paints a class for every pixel."

    def told(self, *, bins: int, score_bins: int) -> str:
        """What an outcome holds."""
        return (
            "by class, sums over cases of Dice, surface Dice, Hausdorff distance and volume, counts of cases and of "
            f"right and wrong pixels; sums of loss; {bins} reliability bins of pixels"
        )

    def blank(self, *, bins: int, score_bins: int) -> Segmented:
        """The outcome of no case."""
        nothing = np.zeros((0, self.options, 1, 1))
        findings = self.examine(nothing, np.zeros((0, 1, 1), np.uint8), bins=bins, spacing=np.ones((0, 2)))
        return self.tally(findings, (), bins=bins, score_bins=score_bins)

    def explain(self) -> str:
        """What is predicted, and what is minimised."""
        listed, loss = ", ".join(self.classes), CRITERIA[self.criterion]
        windows = "" if self.window is None else f" It sees windows of {self.window} pixels."
        return f"Every pixel is told to be {listed} or background (segmentation); the loss is {loss}.{windows}"
