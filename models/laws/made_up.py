"""Eight made-up images of eight patients, which the laws are tried on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from polyclinic.core.laws import hold
from polyclinic.core.study import Study
from polyclinic.models.adaptation import Pool, Start
from polyclinic.models.network import Adapted, plain, task

IMAGES = 24


def generator() -> torch.Generator:
    """The same each time."""
    return torch.Generator().manual_seed(0)


def pictures(study: Study, channels: int = 1) -> Tensor:
    """Eight made-up images as the study has them: uint8 [8, channels, (D,) S, S]."""
    data = study.data
    shape = (IMAGES, channels, *([] if data.depth is None else [data.depth]), data.image_size, data.image_size)
    return torch.randint(256, shape, generator=generator(), dtype=torch.uint8)


def seen(study: Study) -> Tensor:
    """The same images as a model sees them, in [0, 1]."""
    return pictures(study).float() / 255


def outputs(network: nn.Module, study: Study) -> Tensor:
    """What a network gives for them."""
    with torch.no_grad():
        result: Tensor = network(seen(study))
    return result


def targets(study: Study, given: Tensor | None) -> Tensor:
    """Of eight images: those given, or the classes in turn."""
    found = task(study)
    if given is None:
        hold(found.needs == "label", f"give the targets of {IMAGES} images: the task's are no labels")
        given = torch.tensor([found.target(found.classes[i % len(found.classes)]) for i in range(IMAGES)])
    hold(len(given) == IMAGES, f"there must be {IMAGES} targets")
    return given


def begun(study: Study, adapted: Adapted, given: Tensor | None = None) -> Start:
    """A round's start over them."""
    anchor, frozen = adapted.write(adapted.read()), plain(study).backbone
    pool = Pool(pictures(study), targets(study, given), tuple(f"patient {i}" for i in range(IMAGES)))

    def forward(pixels: Tensor, *, features: bool = False) -> Tensor:
        wanted = {"features": features}
        with torch.no_grad():
            output: Tensor = torch.func.functional_call(adapted.network, dict(anchor), (pixels,), wanted)
        return output

    def pretrained(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            output: Tensor = frozen(pixels)
        return output

    return Start(
        anchor=anchor,
        forward=forward,
        features=lambda pixels: forward(pixels, features=True),
        frozen=pretrained,
        task=task(study),
        pool=pool,
        labelled=torch.arange(IMAGES),
        memory={},
        generator=generator(),
    )


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two states have the same bits."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal but for rounding."""
    return one.shape == other.shape and torch.allclose(one.double(), other.double(), rtol=1e-4, atol=1e-5)
