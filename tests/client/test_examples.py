"""The page of examples: made at a site, for that site, and of what it says."""

from __future__ import annotations

import base64
import io
import re
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from polyclinic.client.data.dataset import Images
from polyclinic.client.examples import chosen, page, write_examples
from polyclinic.core.study import Study
from polyclinic.models.network import task

COUNT = 30
CPU = torch.device("cpu")


class Bright(nn.Module):
    """The logit is how much brighter than the middle a picture is."""

    def forward(self, pixels: Tensor) -> Tensor:
        return 8 * (pixels.mean(dim=(1, 2, 3), keepdim=False)[:, None] - 0.5)


@pytest.fixture
def images() -> Images:
    levels = np.linspace(0, 255, COUNT).astype(np.uint8)
    pixels = np.broadcast_to(levels[:, None, None, None], (COUNT, 1, 32, 32)).copy()
    targets = np.array([0, 1] * (COUNT // 2), dtype=np.int64)
    return Images(pixels, targets, tuple(map(str, range(COUNT))))


def test_worst_and_best_are_so_by_the_loss_and_no_picture_is_shown_twice(tiny_study: Study, images: Images) -> None:
    found = chosen(Bright(), task(tiny_study), images, tiny_study, CPU)
    logits = 8 * (images.pixels[:, 0, 0, 0] / 255 - 0.5)
    truth = np.logaddexp(0, np.where(images.targets == 1, -logits, logits))
    losses = [[one.loss for one in shown] for shown in found.values()]
    np.testing.assert_allclose(losses[0], np.sort(truth)[::-1][:4], rtol=1e-5)
    np.testing.assert_allclose(losses[2], np.sort(truth)[::-1][-4:], rtol=1e-4)
    shown = [one.example.picture[0, 0, 0] for kind in found.values() for one in kind]
    assert len(shown) == len(set(shown)) == 12


def test_the_page_shows_the_pictures_and_what_was_found(tiny_study: Study, images: Images, tmp_path: Path) -> None:
    few = Images(images.pixels[:3], images.targets[:3], images.patients[:3])
    path = write_examples(tmp_path / "own", Bright(), task(tiny_study), few, tiny_study, "<north>", CPU)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert "&lt;north&gt;" in text
    assert "<north>" not in text
    bodies = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", text)
    grey = sorted(int(np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))[0, 0, 0]) for body in bodies)
    assert grey == images.pixels[:3, 0, 0, 0].tolist()
    assert re.findall(r"<dd>((?:normal|lesion)[ 0-9.]*)</dd>", text) or "0.9" in text


def test_without_images_it_says_so(tiny_study: Study) -> None:
    assert "There is no image to show" in page({}, tiny_study, "north")


def test_of_many_images_some_are_looked_at_and_the_last_among_them(tiny_study: Study) -> None:
    count = 500
    pixels = np.zeros((count, 1, 32, 32), dtype=np.uint8)
    pixels[-1] = 255  # the only one on which the model errs
    many = Images(pixels, np.zeros(count, dtype=np.int64), tuple(map(str, range(count))))
    asked: list[int] = []

    class Counting(Bright):
        def forward(self, pixels: Tensor) -> Tensor:
            asked.append(len(pixels))
            return super().forward(pixels)

    found = chosen(Counting(), task(tiny_study), many, tiny_study, CPU)
    assert sum(asked) == 96
    assert found["Where it does worst"][0].example.picture.max() == 255
