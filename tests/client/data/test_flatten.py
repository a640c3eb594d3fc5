from __future__ import annotations

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.flatten import flattened
from polyclinic.client.data.images import read_image
from polyclinic.client.data.manifest import Row
from polyclinic.client.data.readers.reading import read
from polyclinic.core.errors import DataError
from polyclinic.core.study import Data, Range
from polyclinic.models.tasks.classification import Classification
from tests.client.data.medical import dataset, ramp, saved

DATA = Data(image_size=16, volume="middle")


def test_the_window_of_the_file_percentiles_or_a_range_make_the_picture(tmp_path):
    values = ramp(16, 16)
    plain = read(saved(dataset(values), tmp_path / "plain"))
    windowed = read(saved(dataset(values, WindowCenter="100.5", WindowWidth="51"), tmp_path / "windowed"))
    fixed = np.rint(np.clip((values - 75.0) / 50.0, 0, 1) * 255)
    assert np.array_equal(flattened(windowed, DATA)[0], fixed)
    assert np.array_equal(flattened(plain, DATA.model_copy(update={"intensity": Range(low=75, high=125)}))[0], fixed)
    low, high = np.percentile(values, (0.5, 99.5))
    stretched = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)
    assert np.array_equal(flattened(plain, DATA)[0], stretched)
    assert np.array_equal(flattened(windowed, DATA.model_copy(update={"intensity": "percentiles"}))[0], stretched)


def test_eight_bits_stay_as_they_are_in_dicom_and_png_alike(tmp_path):
    values = np.random.default_rng(0).integers(20, 90, (16, 16, 3), dtype=np.uint8)
    for body in (values, values[..., 0]):
        Image.fromarray(body).save(tmp_path / "a.png")
        expected = read_image(tmp_path / "a.png", DATA, None)
        assert np.array_equal(flattened(read(tmp_path / "a.png"), DATA), expected)
        assert np.array_equal(flattened(read(saved(dataset(body), tmp_path / "a")), DATA), expected)
    Image.fromarray(ramp(20, 30, dtype=np.uint16) * 40).save(tmp_path / "deep.png")
    deep = read_image(tmp_path / "deep.png", DATA, None)
    assert np.array_equal(flattened(read(tmp_path / "deep.png"), DATA), deep)


def test_several_slices_are_refused_unless_the_study_takes_the_middle_one(tmp_path):
    body = np.random.default_rng(0).integers(0, 999, (5, 16, 16)).astype(np.int16)
    volume = read(saved(dataset(body, ImagePositionPatient=None), tmp_path / "a"))
    with pytest.raises(DataError, match="5 slices or frames"):
        flattened(volume, DATA.model_copy(update={"volume": "refuse"}))
    one = read(saved(dataset(body[2]), tmp_path / "b"))
    assert np.array_equal(flattened(volume, DATA), flattened(one, DATA))


@pytest.mark.parametrize("cosines", [(1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)])
def test_a_volume_looks_the_same_in_dicom_and_nifti(tmp_path, cosines):
    """Axial, coronal, sagittal as a scanner writes them; NIfTI holds the same with axes turned round."""
    body = np.random.default_rng(0).integers(0, 999, (5, 16, 16)).astype(np.int16)
    normal = np.cross(cosines[:3], cosines[3:])
    for i in range(5):
        place = {"ImagePositionPatient": list(map(float, 2.0 * i * normal)), "ImageOrientationPatient": list(cosines)}
        saved(dataset(body[i], PixelSpacing=[1, 1], **place), tmp_path / f"s/{i}")
    volume = read(tmp_path / "s")
    affine = np.diag([-1, -1, 1, 1]) @ volume.affine
    image = nibabel.Nifti1Image(volume.values[0].transpose(2, 1, 0), affine)
    for order in ([[0, 1], [1, 1], [2, 1]], [[0, -1], [1, -1], [2, 1]], [[1, 1], [0, -1], [2, -1]]):
        nibabel.save(image.as_reoriented(np.array(order)), tmp_path / "a.nii")
        assert np.array_equal(flattened(read(tmp_path / "a.nii"), DATA), flattened(volume, DATA))
    assert np.array_equal(flattened(volume, DATA), flattened(read(tmp_path / "s/2"), DATA))


def test_a_site_trains_on_dicom_nifti_and_png_together(tmp_path, picture):
    values = np.random.default_rng(0).integers(0, 4000, (16, 16)).astype(np.int16)
    saved(dataset(values), tmp_path / "a.dcm")
    nibabel.save(nibabel.Nifti1Image(values.T[..., np.newaxis], np.diag([-1, -1, 1, 1])), tmp_path / "b.nii.gz")
    picture("c.png")
    rows = [
        Row(tmp_path / name, "N", "0", 0, "train", name, i) for i, name in enumerate(("a.dcm", "b.nii.gz", "c.png"))
    ]
    pixels = SiteData("N", tuple(rows), Data(image_size=16), Classification()).images("train").pixels
    assert pixels.shape == (3, 1, 16, 16)
    assert np.array_equal(pixels[0], pixels[1])
    assert np.array_equal(pixels[2], read_image(tmp_path / "c.png", Data(image_size=16), None))


def test_a_range_must_lead_upwards():
    with pytest.raises(ValidationError, match="low must be below high"):
        Range(low=3, high=3)
