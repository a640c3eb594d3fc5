"""Boxes: a file read strictly, and places in the study's square checked against the pixels that the model sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polyclinic.client.data.boxed import boxed, squared
from polyclinic.client.data.check import check
from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.framing import framing
from polyclinic.client.data.images import read_image
from polyclinic.client.data.manifest import Row, read_manifest, scan, sites
from polyclinic.core.errors import DataError
from polyclinic.core.study import About, Data, Training
from polyclinic.models.tasks.detection import Detection
from tests.client.data.medical import dataset, saved

TASK = Detection(classes=("cell", "nucleus"), most=4)
DATA = Data(image_size=32, boxes="boxes.csv")
HEADER = "image,label,xmin,ymin,xmax,ymax"
GOOD = ["a.png,cell,1,2,5,7", "a.png,nucleus,0,0,16,16", "sub/b.png,cell,2.5,3,4,9.25"]
ROWS = ["a.png,N,train,p", "sub/b.png,N,train,q", "c.png,N,val,r", "d.png,S,test,s"]


@pytest.fixture
def listed(manifest, tmp_path: Path) -> Callable[..., Path]:
    """Writes pictures, the manifest and its boxes; returns the manifest."""

    def make(*lines: str, header: str = HEADER, rows: list[str] = ROWS) -> Path:
        (tmp_path / "boxes.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
        return manifest("path,site,split,patient_id", rows)

    return make


def test_every_image_gets_its_boxes_and_none_is_fine(listed) -> None:
    rows = {row.name: row.boxes for row in read_manifest(listed(*GOOD), DATA, TASK, 0)}
    assert rows == {
        "a.png": ((0, 1.0, 2.0, 5.0, 7.0), (1, 0.0, 0.0, 16.0, 16.0)),
        "sub/b.png": ((0, 2.5, 3.0, 4.0, 9.25),),
        "c.png": (),
        "d.png": (),
    }


def test_more_columns_and_detours_in_paths_do_no_harm(listed) -> None:
    lines = ["x,./sub/../a.png,cell,9,1,2,5,7"]
    rows = read_manifest(listed(*lines, header="by,image,label,size,xmin,ymin,xmax,ymax"), DATA, TASK, 0)
    assert {row.name: row.boxes for row in rows}["a.png"] == ((0, 1.0, 2.0, 5.0, 7.0),)


@pytest.mark.parametrize(
    ("line", "place", "said"),
    [
        ("e.png,cell,1,2,5,7", "e.png", "the manifest lists no such image"),
        (",cell,1,2,5,7", "image", "no image"),
        ("a.png,blob,1,2,5,7", "label", "unknown label 'blob'; the study knows cell, nucleus"),
        ("a.png,,1,2,5,7", "label", "unknown label ''"),
        ("a.png,cell,5,2,1,7", "xmin", "5 is beyond xmax 1"),
        ("a.png,cell,1,7,5,2", "ymin", "7 is beyond ymax 2"),
        ("a.png,cell,1,2,1,7", "xmin", "the box is empty"),
        ("a.png,cell,1,2,5,2", "ymin", "the box is empty"),
        ("a.png,cell,-1,2,5,7", "xmin", "-1 lies outside of the picture"),
        ("a.png,cell,1,-2,5,7", "ymin", "-2 lies outside"),
        ("a.png,cell,one,2,5,7", "xmin", "'one' is no number"),
        ("a.png,cell,1,2,,7", "xmax", "no number"),
        ("a.png,cell,1,nan,5,7", "ymin", "'nan' is no number"),
        ("a.png,cell,1,2,5,inf", "ymax", "'inf' is no number"),
        ("a.png,cell,1,2,5", "", "has 5 cells where the header has 6"),
        ("a.png,cell,1,2,5,7,9", "", "has 7 cells"),
        ("a.png,cell,1.0,2,5,7", "", "the same box as on line 2"),
    ],
)
def test_a_bad_line_is_told_with_its_place(listed, line: str, place: str, said: str) -> None:
    _, problems = scan(listed("a.png,cell,1,2,5,7", line), DATA, TASK, 0)
    assert [(problem.line, problem.severity) for problem in problems] == [(3, "error")]
    assert problems[0].column_or_path == ", ".join(part for part in ("boxes.csv", place) if part)
    assert said in problems[0].what
    assert problems[0].remedy


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("image,label,xmin,ymin,xmax", "this column is missing"),
        ("image,label,x_min,ymin,xmax,ymax", "this column is missing"),
        ("image,label,xmin,xmin,xmax,ymax", "this column"),
        ("picture,class,left,top,right,bottom", "this column is missing"),
        ("image;label;xmin;ymin;xmax;ymax", "this column is missing"),
    ],
)
def test_a_bad_header_is_told_with_the_columns(listed, header: str, said: str) -> None:
    _, problems = scan(listed(header=header), DATA, TASK, 0)
    errors = [problem for problem in problems if problem.severity == "error"]
    assert errors
    assert {problem.line for problem in errors} == {1}
    assert all(said in problem.what for problem in errors)
    near = [problem.remedy for problem in errors if problem.column_or_path == "boxes.csv, xmin"]
    assert "x_min" not in header or "did you mean x_min" in near[0]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (None, "there is no such file"),
        (b"", "is empty"),
        (b"\xff\xfe", "is not UTF-8"),
        (HEADER.encode() + b"\na.png,\0,1,2,3,4", "NUL"),
        (HEADER.encode() + b'\n"a.png,cell,1,2,3,4', "no CSV record"),
    ],
)
def test_a_bad_file_is_told(listed, tmp_path: Path, body: bytes | None, said: str) -> None:
    path = listed()
    (tmp_path / "boxes.csv").unlink()
    if body is not None:
        (tmp_path / "boxes.csv").write_bytes(body)
    _, problems = scan(path, DATA, TASK, 0)
    assert any(said in problem.what and "boxes.csv" in problem.column_or_path for problem in problems)


def test_a_study_that_names_no_file_is_told(listed) -> None:
    _, problems = scan(listed(), Data(), TASK, 0)
    assert [problem.column_or_path for problem in problems] == ["data.boxes"]


def test_an_image_that_is_wrong_itself_does_not_put_its_boxes_in_the_wrong(listed, tmp_path: Path) -> None:
    path = listed(*GOOD)
    (tmp_path / "a.png").unlink()
    _, problems = scan(path, DATA, TASK, 0)
    assert [(problem.line, problem.column_or_path) for problem in problems] == [(2, "a.png")]


# where a box lies in the square


def bright(width: int, height: int, box: tuple[int, int, int, int]) -> np.ndarray:
    pixels = np.zeros((height, width), np.uint8)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = 255
    return pixels


def hull(pixels: np.ndarray) -> list[int]:
    """Left, top, right and bottom of what is bright in [1, S, S]."""
    rows, columns = (np.flatnonzero((pixels[0] > 127).any(axis=axis)) for axis in (1, 0))
    return [int(n) for n in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


def seen(path: Path, box: tuple[int, int, int, int], data: Data) -> list[float]:
    """Where the task's target says that the box lies, in pixels of the square."""
    row = Row(path, "N", "", (), "train", "p", 1, path.name, boxes=((1, *map(float, box)),))
    target = boxed([row], data, TASK)
    assert target.dtype == np.float32
    assert target.shape == (1, 4, 5)
    assert target[0, :, 0].tolist() == [1.0, -1.0, -1.0, -1.0]
    return [float(x) * data.image_size for x in target[0, 0, 1:]]


@pytest.mark.parametrize("fit", ["pad", "squash", "crop"])
@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (160, 120, (60, 30, 100, 70)),
        (90, 150, (20, 50, 60, 110)),
        (64, 64, (8, 16, 40, 30)),
        (31, 77, (3, 30, 20, 50)),
    ],
)
def test_a_box_lies_where_its_pixels_lie(tmp_path: Path, fit: str, width: int, height: int, box: Any) -> None:
    path, data = tmp_path / "x.png", Data(image_size=64, fit=fit, boxes="b")
    Image.fromarray(bright(width, height, box)).save(path)
    np.testing.assert_allclose(seen(path, box, data), hull(read_image(path, data, 1)), atol=1.01)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tiff"])
def test_boxes_of_the_stored_picture_turn_with_it(tmp_path: Path, kind: str, orientation: int) -> None:
    path, data, box = tmp_path / f"x.{kind}", Data(image_size=64, boxes="b"), (16, 24, 56, 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(bright(128, 64, box)).save(path, exif=exif, **({"quality": 95} if kind == "jpg" else {}))
    np.testing.assert_allclose(seen(path, box, data), hull(read_image(path, data, 1)), atol=1.01)


def test_boxes_of_a_dicom_picture_lie_where_its_pixels_lie(tmp_path: Path) -> None:
    from polyclinic.client.data.pictures import pictures

    data, box = Data(image_size=64, boxes="b", intensity="percentiles"), (10, 20, 30, 50)
    path = saved(dataset(bright(80, 60, box).astype(np.int16)), tmp_path / "x.dcm")
    with pictures(data) as read:
        np.testing.assert_allclose(seen(path, box, data), hull(read(path)), atol=1.01)


def test_several_slices_have_no_boxes(tmp_path: Path) -> None:
    path = saved(dataset(np.zeros((3, 8, 8), np.int16)), tmp_path / "x.dcm")
    with pytest.raises(DataError, match="single pictures"):
        seen(path, (1, 1, 3, 3), Data(image_size=32, volume="middle", boxes="b"))


def test_what_is_cropped_away_is_left_out() -> None:
    data = Data(image_size=50, fit="crop", boxes="b")
    found = squared([(0, 0, 0, 20, 20), (1, 20, 10, 30, 20), (0, 24, 0, 26, 10)], 100, 50, 1, data)
    assert found.tolist() == [[1.0, 0.0, pytest.approx(0.2), pytest.approx(0.1), pytest.approx(0.4)],
                              [0.0, 0.0, 0.0, pytest.approx(0.02), pytest.approx(0.2)]]  # fmt: skip
    assert squared([(0, 0, 0, 20, 20)], 100, 50, 1, data).shape == (0, 5)


def test_framing_says_what_is_seen_and_where() -> None:
    assert framing(320, 240, 256, "pad").offset == (0.0, 32.0)
    assert framing(320, 240, 256, "pad").scale == (0.8, 0.8)
    assert framing(100, 50, 50, "crop").seen == (25, 0, 75, 50)
    assert framing(100, 50, 50, "squash").scale == (0.5, 1.0)
    assert framing(10_000, 1, 16, "pad").size == (16, 1)


def test_boxes_beyond_the_picture_or_too_many_are_refused(listed, picture, tmp_path: Path) -> None:
    rows = read_manifest(listed("a.png,cell,1,2,17,7"), DATA, TASK, 0)
    with pytest.raises(DataError, match=r"reaches to \(17, 7\) in a picture of 16 x 16") as refusal:
        SiteData("N", sites(rows)["N"], DATA, TASK).images("train")
    assert refusal.value.where == "a.png"
    many = [f"a.png,cell,{i},2,9,7" for i in range(5)]
    rows = read_manifest(listed(*many), DATA, TASK, 0)
    with pytest.raises(DataError, match=r"5 boxes, task\.most is 4"):
        boxed(rows, DATA, TASK)


def test_a_site_holds_its_targets_in_the_order_of_names(listed) -> None:
    rows = read_manifest(listed(*GOOD), DATA, TASK, 0)
    images = SiteData("N", sites(rows)["N"], DATA, TASK).images("train")
    assert images.targets.shape == (2, 4, 5)
    assert images.targets[0, 0].tolist() == pytest.approx([0, 1 / 16, 2 / 16, 5 / 16, 7 / 16])
    assert (images.targets[:, :, 0] >= 0).sum(axis=1).tolist() == [2, 1]
    empty = SiteData("N", sites(rows)["N"], DATA, TASK).images("test")
    assert empty.targets.shape == (0, 4, 5)


def test_the_preflight_counts_classes_by_boxes_and_finds_those_beyond(listed) -> None:
    splits = ["train"] * 4 + ["val"] * 12
    rows = [f"{site}{i}.png,{site},{split},p{i}" for site in "NS" for i, split in enumerate(splits)]
    lines = ["N0.png,cell,1,2,5,7", "N0.png,nucleus,1,2,5,7", "N1.png,cell,0,0,16,16", "S0.png,cell,2,2,20,9"]
    study = SimpleNamespace(data=DATA, task=TASK, study=About(name="x"), training=Training(batch_size=4))
    report = check(listed(*lines, rows=rows), study)  # type: ignore[arg-type]
    held = {(count.site, count.split): dict(count.classes) for count in report.counts}
    assert held["N", "train"] == {"cell": 2, "nucleus": 1, "none": 2}
    assert [problem.what for problem in report.errors] == ["a box reaches to (20, 9) in a picture of 16 x 16 pixels"]
    assert report.errors[0].column_or_path == "S0.png"
