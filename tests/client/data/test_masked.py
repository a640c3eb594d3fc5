"""Masks lie on their pictures, whatever becomes of them; what does not lie on its picture is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from polyclinic.client.data.check import check
from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.manifest import read_manifest
from polyclinic.core import study as studies
from polyclinic.core.errors import DataError
from polyclinic.core.study import Data
from polyclinic.models.tasks.classification import Classification
from polyclinic.models.tasks.segmentation import Segmentation
from tests.client.data.medical import dataset, saved

TASK = Segmentation(classes=("a", "b"))
MM = Segmentation(classes=("a", "b"), unit="mm")
MIDDLE, WHOLE = {"volume": "middle"}, {"volume": "whole", "depth": 4}
ANY = Segmentation(classes=("a",), values="any")
LEVELS = np.array([0, 100, 250])
"""Brightness of each class; no mean of two of them is a third."""
HEADER = "path,site,split,patient_id,mask"


def blocky(*shape: int, options: int = 3, block: int = 7, seed: int = 0) -> np.ndarray:
    """Classes in blocks, so that most pixels are far from any edge."""
    small = np.random.default_rng(seed).integers(0, options, [-(-n // block) for n in shape])
    return np.kron(small, np.ones([block] * len(shape)))[tuple(slice(n) for n in shape)].astype(np.uint8)


def site(folder: Path, image: str, mask: str, task=TASK, **keys) -> SiteData:
    data = Data(**{"image_size": 32, "colour": "grey", **keys})
    (folder / "manifest.csv").write_text(f"{HEADER}\n{image},N,train,p,{mask}\n")
    return SiteData("N", read_manifest(folder / "manifest.csv", data, task, 0), data, task)


def nifti(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    """[D, H, W] as NIfTI keeps it: [W, H, D]."""
    nibabel.Nifti1Image(values.T, np.eye(4) if affine is None else affine).to_filename(path)


def agree(images, options: int = 3) -> float:
    """Share of the pixels, among those far from edges, at which picture and mask say the same."""
    seen, mask = images.pixels[0, 0].astype(int), images.targets[0]
    away = np.abs(seen[..., None] - LEVELS)
    clear = (away.min(axis=-1) < 2) & (mask != 255)
    assert clear.mean() > 0.1
    assert len(np.unique(mask[clear])) == options
    return float((away.argmin(axis=-1) == mask)[clear].mean())


@pytest.mark.parametrize("fit", ["pad", "squash", "crop"])
@pytest.mark.parametrize("size", [(70, 49), (49, 70), (64, 64), (32, 32), (20, 13), (33, 32)])
def test_masks_stay_on_flat_pictures(tmp_path, fit, size):
    classes = blocky(*size, block=5 if min(size) < 30 else 7)
    Image.fromarray(LEVELS[classes].astype(np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(classes).save(tmp_path / "m.png")
    images = site(tmp_path, "a.png", "m.png", fit=fit).images("train")
    assert images.targets.dtype == np.uint8
    assert images.targets.shape == (1, 32, 32)
    assert agree(images) > 0.97
    # padding is black in the picture and counts nowhere in the mask
    outside = images.targets[0] == 255
    assert outside.any() == (fit == "pad" and size[0] != size[1])
    assert not images.pixels[0, 0][outside].any()
    if size == (32, 32):
        np.testing.assert_array_equal(images.targets[0], classes)


ORIENTATIONS = {
    "LPS": np.diag([-2.0, -0.5, 3.0, 1.0]),
    "RAS": np.diag([2.0, 0.5, 3.0, 1.0]),
    "sagittal": np.array([[0, 0, 3.0, 1], [2.0, 0, 0, 2], [0, -0.5, 0, 3], [0, 0, 0, 1]]),
    "coronal": np.array([[-2.0, 0, 0, 1], [0, 0, 3.0, 2], [0, 0.5, 0, 3], [0, 0, 0, 1]]),
    "swapped": np.array([[0, -2.0, 0, 1], [0.5, 0, 0, 2], [0, 0, -3.0, 3], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("way", ORIENTATIONS)
@pytest.mark.parametrize("volume", ["middle", "whole"])
def test_masks_stay_on_volumes_whichever_way_they_were_taken(tmp_path, way, volume):
    classes = blocky(10, 30, 24, block=5)
    nifti(tmp_path / "a.nii", LEVELS[classes].astype(np.int16), ORIENTATIONS[way])
    nifti(tmp_path / "m.nii.gz", classes, ORIENTATIONS[way])
    keys = {"volume": volume, "intensity": {"low": 0.0, "high": 255.0}}
    keys |= {"depth": 12} if volume == "whole" else {}
    images = site(tmp_path, "a.nii", "m.nii.gz", **keys).images("train")
    deep = (12, 32, 32) if volume == "whole" else (32, 32)
    assert images.pixels.shape == (1, 1, *deep)
    assert images.targets.shape == (1, *deep)
    assert agree(images) > 0.95


@pytest.mark.parametrize("way", ORIENTATIONS)
def test_a_whole_volume_lies_the_same_way_whichever_way_it_was_taken(tmp_path, way):
    """Bright towards the head, with a mark at the patient's left front."""
    axes = nibabel.orientations.io_orientation(ORIENTATIONS[way])
    scan = np.zeros((24, 24, 24), np.float32)  # R to L, A to P, I to S
    scan += np.arange(24.0)[None, None] * 4
    scan[16:, :8] += 100
    turned = nibabel.Nifti1Image(scan[::-1, ::-1], np.eye(4))  # in nibabel's own directions: R, A, S
    back = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), axes)
    turned.as_reoriented(back).to_filename(tmp_path / "a.nii")
    nibabel.Nifti1Image(
        (turned.as_reoriented(back).get_fdata() > 100).astype(np.uint8), turned.as_reoriented(back).affine
    ).to_filename(tmp_path / "m.nii")
    keys = {"volume": "whole", "depth": 24, "image_size": 24, "intensity": {"low": 0.0, "high": 255.0}}
    images = site(tmp_path, "a.nii", "m.nii", ANY, **keys).images("train")
    expected = np.rint(scan.transpose(2, 1, 0)).astype(np.uint8)
    np.testing.assert_array_equal(images.pixels[0, 0], expected)
    np.testing.assert_array_equal(images.targets[0], (scan > 100).transpose(2, 1, 0))


def test_slices_are_resampled_over_all_of_their_extent(tmp_path):
    scan = np.repeat(np.arange(8, dtype=np.int16)[:, None, None] * 20, 16, axis=1).repeat(16, axis=2)
    nifti(tmp_path / "a.nii", scan)
    nifti(tmp_path / "m.nii", (scan >= 80).astype(np.uint8))
    keys = {"volume": "whole", "depth": 4, "image_size": 16, "intensity": {"low": 0.0, "high": 255.0}}
    images = site(tmp_path, "a.nii", "m.nii", ANY, **keys).images("train")
    by_slice = images.pixels[0, 0].mean(axis=(1, 2))
    # a triangle two slices wide to either side (0.125, 0.375, 0.375, 0.125), cut off and scaled at the ends
    assert by_slice.tolist() == pytest.approx(
        [(0.375 * 0 + 0.375 * 20 + 0.125 * 40) / 0.875, 50, 90, 140 - 14.3], abs=1
    )
    assert images.targets[0].mean(axis=(1, 2)).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("volume", ["middle", "whole"])
@pytest.mark.parametrize("fit", ["pad", "squash", "crop"])
def test_pixels_keep_their_size_in_mm(tmp_path, volume, fit):
    """A box of known size: its volume in mm² or mm³ is the same after resampling."""
    box = np.zeros((16, 64, 48), np.uint8)
    box[4:12, 16:48, 12:36] = 1
    nifti(tmp_path / "a.nii", box.astype(np.int16), ORIENTATIONS["swapped"])
    nifti(tmp_path / "m.nii", box, ORIENTATIONS["swapped"])
    task = Segmentation(classes=("box",), unit="mm")
    keys = {"volume": volume, "fit": fit, "depth": 8 if volume == "whole" else None}
    images = site(tmp_path, "a.nii", "m.nii", task, **keys).images("train")
    true = 32 * 24 * 2.0 * 0.5 * (8 * 3.0 if volume == "whole" else 1.0)
    assert (images.targets == 1).sum() * images.spacing[0].prod() == pytest.approx(true, rel=0.05)


def test_spacing_is_unknown_where_nobody_says_it(tmp_path):
    Image.fromarray(blocky(32, 32)).save(tmp_path / "a.png")
    assert np.isnan(site(tmp_path, "a.png", "a.png").images("train").spacing).all()


def test_a_mask_without_a_place_lies_as_its_dicom_picture(tmp_path):
    classes = blocky(40, 24)
    saved(dataset(LEVELS[classes].astype(np.int16)), tmp_path / "a.dcm")
    Image.fromarray(classes).save(tmp_path / "m.png")
    keys = {"intensity": {"low": 0.0, "high": 255.0}, "fit": "squash"}
    images = site(tmp_path, "a.dcm", "m.png", **keys).images("train")
    assert agree(images) > 0.97
    assert images.spacing[0] == pytest.approx([0.5 * 40 / 32, 0.25 * 24 / 32])


def test_numbers_are_read_as_the_task_says(tmp_path):
    mask = blocky(32, 32, options=2) * 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    Image.fromarray(np.stack([mask] * 3, axis=-1)).save(tmp_path / "c.png")
    for name in ("m.png", "c.png"):
        found = site(tmp_path, "m.png", name, ANY).images("train").targets
        np.testing.assert_array_equal(found[0], mask // 255)


def bad(name: str):
    """Kind of fault → (image, mask, task, keys of the data, what is said)."""
    return {
        "other size": ("a.png", "small.png", TASK, {}, r"small\.png: .* 1 x 16 x 16 pixels .* has 1 x 32 x 32 \(a"),
        "other number": ("a.png", "seven.png", TASK, {}, r"seven\.png: holds the value 7; the study knows 0 \(b"),
        "a photograph": ("a.png", "colour.png", TASK, {}, r"colour\.png: is no mask: its values are no whole numbers"),
        "parts of numbers": ("v.nii", "half.nii", TASK, MIDDLE, r"half\.nii: is no mask: its values"),
        "below nothing": ("v.nii", "minus.nii", TASK, MIDDLE, r"minus\.nii: is no mask: its values"),
        "a text": ("a.png", "text.png", TASK, {}, r"text\.png: is text, no picture"),
        "cut short": ("a.png", "cut.png", TASK, {}, r"cut\.png: is damaged or cut short"),
        "nothing in it": ("a.png", "empty.png", TASK, {}, r"empty\.png: is empty"),
        "a volume for a picture": ("a.png", "mv.nii", TASK, {}, r"mv\.nii: .* has 6 x 32 x 32 .* has 1 x 32 x 32"),
        "a picture for a volume": ("v.nii", "m.png", TASK, MIDDLE, r"m\.png: is a mask that has 1 x 32 x 32"),
        "elsewhere": ("v.nii", "away.nii", TASK, MIDDLE, r"away\.nii: is a mask that lies elsewhere"),
        "several slices": ("v.nii", "mv.nii", TASK, {}, r"holds 6 slices.*middle"),
        "flat in a study of volumes": ("a.png", "m.png", TASK, WHOLE, r"is one slice, and the study"),
        "no size": ("a.png", "m.png", MM, {}, r"neither it nor its picture says how large.*unit = \"pixel"),
    }[name]  # fmt: skip


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Pictures, masks, and what is no mask of them."""
    mask, volume = blocky(32, 32), blocky(6, 32, 32)
    Image.fromarray(mask * 100).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    Image.fromarray(mask[:16, :16]).save(tmp_path / "small.png")
    Image.fromarray(np.where(mask == 2, 7, mask).astype(np.uint8)).save(tmp_path / "seven.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / "colour.png")
    (tmp_path / "text.png").write_text("no picture at all")
    (tmp_path / "cut.png").write_bytes((tmp_path / "m.png").read_bytes()[:-30])
    (tmp_path / "empty.png").write_bytes(b"")
    nifti(tmp_path / "v.nii", volume.astype(np.int16))
    nifti(tmp_path / "mv.nii", volume)
    nifti(tmp_path / "half.nii", volume.astype(np.float32) / 2)
    nifti(tmp_path / "minus.nii", volume.astype(np.int16) - 1)
    nifti(tmp_path / "away.nii", volume, np.diag([1.0, 1.0, 1.0, 1.0]) + np.eye(4, k=3) * 5)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["other size", "other number", "a photograph", "parts of numbers", "below nothing", "a text", "cut short",
     "nothing in it", "a volume for a picture", "a picture for a volume", "elsewhere", "several slices",
     "flat in a study of volumes", "no size"],
)  # fmt: skip
def test_what_is_no_mask_of_its_picture_is_refused_by_name(broken: Path, name: str):
    image, mask, task, keys, said = bad(name)
    with pytest.raises(DataError, match=said) as refusal:
        site(broken, image, mask, task, **keys).images("train")
    assert refusal.value.remedy


@pytest.mark.parametrize(
    ("header", "line", "said"),
    [
        (HEADER, "a.png,N,train,p,", r"line 2, mask: no mask, from which the task learns"),
        (HEADER, "a.png,N,train,p,none.png", r"line 2, none\.png: there is no such mask"),
        (HEADER, "a.png,N,train,p,.", r"there is no such mask"),
        ("path,site,split,patient_id,label", "a.png,N,train,p,1", r"mask: this column is missing"),
    ],
)
def test_a_manifest_without_masks_is_refused(broken: Path, header: str, line: str, said: str):
    (broken / "manifest.csv").write_text(f"{header}\n{line}\n")
    with pytest.raises(DataError, match=said):
        read_manifest(broken / "manifest.csv", Data(), TASK, 0)


def test_the_preflight_counts_classes_of_masks_and_names_strange_ones(broken: Path, manifest: Callable[..., Path]):
    Image.fromarray(np.where(blocky(32, 32) == 1, 1, 0).astype(np.uint8)).save(broken / "one.png")
    Image.fromarray(255 - blocky(32, 32) * 100).save(broken / "b.png")
    Image.fromarray(blocky(32, 32, seed=4) * 90).save(broken / "c.png")
    path = broken / "manifest.csv"
    path.write_text(
        f"{HEADER}\na.png,N,train,p,m.png\nb.png,N,train,q,one.png\nc.png,S,train,r,one.png\nv.nii,S,train,s,seven.png\n"
    )
    study = studies.loads(
        '[study]\nname = "x"\n[data]\nvolume = "middle"\n[task]\nmethod = "segmentation"\nclasses = ["a", "b", "c"]\n'
        '[[adaptation]]\nmethod = "lora"\n'
    )
    report = check(path, study)
    counted = {(count.site, count.split): dict(count.classes) for count in report.counts}
    assert counted["N", "train"] == {"a": 2, "b": 1}
    assert counted["S", "train"] == {"a": 1}
    said = [str(problem) for problem in report.problems]
    assert any("no site has an image of c to train on" in one for one in said)
    assert any("v.nii: has a mask that does not fit: it has 1 x 32 x 32 pixels" in one for one in said)
    path.write_text(f"{HEADER}\na.png,N,train,p,m.png\nb.png,S,train,q,seven.png\n")
    assert any("b.png: has a mask that holds the value 7" in str(problem) for problem in check(path, study).errors)
    quick = check(path, study, decode=False)
    assert not any(count.classes for count in quick.counts)
    assert not any("to train on" in str(problem) for problem in quick.problems)


def test_volumes_serve_classification(tmp_path):
    for name in ("a", "b"):
        nifti(tmp_path / f"{name}.nii", blocky(6, 20, 16).astype(np.int16))
    lines = "a.nii,N,0,train,p\nb.nii,N,1,train,q\n"
    (tmp_path / "manifest.csv").write_text(f"path,site,label,split,patient_id\n{lines}")
    data, task = Data(image_size=16, volume="whole", depth=4), Classification()
    images = SiteData("N", read_manifest(tmp_path / "manifest.csv", data, task, 0), data, task).images("train")
    assert images.pixels.shape == (2, 1, 4, 16, 16)
    assert images.targets.tolist() == [0, 1]
    assert images.spacing.shape == (2, 3)
