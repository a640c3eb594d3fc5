from __future__ import annotations

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from polyclinic.client.data.readers.reading import read
from polyclinic.client.data.volume import canonical
from polyclinic.core.errors import DataError
from tests.client.data.medical import CANARY, changed, dataset, ramp, saved


def reading(tmp_path, made: Dataset):
    return read(saved(made, tmp_path / "picture"))  # no extension: content decides


def test_a_slice_keeps_its_values_and_lies_where_it_says(tmp_path):
    found = reading(tmp_path, dataset(ramp(4, 6), RescaleSlope="2", RescaleIntercept="-1000"))
    assert np.array_equal(found.values[0, 0], ramp(4, 6) * 2 - 1000)
    assert found.spacing == (2.0, 0.5, 0.25)
    assert found.axes == "SPL"
    assert np.allclose(found.affine @ [2, 3, 0, 1], [-10 + 2 * 0.25, -20 + 3 * 0.5, 30, 1])
    assert found.facts.acquisition == {
        "modality": "CT", "maker": "Siemens", "model": "Skyra", "slice thickness": "2.0 mm", "pixel spacing": "0.50 mm",
    }  # fmt: skip
    assert CANARY not in repr(found.facts)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_compressed_pictures_have_the_values_that_were_compressed(tmp_path, syntax, dtype):
    values = np.random.default_rng(1).integers(0, 200, (64, 70)).astype(dtype)
    if dtype is np.int16:
        if syntax is JPEGLSLossless:
            pytest.skip("JPEG-LS knows no sign")
        values -= 100
    made = dataset(values)
    made.compress(syntax)
    assert np.array_equal(reading(tmp_path, made).values[0, 0], values)


def test_a_fraction_stays_one_and_whole_numbers_stay_whole(tmp_path):
    assert np.allclose(reading(tmp_path, dataset(ramp(4, 6), RescaleSlope="0.5")).values[0, 0], ramp(4, 6) * 0.5)
    assert reading(tmp_path, dataset(ramp(4, 6))).values.dtype == np.int16
    deep = np.full((4, 6), 65535, np.uint16)
    assert np.array_equal(reading(tmp_path, dataset(deep)).values[0, 0], deep)


def test_monochrome1_is_mirrored_with_its_window_and_its_padding_is_dark(tmp_path):
    values = ramp(4, 6, dtype=np.uint16) + 100
    values[0, 0] = 4000
    made = dataset(values, PhotometricInterpretation="MONOCHROME1", WindowCenter="110.5", WindowWidth="11")
    made.add_new(0x00280120, "US", 4000)
    found = reading(tmp_path, made)
    seen = found.values[0, 0]
    assert seen[0, 1] == seen.max()
    assert seen[0, 0] == seen.min() == seen[3, 5]
    low, high = found.facts.window
    assert high - low == 10.0
    # the standard shows 105 to 115 of the stored values; 4000 + 101 - x mirrors them
    assert (low, high) == (4000 + 101 - 115, 4000 + 101 - 105)


def test_the_window_is_the_standards(tmp_path):
    both = {"WindowCenter": ["40", "500"], "WindowWidth": ["400", "2000"]}
    assert reading(tmp_path, dataset(ramp(4, 6), **both)).facts.window == (-160.0, 239.0)
    exact = reading(tmp_path, dataset(ramp(4, 6), **both, VOILUTFunction="LINEAR_EXACT"))
    assert exact.facts.window == (-160.0, 240.0)
    assert reading(tmp_path, dataset(ramp(4, 6))).facts.window is None
    assert reading(tmp_path, dataset(ramp(4, 6, dtype=np.uint8))).facts.window == (0.0, 255.0)


def test_colour_palette_and_ybr_become_rgb(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    assert np.array_equal(reading(tmp_path, dataset(rgb)).values[:, 0].transpose(1, 2, 0), rgb)
    grey = np.repeat(rgb[..., :1], 3, axis=2)
    ybr = grey.copy()
    ybr[..., 1:] = 128
    found = reading(tmp_path, dataset(ybr, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(found.values[:, 0].transpose(1, 2, 0).astype(int) - grey).max() <= 1
    made = dataset(ramp(2, 2, dtype=np.uint8), PhotometricInterpretation="PALETTE COLOR")
    for name, table in (("Red", [0, 255, 0, 9]), ("Green", [0, 0, 255, 8]), ("Blue", [7, 6, 5, 4])):
        made.__setattr__(f"{name}PaletteColorLookupTableDescriptor", [4, 0, 8])
        made.__setattr__(f"{name}PaletteColorLookupTableData", bytes(table))
    seen = reading(tmp_path, made).values[:, 0].reshape(3, 4).T
    assert seen.tolist() == [[0, 0, 7], [255, 0, 6], [0, 255, 5], [9, 8, 4]]


def test_a_series_is_sorted_along_its_normal_whatever_the_names(tmp_path):
    body = np.random.default_rng(0).integers(0, 999, (5, 4, 6)).astype(np.int16)
    for i, order in enumerate([3, 0, 4, 1, 2]):
        place = [-10.0, -20.0, 30.0 + 3.0 * order]
        saved(dataset(body[order], ImagePositionPatient=place, InstanceNumber=i + 1), tmp_path / f"s/{i}.dcm")
    (tmp_path / "s/notes.txt").write_text("no slice")
    found = read(tmp_path / "s")
    assert np.array_equal(found.values[0], body)
    assert found.spacing == (3.0, 0.5, 0.25)
    assert np.allclose(found.affine @ [0, 0, 4, 1], [-10, -20, 42, 1])


def test_an_oblique_series_knows_where_it_lies_and_is_turned_upright(tmp_path):
    body = ramp(3, 4, 6)
    for i in range(3):  # coronal, from the back to the front
        made = dataset(
            body[i], ImageOrientationPatient=[1, 0, 0, 0, 0, -1], ImagePositionPatient=[0.0, 9.0 - 3 * i, 50.0]
        )
        saved(made, tmp_path / f"s/{i}")
    found = read(tmp_path / "s")
    assert found.axes == "PIL"
    upright = canonical(found)
    assert upright.axes == "SPL"
    assert upright.spacing == (0.5, 3.0, 0.25)
    for w, h, d in ((0, 0, 0), (5, 3, 2), (1, 2, 0)):  # the same place in the patient has the same value
        here = found.affine @ [w, h, d, 1]
        there = np.rint(np.linalg.solve(upright.affine, here)).astype(int)
        assert found.values[0, d, h, w] == upright.values[0, there[2], there[1], there[0]]


def enhanced(body: np.ndarray, heights: list[float]) -> Dataset:
    made = dataset(body, ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None)
    shared = Dataset()
    measures, direction = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.25], 2.0
    direction.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [direction]
    made.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for height in heights:
        group, at = Dataset(), Dataset()
        at.ImagePositionPatient = [0.0, 0.0, height]
        group.PlanePositionSequence = [at]
        groups.append(group)
    made.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return made


def test_frames_are_sorted_by_place_and_a_film_stays_in_order(tmp_path):
    body = ramp(3, 4, 6)
    found = reading(tmp_path, enhanced(body, [4.0, 0.0, 2.0]))
    assert np.array_equal(found.values[0], body[[1, 2, 0]])
    assert found.spacing == (2.0, 0.5, 0.25)
    film = reading(tmp_path, dataset(body, ImagePositionPatient=None))
    assert np.array_equal(film.values[0], body)
    assert film.affine is None
    assert film.spacing[1:] == (0.5, 0.25)


def test_frames_at_one_place_are_told_and_not_called_a_volume(tmp_path):
    found = reading(tmp_path, enhanced(ramp(3, 4, 6), [0.0, 0.0, 2.0]))
    assert found.affine is None
    assert any("at the place of another" in remark for remark in found.facts.remarks)


def test_sides_that_contradict_each_other_are_told(tmp_path):
    found = reading(tmp_path, dataset(ramp(4, 6), ImageLaterality="L", Laterality="R", ViewPosition="MLO"))
    assert found.facts.laterality == "L"
    assert found.facts.view == "MLO"
    assert any("contradict" in remark for remark in found.facts.remarks)


BAD = {
    "no pixels": ({"PixelData": None}, "without a picture"),
    "no rows": ({"Rows": None}, "how many rows"),
    "no columns": ({"Columns": 0}, "how many columns"),
    "more rows than pixels": ({"Rows": 40}, "fewer pixels than it promises"),
    "frames in words": ({"NumberOfFrames": "-2"}, "how many frames"),
    "a colour space of its own": ({"PhotometricInterpretation": "CMYK"}, "colour space"),
    "grey in three channels": ({"SamplesPerPixel": 3}, "3 channels"),
    "no bits": ({"BitsAllocated": None}, "how its values are stored"),
    "a slope of 0": ({"RescaleSlope": "0"}, "slope or intercept"),
    "too large": ({"Rows": 65535, "Columns": 65535}, "too large"),
    "skew directions": ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "not at right angles"),
    "directions without length": ({"ImageOrientationPatient": [0, 0, 0, 0, 1, 0]}, "not at right angles"),
    "no width of pixels": ({"PixelSpacing": [0, 1]}, "cannot be"),
    "a report": ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11"}, "a report"),
    "a list": ({"SOPClassUID": "1.2.840.10008.1.3.10"}, "a DICOMDIR"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(tmp_path, name):
    fields, said = BAD[name]
    with pytest.raises(DataError, match=said) as failure:
        reading(tmp_path, dataset(ramp(4, 6), **fields))
    assert failure.value.where == str(tmp_path / "picture")
    assert failure.value.remedy
    assert CANARY not in str(failure.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw[:-20], "fewer pixels|cut short"),
        (lambda raw: raw[:200], "without any content|within its header"),
        (lambda raw: raw[:140], "without any content|within its header|damaged"),
        (lambda raw: b"", "is empty"),
        (lambda raw: b"name,age\n", "is text"),
        (lambda raw: b"\x01" * 500, "no format that is read"),
        (lambda raw: b"PK\x03\x04" + raw, "ZIP"),
    ],
)
def test_bad_bytes(tmp_path, change, said):
    raw = saved(dataset(ramp(4, 6)), tmp_path / "good").read_bytes()
    (tmp_path / "bad").write_bytes(change(raw))
    with pytest.raises(DataError, match=said):
        read(tmp_path / "bad")


def test_a_damaged_compressed_picture_and_an_unknown_syntax(tmp_path):
    made = dataset(np.random.default_rng(0).integers(0, 99, (64, 64)).astype(np.uint16))
    made.compress(JPEG2000Lossless)
    made.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + b"\0" * 40])
    with pytest.raises(DataError, match="damaged or cut short"):
        reading(tmp_path, made)
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # a film
    with pytest.raises(DataError, match="packed in a way that is not read"):
        reading(tmp_path, made)


SERIES = {
    "a slice missing": ([0, 1, 3, 4], {}, "1 slice missing"),
    "a slice twice": ([0, 1, 1, 2], {}, "at the place of another"),
    "uneven": ([0, 1, 1.6, 3], {}, "uneven distances"),
    "another direction": ([0, 1, 2], {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "different directions"),
    "another spacing": ([0, 1, 2], {"PixelSpacing": [1, 1]}, "differ in spacing"),
    "another series": ([0, 1, 2], {"SeriesInstanceUID": "9.9"}, "2 series"),
    "no place": ([0, 1, 2], {"ImagePositionPatient": None}, "do not say where they lie"),
    "a damaged slice": ([0, 1, 2], {"PixelData": b"\0\0"}, "0 is cut short"),
    "a report": ([0, 1, 2], {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11"}, "0 holds a report"),
}


@pytest.mark.parametrize("name", SERIES)
def test_bad_series(tmp_path, name):
    heights, fields, said = SERIES[name]
    for i, height in enumerate(heights):
        made = dataset(ramp(4, 6), ImagePositionPatient=[0.0, 0.0, 2.0 * height])
        saved(changed(made, **fields) if i == 0 else made, tmp_path / f"s/{i}")
    with pytest.raises(DataError, match=said):
        read(tmp_path / "s")


def test_slices_of_two_sizes_and_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="without DICOM slices"):
        read(tmp_path / "empty")
    saved(dataset(ramp(4, 6)), tmp_path / "s/0")
    saved(dataset(ramp(6, 4), ImagePositionPatient=[0.0, 0.0, 9.0]), tmp_path / "s/1")
    with pytest.raises(DataError, match="2 sizes"):
        read(tmp_path / "s")


def medium(folder, *names: str) -> None:
    made = dataset(ramp(2, 2), PixelData=None, SOPClassUID="1.2.840.10008.1.3.10")
    records = []
    for name in names:
        record = Dataset()
        changed(record, DirectoryRecordType="IMAGE", ReferencedFileID=name.split("/"))
        records.append(record)
    made.DirectoryRecordSequence = Sequence(records)
    saved(made, folder / "DICOMDIR")


def test_a_dicomdir_leads_to_its_slices_and_never_outside(tmp_path):
    for i in range(3):
        saved(dataset(ramp(4, 6) + i, ImagePositionPatient=[0.0, 0.0, 2.0 * i]), tmp_path / f"cd/A/{i}")
    medium(tmp_path / "cd", "A/2", "A/0", "A/1")
    assert read(tmp_path / "cd").values[0, :, 0, 0].tolist() == [0, 1, 2]
    saved(dataset(ramp(4, 6)), tmp_path / "secret")
    medium(tmp_path / "cd", "A/0", "../secret")
    with pytest.raises(DataError, match="outside its folder"):
        read(tmp_path / "cd")
    medium(tmp_path / "cd", "A/9")
    with pytest.raises(DataError, match="none of whose files"):
        read(tmp_path / "cd")
