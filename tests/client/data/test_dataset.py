from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.manifest import Row, read_manifest, sites
from polyclinic.core.errors import DataError
from polyclinic.core.study import Data
from polyclinic.models.tasks.classification import Classification

HEADER = "path,site,label,split,patient_id"
LINES = ["b.png,N,1,train,p1", "a.png,N,0,train,p1", "c.png,N,2,val,p2", "d.png,S,1,test,p1"]
DATA = Data(image_size=16)
CLASSIFICATION = Classification()


@pytest.fixture
def north(manifest, task) -> SiteData:
    return SiteData("N", sites(read_manifest(manifest(HEADER, LINES), DATA, task, 0))["N"], DATA, CLASSIFICATION)


def test_images_come_in_the_order_of_their_names_with_their_targets(north, tmp_path):
    images = north.images("train")
    truth = np.stack([np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png")])
    assert np.array_equal(images.pixels, truth[:, None])
    assert images.pixels.dtype == np.uint8
    assert images.targets.dtype == np.int64
    assert images.targets.tolist() == [0, 1]
    assert images.patients == ("p1", "p1")
    assert len(images) == 2
    assert north.sizes() == {"train": (2, 1), "val": (1, 1), "test": (0, 0)}


def test_order_of_rows_does_not_matter(north):
    turned = SiteData("N", north.rows[::-1], DATA, CLASSIFICATION)
    assert turned.rows == north.rows
    assert np.array_equal(turned.images("train").pixels, north.images("train").pixels)


def test_images_are_decoded_once_for_each_instance(north, tmp_path):
    first = north.images("train")
    (tmp_path / "a.png").unlink()
    assert north.images("train") is first
    with pytest.raises(DataError, match=r"a\.png"):
        SiteData("N", north.rows, DATA, CLASSIFICATION).images("train")
    with pytest.raises(dataclasses.FrozenInstanceError):
        north.site = "S"


def test_a_split_may_be_empty_and_an_unknown_one_is_refused(north):
    empty = north.images("test")
    assert empty.pixels.shape == (0, 1, 16, 16)
    assert empty.targets.shape == (0,)
    with pytest.raises(DataError, match="no split 'tset'"):
        north.images("tset")


def test_one_colour_picture_makes_the_set_colour(tmp_path, picture):
    shapes = {"a.png": (16, 16), "b.png": (16, 16, 3), "c.png": (16, 16)}
    rows = tuple(
        Row(picture(name, shape), "N", "1", 1, "train", name, i) for i, (name, shape) in enumerate(shapes.items())
    )
    pixels = SiteData("N", rows, DATA, CLASSIFICATION).images("train").pixels
    truth = [np.asarray(Image.open(tmp_path / name).convert("RGB")).transpose(2, 0, 1) for name in shapes]
    assert np.array_equal(pixels, np.stack(truth))
    grey = Data(image_size=16, colour="grey")
    assert SiteData("N", rows, grey, CLASSIFICATION).images("train").pixels.shape == (3, 1, 16, 16)


def test_several_labels_an_image(picture):
    rows = (
        Row(picture("a.png"), "N", "x|y", (1, 1, 0), "train", "p", 2),
        Row(picture("b.png"), "N", "", (0, 0, 0), "train", "p", 3),
    )
    held = SiteData("N", rows, DATA, Classification(kind="multilabel", classes=("x", "y", "z")))
    assert held.images("train").targets.tolist() == [[1, 1, 0], [0, 0, 0]]
    assert held.images("val").targets.shape == (0, 3)


def test_rows_of_another_site_are_refused(north):
    with pytest.raises(DataError, match="belongs to site 'N'"):
        SiteData("S", north.rows, DATA, CLASSIFICATION)
