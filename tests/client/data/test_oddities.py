from __future__ import annotations

import csv
import json
import re
from collections import defaultdict

import nibabel
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from polyclinic.cli.data import app
from polyclinic.client.data.check import check, check_folder
from polyclinic.client.data.page import page
from polyclinic.client.data.readers.acquisition import acquisition, maker, model, number
from polyclinic.core.study import About, Data, Training
from tests.client.data.medical import CANARY, changed, dataset, ramp, saved

HEADER = "path,site,label,split,patient_id,mask"


class Setting:
    """What the check needs of a study."""

    def __init__(self, task, **data):
        self.task, self.data = task, Data(image_size=16, **data)
        self.study, self.training = About(name="x"), Training(batch_size=4)


def shapes(seed: int, size: int = 48) -> np.ndarray:
    """A dark picture with some blobs: uint8 [size, size]."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((size, size))
    blobs = [rng.uniform(60, 160) * np.exp(-((x - a) ** 2 + (y - b) ** 2) / rng.uniform(20, 200))
             for a, b in rng.uniform(0, size, (5, 2))]  # fmt: skip
    return np.clip(10 + sum(blobs), 0, 250).astype(np.uint8)


@pytest.fixture
def site(tmp_path, task, manifest):
    """Checks 30 pictures of one site, ``change`` of which are made by hand; tells what was found, by picture."""

    def checked(change: dict, **data):
        for i in range(30):
            made = change.get(i, shapes(i))
            if isinstance(made, np.ndarray):
                Image.fromarray(made).save(tmp_path / f"{i}.png")
            else:
                saved(made, tmp_path / f"{i}.png")  # the name says nothing
        lines = [f"{i}.png,N,{i % 3},{'train' if i < 16 else 'val' if i < 26 else 'test'},p{i}," for i in range(30)]
        report = check(manifest(HEADER, lines, pictures=False), Setting(task, **data), one_site=True)
        told = defaultdict(str)
        for problem in report.problems:
            told[problem.column_or_path] += problem.what
        return told, report

    return checked


def test_a_sound_set_has_nothing_odd(site):
    assert site({})[1].problems == ()


def test_pictures_that_look_the_same_are_found_though_no_byte_is(site):
    brighter = np.clip(shapes(3).astype(int) + 8, 0, 255).astype(np.uint8)
    larger = np.asarray(Image.fromarray(shapes(4)).resize((96, 96), Image.Resampling.BILINEAR))
    told, _ = site({25: brighter, 26: larger})
    assert set(told) == {"25.png", "26.png"}
    assert told["25.png"] == "looks the same as the image on line 5 (N, train, label 0)"
    assert told["26.png"] == "looks the same as the image on line 6 (N, train, label 1)"


def test_inverted_saturated_and_foreign_brightness_are_told_apart(site):
    noise = np.random.default_rng(1).integers(120, 220, (48, 48)).astype(np.uint8)
    told, _ = site({5: 255 - shapes(5), 7: np.where(shapes(7) > 40, 255, shapes(7)).astype(np.uint8), 9: noise})
    assert "looks inverted" in told["5.png"]
    assert "is saturated" in told["7.png"]
    assert "much brighter or darker" in told["9.png"]
    assert set(told) == {"5.png", "7.png", "9.png"}


def test_spacing_sides_and_mammograms(site):
    def xray(i, **fields):
        return dataset(shapes(i).astype(np.int16), SOPClassUID="1.2.840.10008.5.1.4.1.1.1", Modality="MG",
                       ImagePositionPatient=None, **fields)  # fmt: skip

    change = {i: xray(i, ImageLaterality="L", PatientOrientation=["A", "F"], ViewPosition="CC") for i in range(30)}
    change[3] = xray(3, ImageLaterality="L", PatientOrientation=["A", "F"], ViewPosition="CC", PixelSpacing=[5, 5])
    change[4] = xray(4, ImageLaterality="L", PatientOrientation=["P", "F"], ViewPosition="CC")
    change[5] = xray(5, ViewPosition="CC")
    change[6] = xray(6, ImageLaterality="X", ViewPosition="CC", PatientOrientation=["Q", "F"])
    change[8] = xray(8, ImageLaterality="L", Laterality="R", ViewPosition="CC")
    _, report = site(change)
    told = [(problem.column_or_path, problem.what) for problem in report.problems]
    for place, what in (
        ("3.png", "pixels of 5 mm, where 0.5 mm is usual"),
        ("4.png", "is turned round"),
        ("5.png", "does not say of which side"),
        ("6.png", "names a side that is none"),
        ("6.png", "names directions that are none"),
        ("8.png", "contradict each other"),
        ("N MG", "1 of 30 images do not name their side"),
    ):
        assert sum(place == at and what in text for at, text in told) == 1
    assert len(told) == 7
    counted = {(one.field, one.value): one.images for one in report.acquisition}
    assert counted["modality", "MG"] == 30
    assert counted["maker", "Siemens"] == 30
    assert counted["kVp", "not said"] == 30


def test_masks_slices_and_absent_classes(tmp_path, task, manifest):
    for i in range(6):
        Image.fromarray(shapes(i)).save(tmp_path / f"{i}.png")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "small.png")
    Image.fromarray((shapes(0) > 50).astype(np.uint8)).save(tmp_path / "good.png")
    nibabel.save(nibabel.Nifti1Image(ramp(6, 5, 4).astype(np.int16), np.eye(4)), tmp_path / "v.nii.gz")
    lines = ["0.png,N,0,train,a,good.png", "1.png,N,1,train,b,small.png", "2.png,N,1,train,c,gone.png",
             "3.png,S,0,train,d,4.png", "v.nii.gz,S,0,train,e,"]  # fmt: skip
    path = manifest(HEADER, lines, pictures=False)
    told = [(problem.column_or_path, problem.what) for problem in check(path, Setting(task)).problems]
    for place, what in (
        ("1.png", "a mask that does not fit: it has 1 x 9 x 9 pixels where its image has 1 x 48 x 48"),
        ("gone.png", "there is no such mask"),
        ("v.nii.gz", "holds 4 slices or frames"),
        ("", "no site has an image of 2 to train on"),
    ):
        assert sum(place == at and what in text for at, text in told) == 1
    assert not any(at == "0.png" for at, _ in told)
    assert not any("slices" in problem.what for problem in check(path, Setting(task, volume="middle")).problems)


def test_a_folder_of_slices_is_a_row_if_the_study_takes_the_middle(tmp_path, task, manifest):
    for i in range(3):
        saved(dataset(ramp(16, 16), ImagePositionPatient=[0.0, 0.0, 2.0 * i]), tmp_path / f"ct/{i}")
    path = manifest(HEADER, ["ct,N,0,train,a,"], pictures=False)
    assert any("this is a folder" in problem.what for problem in check(path, Setting(task)).problems)
    report = check(path, Setting(task, volume="middle"))
    assert report.formats == (("DICOM", 1),)
    assert not any(problem.column_or_path == "ct" for problem in report.problems)


def hostile():
    """A data set with a canary wherever a name, date, number or text may stand, in fields that are counted, too."""
    made = dataset(ramp(16, 16), Manufacturer=f"{CANARY} Hospital", ManufacturerModelName=f"{CANARY}^John 19700101")
    texts = ("PatientName", "PatientID", "OtherPatientNames", "PatientAddress", "PatientComments", "InstitutionName",
             "ReferringPhysicianName", "OperatorsName", "StudyDescription", "SeriesDescription", "ImageComments",
             "ProtocolName", "StationName", "DeviceSerialNumber", "AccessionNumber", "StudyID",
             "RequestedProcedureDescription",
             "BodyPartExamined", "SoftwareVersions", "Modality", "ViewPosition", "ImageLaterality",
             "PatientOrientation", "Laterality", "PerformingPhysicianName", "DerivationDescription")  # fmt: skip
    changed(made, **{name: f"{CANARY}{i}" for i, name in enumerate(texts)})
    changed(made, KVP="777777", SliceThickness="19700101", StudyDate="19700101", PatientBirthDate="19010101")
    made.add_new(0x00091010, "LO", f"{CANARY} private")
    return made


def test_no_name_date_number_or_text_gets_anywhere(tmp_path):
    whole = hostile()
    saved(whole, tmp_path / "whole.dcm")
    raw = (tmp_path / "whole.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(raw[:-100])
    bad = hostile()
    bad.Rows = 9999
    saved(bad, tmp_path / "rows.dcm")
    made = hostile()
    made.PhotometricInterpretation = f"{CANARY}COLOUR"
    saved(made, tmp_path / "colour.dcm")
    report = check_folder(tmp_path)
    assert dict(report.formats) == {"DICOM": 1}
    assert len(report.quarantine) == 3
    for text in (report.json(), page(report), report.quarantine_list(), repr(report)):
        assert CANARY not in text.replace(str(tmp_path), "")
        assert not re.search(r"1970|1901|777777", text.replace(str(tmp_path), ""))
    fields = {one.field: one.value for one in report.acquisition}
    assert fields["maker"] == fields["model"] == fields["kVp"] == fields["slice thickness"] == "other"


def test_the_narrow_forms_of_what_is_counted():
    assert [maker(x) for x in ("SIEMENS", "G.E. Medical Systems", "TOSHIBA_MEC", "John Doe", "", None)] == [
        "Siemens", "GE", "Canon", "other", "", "",
    ]  # fmt: skip
    assert [model(x) for x in ("Achieva dStream", "Doe^John", "19700101", "MRT50H1", "A" * 40, "X 12345678")] == [
        "Achieva dStream", "other", "other", "MRT50H1", "other", "other",
    ]  # fmt: skip
    assert [number(x, 400.0, 0) for x in ("120.2", "nan", "1e99", "-3", "words", "", None)] == [
        "120", "other", "other", "other", "other", "", "",
    ]  # fmt: skip
    assert acquisition(dataset(ramp(2, 2), KVP="120", MagneticFieldStrength="1.494"))["field strength"] == "1.5 T"


def test_the_commands_table_page_and_lists(tmp_path):
    folder = tmp_path / "<b>all</b>"
    for i, height in enumerate((0, 1, 3)):
        body = np.random.default_rng(i).integers(0, 999, (16, 16)).astype(np.int16)
        saved(dataset(body, ImagePositionPatient=[0.0, 0.0, float(height)]), folder / f"{i}.dcm")
    (folder / "note.txt").write_text("hello")
    (folder / "twin.dcm").write_bytes((folder / "0.dcm").read_bytes())
    lists = ["--html", str(tmp_path / "p.html"), "--quarantine", str(tmp_path / "q.csv")]
    ran = CliRunner().invoke(app, ["check", str(folder), *lists])
    assert ran.exit_code == 0, ran.output
    assert "4 DICOM read, 1 files quarantined" in ran.output
    assert "is byte for byte 0.dcm" in ran.output
    assert "of a series that has" in ran.output
    html = (tmp_path / "p.html").read_text()
    assert "<b>all" not in html
    assert "is text, no picture" in html
    assert not re.search(r"<script|src=|href=|https?:", html)
    (row,) = csv.DictReader((tmp_path / "q.csv").read_text().splitlines())
    assert row == {"path": "note.txt", "reason": "is text, no picture", "remedy": "leave it out"}
    told = json.loads(CliRunner().invoke(app, ["check", str(folder), "--json"]).output)
    assert told["formats"] == [["DICOM", 4]]
    assert told["quarantine"][0]["path"] == "note.txt"
