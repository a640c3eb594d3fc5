from __future__ import annotations

import hashlib
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic.client.data.manifest import read_manifest, scan, share, sites
from polyclinic.core.errors import DataError
from polyclinic.core.study import Columns, Data, Split

HEADER = "path,site,label,split,patient_id"


def errors(path, data, task):
    return [problem for problem in scan(path, data, task, 0)[1] if problem.severity == "error"]


def test_rows_hold_what_the_lines_say(manifest, task, tmp_path):
    path = manifest(HEADER, ["b/x.png,South,1,Validation,p2", "a.png, North ,0,TRAIN,p1", "", "c.png,North,2,test,p3"])
    north, third, south = read_manifest(path, Data(), task, 0)
    assert (north.path, north.name, north.site, north.target) == (tmp_path / "a.png", "a.png", "North", 0)
    assert (north.split, north.patient, north.line) == ("train", "p1", 3)
    assert (third.line, third.split, third.target) == (5, "test", 2)
    assert (south.name, south.split, south.label) == ("b/x.png", "val", "1")


def test_columns_have_the_names_that_the_study_gives(manifest, task):
    path = manifest("file,clinic,y,fold,pid", ["a.png,N,1,test,p"])
    columns = Columns(path="file", site="clinic", label="y", split="fold", patient="pid")
    (row,) = read_manifest(path, Data(columns=columns), task, 0)
    assert (row.site, row.target, row.split, row.patient) == ("N", 1, "test", "p")


def test_absolute_paths_and_detours_name_the_same_image(manifest, task, tmp_path, picture):
    path = manifest(HEADER, ["a.png,N,1,train,p"])
    text = path.read_text()
    for written in (f"{tmp_path}/a.png", "./a.png", "b/../a.png", ".//a.png"):
        path.write_text(text + f"{written},N,1,train,p\n")
        (problem,) = errors(path, Data(), task)
        assert problem.line == 3
        assert "the same image as on line 2" in problem.what
    picture("c.png")
    path.write_text(f"{HEADER}\n{tmp_path}/c.png,N,1,train,p\n")
    assert read_manifest(path, Data(), task, 0)[0].name == "c.png"


def test_all_problems_are_told_at_once_each_with_its_line(manifest, task):
    lines = [
        "a.png,N,1,train,p1",
        "b.png,-bad,7,trian,p2",
        "gone.jpg,N,1,train,p3",
        "c.png,N,1,,p4",
        "d.png,N,1,test,p1",
        "e.png,N,1,test",
        ",,1,test,p",
    ]
    with pytest.raises(DataError) as caught:
        read_manifest(manifest(HEADER, lines), Data(), task, 0)
    told = str(caught.value)
    for expected in (
        "line 3, site: '-bad' is no site name",
        "line 3, label: unknown label '7'",
        "line 3, split: 'trian' is no split",
        "line 4, gone.jpg: there is no such image",
        "line 5, split: no split, where other lines have one",
        "line 6, d.png: patient 'p1' of N is in test, but in train on line 2",
        "line 7: has 4 cells where the header has 5",
        "line 8, path: no path",
        "line 8, site: no site is named",
    ):
        assert expected in told
    assert told.startswith(caught.value.where)
    assert "9 problems" in told


def test_a_long_list_is_cut_with_its_length_told(manifest, task):
    path = manifest(HEADER, [f"{i}.jpg,N,1,train,{i}" for i in range(50)], pictures=False)
    with pytest.raises(DataError, match="50 problems") as caught:
        read_manifest(path, Data(), task, 0)
    assert str(caught.value).count("no such image") == 20
    assert str(caught.value).rstrip().endswith("and 30 more")


@pytest.mark.parametrize(
    ("content", "line", "told"),
    [
        (b"", None, ("is empty", "header")),
        (b"\n\n", None, ("is empty", "header")),
        (b"path,site,label\n", None, ("no images", "")),
        (b"a.png,N,1\nb.png,N,0\n", 1, ("no header", "path,site,label,split,patient_id")),
        (b"path;site;label\na.png;N;1\n", 1, ("semicolons", "commas")),
        (b"path,site,labels\na.png,N,1\n", 1, ("is missing", "did you mean labels")),
        (b"path,site,label,label\na.png,N,1,1\n", 1, ("stands twice", "keep one")),
        (b"path,site,label\na.png,N,1\nb.png,Z\xfcrich,1\n", 3, ("not UTF-8: byte 0xfc", "CSV UTF-8")),
        (b"\xff\xfep\0a\0", 1, ("not UTF-8", "CSV UTF-8")),
        (b"path,site,label\na.png,N\0,1\n", 2, ("NUL", "CSV UTF-8")),
        (b'path,site,label\na.png,N,1\nb.png,"N,1\n', 3, ("no CSV record", "quotes")),
    ],
)
def test_a_file_that_is_no_manifest(tmp_path, task, content, line, told):
    (tmp_path / "a.png").touch()
    path = tmp_path / "manifest.csv"
    path.write_bytes(content)
    (problem,) = errors(path, Data(), task)
    assert problem.line == line
    assert told[0] in problem.what
    assert told[1] in problem.remedy
    with pytest.raises(DataError, match=r"manifest\.csv"):
        read_manifest(path, Data(), task, 0)


def test_a_manifest_that_is_absent_or_a_folder(tmp_path, task):
    assert "no such file" in errors(tmp_path / "none.csv", Data(), task)[0].what
    assert "cannot be read" in errors(tmp_path, Data(), task)[0].what


def test_byte_order_mark_windows_lines_and_quotes_are_read(tmp_path, task, picture):
    picture("a,b.png")
    path = tmp_path / "manifest.csv"
    path.write_bytes(b'\xef\xbb\xbfpath,site,label,note\r\n"a,b.png",N,1,"two\r\nlines"\r\nx.png,N,1,\r\n')
    rows, problems = scan(path, Data(), task, 0)
    assert [row.name for row in rows] == ["a,b.png"]
    assert [problem.line for problem in problems if problem.severity == "error"] == [4]


def test_a_renamed_column_that_is_absent_is_no_silent_default(manifest, task):
    path = manifest("path,site,label,patient", ["a.png,N,1,p"])
    (problem,) = errors(path, Data(columns=Columns(patient="pateint")), task)
    assert problem.column_or_path == "pateint"
    assert "did you mean patient" in problem.remedy


def test_images_without_a_patient_are_patients_of_their_own_and_that_is_told(manifest, task):
    rows, problems = scan(manifest("path,site,label", ["a.png,N,1", "b.png,N,1"]), Data(), task, 0)
    assert [row.patient for row in rows] == ["a.png", "b.png"]
    assert [problem.severity for problem in problems] == ["warning"]
    rows, problems = scan(manifest(HEADER, ["a.png,N,1,train,p", "b.png,N,1,test,"]), Data(), task, 0)
    assert [row.patient for row in rows] == ["p", "b.png"]
    assert [(problem.severity, problem.line) for problem in problems] == [("warning", 3)]


def test_the_same_patient_id_at_two_sites_is_two_patients(manifest, task):
    path = manifest(HEADER, ["a.png,N,1,train,p", "b.png,S,1,test,p"])
    assert len(read_manifest(path, Data(), task, 0)) == 2


def test_order_of_lines_does_not_matter(manifest, task):
    lines = [f"{i}.png,{'NS'[i % 2]},1,,{i // 3}" for i in range(20)]
    first = read_manifest(manifest(HEADER, lines), Data(), task, 5)
    random.Random(0).shuffle(lines)
    second = read_manifest(manifest(HEADER, lines), Data(), task, 5)
    assert [replace(row, line=0) for row in first] == [replace(row, line=0) for row in second]
    assert list(sites(first)) == ["N", "S"]
    assert sites(first)["N"] == tuple(row for row in first if row.site == "N")
    assert sites(first) == sites(first[::-1])


def test_split_by_hash_is_the_documented_hash(manifest, task):
    path = manifest("path,site,label,patient_id", [f"{i}.png,N,1,p{i // 2}" for i in range(60)])
    for row in read_manifest(path, Data(split=Split(train=0.5, val=0.25)), task, 11):
        place = int(hashlib.sha256(f"11/{row.patient}".encode()).hexdigest()[:16], 16) / 16**16
        assert row.split == ("train" if place < 0.5 else "val" if place < 0.75 else "test")


patients = st.lists(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=6), min_size=1)


@settings(max_examples=25, deadline=None)
@given(patients=patients, seed=st.integers(0, 2**32 - 1), order=st.randoms(use_true_random=False), data=st.data())
def test_splits_are_by_patient_and_depend_on_nothing_else(patients, seed, order, data):
    class Any:
        needs = "label"

        def target(self, label):
            return 0

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [f"{i}.png,N,x,{patient}" for i, patient in enumerate(patients)]
        for i in range(len(lines)):
            (folder / f"{i}.png").touch()

        def splits(held):
            (folder / "m.csv").write_text("\n".join(["path,site,label,patient_id", *held]))
            return {row.name: (row.patient, row.split) for row in read_manifest(folder / "m.csv", Data(), Any(), seed)}

        all_of_them = splits(lines)
        shuffled = order.sample(lines, len(lines))
        assert splits(shuffled) == all_of_them
        part = data.draw(st.lists(st.sampled_from(lines), min_size=1, unique=True))
        assert splits(part).items() <= all_of_them.items()
        assert len({patient for patient, _ in all_of_them.values()}) == len(set(all_of_them.values()))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), asked=st.floats(0.05, 0.95))
def test_the_share_is_close_to_what_was_asked(seed, asked):
    places = [share(seed, f"patient-{i}") for i in range(4000)]
    assert all(0.0 <= place < 1.0 for place in places)
    got = sum(place < asked for place in places) / len(places)
    assert abs(got - asked) < 5 * (asked * (1 - asked) / len(places)) ** 0.5


def test_a_site_s_own_manifest_needs_no_column_of_sites_and_holds_no_other_site(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "own.csv").write_text("path,label\na.png,no\n")
    (tmp_path / "two.csv").write_text("path,site,label\na.png,south,no\n")

    class Task:
        needs = "label"

        def target(self, label: str) -> int:
            return int(label == "yes")

    (row,) = read_manifest(tmp_path / "own.csv", Data(), Task(), 0, only="north")
    assert (row.site, row.name) == ("north", "a.png")
    with pytest.raises(DataError, match="'south' is another site than north"):
        read_manifest(tmp_path / "two.csv", Data(), Task(), 0, only="north")
    with pytest.raises(DataError, match="this column is missing"):
        read_manifest(tmp_path / "own.csv", Data(), Task(), 0)
