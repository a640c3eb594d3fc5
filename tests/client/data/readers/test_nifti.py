from __future__ import annotations

import gzip
import warnings

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic.client.data.readers.reading import read, read_mask
from polyclinic.client.data.volume import Facts, canonical, from_affine, ras_to_lps
from polyclinic.core.errors import DataError
from tests.client.data.medical import ramp

OBLIQUE = np.array([[0, 0, 3.0, 5], [-2.0, 0, 0, 6], [0, 1.0, 0, 7], [0, 0, 0, 1]])


def nifti(path, values, affine=OBLIQUE, kind=nibabel.Nifti1Image, **header):
    image = kind(values, affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "two.nii", "pair.img", "a.mgz", "a.mgh"])
def test_values_and_place_are_nibabels(tmp_path, name):
    values = ramp(2, 3, 4).astype(np.int16)
    kinds = {"two.nii": nibabel.Nifti2Image, "pair.img": nibabel.Nifti1Pair}
    kind = nibabel.MGHImage if "mg" in name else kinds.get(name, nibabel.Nifti1Image)
    path = nifti(tmp_path / name, values, kind=kind)
    found = read(path.with_suffix(".hdr") if name == "pair.img" else path.rename(tmp_path / "renamed"))
    assert np.array_equal(found.values[0].transpose(2, 1, 0), values)
    assert np.allclose(found.affine, np.diag([-1, -1, 1, 1]) @ OBLIQUE)
    assert found.spacing == (3.0, 1.0, 2.0)
    ras = "".join(nibabel.aff2axcodes(OBLIQUE))
    assert found.axes == ras[::-1]


def test_scale_times_and_no_place(tmp_path):
    image = nibabel.Nifti1Image(ramp(2, 3, 4, 5).astype(np.int16), None)
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "a.nii")
    found = read(tmp_path / "a.nii")
    assert np.allclose(found.values[1, 2, 1, 1], nibabel.load(tmp_path / "a.nii").get_fdata()[1, 1, 2, 1])
    assert (found.facts.repeats, found.affine, found.spacing) == ("time", None, (1.0, 1.0, 1.0))


def test_analyze_has_values_and_spacing_but_no_place(tmp_path):
    nibabel.save(nibabel.Spm2AnalyzeImage(ramp(2, 3, 4).astype(np.int16), np.diag([2, 3, 4, 1])), tmp_path / "a.img")
    found = read(tmp_path / "a.hdr")
    assert found.facts.format == "Analyze"
    assert found.affine is None
    assert found.spacing == (4.0, 3.0, 2.0)
    assert found.values.shape == (1, 4, 3, 2)


def test_what_is_no_number_is_read_as_the_lowest_and_told(tmp_path):
    values = ramp(2, 3, 4).astype(np.float32) - 5
    values[0] = np.nan
    found = read(nifti(tmp_path / "a.nii", values))
    assert found.values.min() == np.nanmin(values)
    assert "50.0%" in found.facts.remarks[0]


@settings(max_examples=60, deadline=None)
@given(st.permutations([0, 1, 2]), st.tuples(*[st.sampled_from([-1, 1])] * 3), st.integers(0, 2**32 - 1))
def test_canonical_is_nibabels_closest_canonical(order, signs, seed):
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, order] * signs * rng.uniform(0.5, 3, 3)
    affine[:3, :3] = nibabel.eulerangles.euler2mat(*rng.uniform(-0.3, 0.3, 3)) @ affine[:3, :3]
    affine[:3, 3] = rng.normal(size=3)
    values = rng.normal(size=(2, 3, 4))
    closest = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, affine))
    found = canonical(from_affine(values.transpose(2, 1, 0)[np.newaxis], Facts("NIfTI"), ras_to_lps(affine)))
    mine = np.flip(found.values[0].transpose(2, 1, 0), (0, 1))  # ours leads left and back, nibabel's right and front
    assert np.array_equal(mine, closest.get_fdata())
    assert found.axes == "SPL"


def damaged(raw: bytes, place: int, form: str, value: float) -> bytes:
    import struct

    held = bytearray(raw)
    struct.pack_into(form, held, place, value)
    return bytes(held)


BAD = {
    "cut in its values": (lambda raw: raw[:-10], "within its values"),
    "cut in its header": (lambda raw: raw[:300], "no format|damaged|text"),
    "header alone": (lambda raw: raw[:352], "within its values"),
    "negative size": (lambda raw: damaged(raw, 42, "<h", -4), "damaged header|damaged"),
    "no dimensions": (lambda raw: damaged(raw, 40, "<h", 0), "damaged"),
    "too many dimensions": (lambda raw: damaged(raw, 40, "<h", 99), "damaged"),
    "unknown type": (lambda raw: damaged(raw, 70, "<h", 9999), "damaged"),
    "complex numbers": (lambda raw: damaged(damaged(raw, 70, "<h", 32), 72, "<h", 64) + b"\0" * 999, "no real numbers"),
    "too large": (lambda raw: damaged(damaged(raw, 42, "<h", 32000), 44, "<h", 32000), "too large"),
    "a header of a pair": (lambda raw: raw[:344] + b"ni1\0" + raw[348:], "without its image file|damaged"),
    "packed and cut": (lambda raw: gzip.compress(raw)[:-30], "cut short|damaged"),
    "packed rubbish": (lambda raw: gzip.compress(b"\x07" * 1000), "no format"),
    "packed text": (lambda raw: gzip.compress(b"hello"), "text"),
    "values before the header's end": (lambda raw: damaged(raw, 108, "<f", 3.0), "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(tmp_path, name):
    change, said = BAD[name]
    raw = nifti(tmp_path / "a.nii", ramp(2, 3, 4).astype(np.int16)).read_bytes()
    bad = tmp_path / "bad"
    bad.write_bytes(change(raw))
    with warnings.catch_warnings(), pytest.raises(DataError, match=said) as failure:
        read(bad)
    assert failure.value.where == str(bad)


def test_nothing_but_no_numbers_and_a_place_that_cannot_be(tmp_path):
    with pytest.raises(DataError, match="no value that is a number"):
        read(nifti(tmp_path / "a.nii", np.full((2, 2, 2), np.nan, np.float32)))
    image = nibabel.Nifti1Image(ramp(2, 3, 4).astype(np.int16), np.eye(4))
    image.header["srow_x"] = image.header["srow_y"] = [1, 1, 1, 0]
    path = tmp_path / "b.nii"
    nibabel.save(image, path)
    raw = bytearray(path.read_bytes())
    raw[280:296] = np.array([0, 1, 0, 0], "<f4").tobytes()
    raw[296:312] = np.array([0, 1, 0, 0], "<f4").tobytes()
    path.write_bytes(raw)
    found = read(path)
    assert found.affine is None
    assert "cannot be" in found.facts.remarks[-1]


def test_a_mask_holds_whole_numbers(tmp_path):
    values = ramp(2, 3, 4).astype(np.float32)
    assert read_mask(nifti(tmp_path / "m.nii", values)).values.max() == 23
    with pytest.raises(DataError, match="no mask"):
        read_mask(nifti(tmp_path / "n.nii", values + 0.5))
