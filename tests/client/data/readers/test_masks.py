from __future__ import annotations

import warnings

import highdicom as hd
import numpy as np
import pytest
from highdicom.sr import CodedConcept
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from polyclinic.client.data.readers import dicom, masks
from polyclinic.client.data.readers.reading import read, read_mask
from polyclinic.core.errors import DataError
from tests.client.data.medical import changed, dataset, ramp, saved


@pytest.fixture
def series(tmp_path):
    """Four slices of 12 x 10, 2 mm apart, oblique: the second axis leads to the head."""
    made = []
    for i in range(4):
        slice_ = dataset(
            ramp(12, 10), ImagePositionPatient=[0.0, 5.0 - 2.0 * i, 50.0], ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
            FrameOfReferenceUID="1.2.3.4", StudyInstanceUID="1.2.3.5", StudyID="1", StudyTime="", AccessionNumber="",
            PatientBirthDate="", PatientSex="", ReferringPhysicianName="", InstanceNumber=i + 1, SeriesNumber=1,
        )  # fmt: skip
        saved(slice_, tmp_path / f"series/{i}")
        made.append(slice_)
    return made


def segmented(series, values: np.ndarray, kind: hd.seg.SegmentationTypeValues) -> Dataset:
    code = CodedConcept("85756007", "SCT", "Tissue")
    method = hd.AlgorithmIdentificationSequence("x", code, "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hd.seg.Segmentation(
            source_images=series, pixel_array=values, segmentation_type=kind,
            segment_descriptions=[
                hd.seg.SegmentDescription(i, f"region {i}", code, code, "AUTOMATIC", method) for i in (1, 2)
            ],
            series_instance_uid="1.9", series_number=2, sop_instance_uid="1.10", instance_number=1, manufacturer="x",
            manufacturer_model_name="y", software_versions="1", device_serial_number="1", max_fractional_value=200,
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_a_segmentation_lies_on_its_series(tmp_path, series, kind):
    truth = np.random.default_rng(0).integers(0, 3, (4, 12, 10)).astype(np.uint8)
    truth[1] = 0  # an empty plane in between has no frame
    made = segmented(series, truth, hd.seg.SegmentationTypeValues[kind])
    image = read(tmp_path / "series")
    found = masks.read_seg(dicom.opened(saved(made, tmp_path / "seg")), 1 << 20)
    assert found.names == ("region 1", "region 2")
    truth = truth[::-1]  # our series goes from the back to the front, the normal from the front to the back
    assert np.array_equal(found.numbers, truth)
    assert masks.matched(found.volume, image) == ""
    assert np.array_equal(read_mask(tmp_path / "seg").values[0], truth)


def contoured(*regions: list[list[tuple[float, float, float]]]) -> Dataset:
    made = dataset(ramp(2, 2), PixelData=None, SOPClassUID=masks.RTSTRUCT)
    names, contours = [], []
    for number, lines in enumerate(regions, 1):
        name, region = Dataset(), Dataset()
        name.ROINumber = region.ReferencedROINumber = number
        name.ROIName = f"region {number}"
        drawn = []
        for line in lines:
            contour = Dataset()
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.ContourData = [float(x) for point in line for x in point]
            drawn.append(contour)
        region.ContourSequence = Sequence(drawn)
        names.append(name)
        contours.append(region)
    made.StructureSetROISequence, made.ROIContourSequence = Sequence(names), Sequence(contours)
    return made


def circle(x: float, z: float, radius: float, y: float) -> list[tuple[float, float, float]]:
    around = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    return [(x + radius * np.cos(a), y, z + radius * np.sin(a)) for a in around]


def test_contours_are_drawn_where_they_lie_and_a_hole_is_a_hole(tmp_path, series):
    ring = [circle(1.1, 47.1, 0.9, 3.0), circle(1.1, 47.1, 0.4, 3.0)]
    saved(contoured(ring, [circle(1.1, 47.1, 0.5, 5.0)]), tmp_path / "rt")
    image = read(tmp_path / "series")
    found = masks.read_rtstruct(dicom.opened(tmp_path / "rt"), image)
    depth, height, width = np.indices(image.shape)
    place = np.einsum("ij,jdhw->idhw", image.affine, np.stack([width, height, depth, np.ones_like(depth)]))
    away = np.hypot(place[0] - 1.1, place[2] - 47.1)
    on = np.isclose(place[1], 3.0)
    assert np.array_equal(found.volume.values[0], (on & (away < 0.9) & (away > 0.4)).astype(np.uint8))
    assert np.array_equal(found.volume.values[1], (np.isclose(place[1], 5.0) & (away < 0.5)).astype(np.uint8))
    assert found.volume.values[0].sum() > 10
    assert np.array_equal(read_mask(tmp_path / "rt", tmp_path / "series").values[0], found.numbers)
    assert masks.matched(found.volume, image) == ""


def test_a_mask_that_lies_elsewhere_or_is_of_another_size_is_told(tmp_path, series):
    image = read(tmp_path / "series")
    for i in range(4):
        at = [40.0, 5.0 - 2.0 * i, 50.0]
        saved(changed(series[i], ImagePositionPatient=at), tmp_path / f"moved/{i}")
    assert "elsewhere" in masks.matched(read(tmp_path / "moved"), image)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "small.png")
    assert "1 x 9 x 9 pixels where its image has 4 x 12 x 10" in masks.matched(read_mask(tmp_path / "small.png"), image)


BAD_CONTOURS = {
    "none": ([], "no closed contours"),
    "two points": ([[(0, 3, 48), (1, 3, 48)]], "contour that is none"),
    "no numbers": ([[(float("nan"), 3, 48), (1, 3, 48), (1, 3, 49)]], "contour that is none|damaged"),
    "outside the series": ([circle(1, 47, 0.5, 90.0)], "outside the slices"),
    "not in a slice": ([[(0, 5, 48), (1, 1, 48), (1, -1, 49)]], "outside the slices"),
}


@pytest.mark.parametrize("name", BAD_CONTOURS)
def test_bad_contours(tmp_path, series, name):
    lines, said = BAD_CONTOURS[name]
    saved(contoured(lines), tmp_path / "rt")
    with pytest.raises(DataError, match=said):
        read_mask(tmp_path / "rt", tmp_path / "series")


def test_contours_need_a_series_that_knows_its_place(tmp_path, series):
    saved(contoured([circle(1, 47, 0.5, 3.0)]), tmp_path / "rt")
    saved(dataset(ramp(4, 6), ImagePositionPatient=None), tmp_path / "nowhere")
    for reference, said in (
        (None, "need the series"),
        (tmp_path / "nowhere", "does not say where it lies"),
        (tmp_path / "rt", "an RTSTRUCT"),
        (tmp_path / "none", "cannot be read|there is no"),
    ):
        with pytest.raises(DataError, match=said):
            read_mask(tmp_path / "rt", reference)
    with pytest.raises(DataError, match="an RTSTRUCT"):
        read(tmp_path / "rt")


BAD_SEG = {
    "no segments": ({"SegmentSequence": Sequence()}, "no segments"),
    "fewer descriptions": (lambda made: made.PerFrameFunctionalGroupsSequence.pop(), "frames that it describes"),
    "an unknown segment": (lambda made: made.SegmentSequence.pop(), "which it does not name"),
    "no place": (
        lambda made: delattr(made.SharedFunctionalGroupsSequence[0], "PlaneOrientationSequence"),
        "do not say where",
    ),
    "uneven": (lambda made: moved(made, 4.9), "uneven distances"),
    "no pixels": ({"PixelData": None}, "without a picture"),
    "fewer pixels": ({"PixelData": b"\0\0"}, "fewer pixels"),
    "no rows": ({"Rows": None}, "how many rows"),
    "in colour": ({"PhotometricInterpretation": "RGB"}, "1 channels"),
    "far apart": (lambda made: moved(made, 9e9), "uneven|too large|cannot be"),
}


def moved(made: Dataset, height: float) -> None:
    at = made.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    at.ImagePositionPatient = [0.0, height, 50.0]


@pytest.mark.parametrize("name", BAD_SEG)
def test_bad_segmentations(tmp_path, series, name):
    change, said = BAD_SEG[name]
    truth = np.random.default_rng(0).integers(0, 3, (4, 12, 10)).astype(np.uint8)
    made = segmented(series, truth, hd.seg.SegmentationTypeValues.BINARY)
    if isinstance(change, dict):
        changed(made, **change)
    else:
        change(made)
    saved(made, tmp_path / "seg")
    with pytest.raises(DataError, match=said):
        read(tmp_path / "seg")
