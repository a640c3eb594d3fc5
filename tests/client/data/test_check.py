from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from polyclinic.cli.data import app
from polyclinic.client.data.check import check
from polyclinic.client.data.federation import federation_problems
from polyclinic.client.data.manifest import Row
from polyclinic.core.errors import StudyError
from polyclinic.core.study import About, Data, Training

HEADER = "path,site,label,split,patient_id"


@pytest.fixture
def study(task):
    task.classes = ("0", "1")  # that no image is of class 2 is tested on its own
    return SimpleNamespace(data=Data(image_size=16), task=task, study=About(name="x"), training=Training(batch_size=4))


def lines(site: str, train: int = 12, val: int = 12, test: int = 4) -> list[str]:
    splits = ["train"] * train + ["val"] * val + ["test"] * test
    return [f"{site}/{i}.png,{site},{i % 2},{split},p{i}" for i, split in enumerate(splits)]


def rows(site: str, train: int = 12, val: int = 12, test: int = 4) -> list[Row]:
    cells = [line.split(",") for line in lines(site, train, val, test)]
    return [Row(path, site, y, int(y), split, p, 1, path) for path, site, y, split, p in cells]


def test_a_good_set_has_no_problems_and_its_counts_are_right(manifest, study):
    report = check(manifest(HEADER, lines("N") + lines("S", train=13)), study)
    assert report.ok
    assert report.problems == ()
    held = {(count.site, count.split): count for count in report.counts}
    assert len(held) == 6
    assert (held["S", "train"].images, held["S", "train"].patients) == (13, 13)
    assert held["S", "train"].classes == (("0", 7), ("1", 6))


def test_everything_is_found_at_once(manifest, study, tmp_path):
    path = manifest(HEADER, [*lines("N"), *lines("S"), "bad.jpg,S,9,train,q"])
    (tmp_path / "N/0.png").write_bytes((tmp_path / "N/1.png").read_bytes()[:80])
    (tmp_path / "N/2.png").unlink()
    (tmp_path / "N/3.png").write_bytes(b"")
    Image.new("RGB", (20, 30), (200, 0, 0)).save(tmp_path / "S/0.png")
    Image.fromarray(np.indices((16, 20)).sum(axis=0).astype(np.uint8) % 5).save(tmp_path / "S/1.png")
    shutil.copy(tmp_path / "N/4.png", tmp_path / "S/12.png")
    report = check(path, study)
    assert not report.ok
    told = [(problem.severity, problem.line, problem.what) for problem in report.problems]
    for severity, line, what in (
        ("error", 2, "damaged or cut short"),
        ("error", 4, "no such image"),
        ("error", 5, "is empty"),
        ("warning", 30, "one flat colour"),
        ("warning", 31, "nearly black"),
        ("warning", 42, "byte for byte the image on line 6 (N, train, label 0), but stands under S, val, label 0"),
        ("error", 58, "unknown label '9'"),
        ("error", 58, "no such image"),
    ):
        assert sum(s == severity and at == line and what in text for s, at, text in told) == 1
    assert len(told) == 8
    document = json.loads(report.json())
    assert document["ok"] is False
    assert len(document["problems"]) == 8
    assert document["counts"][0] | {"classes": None} == {
        "site": "N", "split": "train", "images": 11, "patients": 11, "classes": None,
    }  # fmt: skip


def test_without_decoding_images_are_only_looked_for(manifest, study, tmp_path):
    path = manifest(HEADER, lines("N") + lines("S"))
    (tmp_path / "N/0.png").write_bytes(b"")
    assert check(path, study, decode=False).ok
    assert not check(path, study).ok


def test_an_image_without_permission_is_named(manifest, study, tmp_path, monkeypatch):
    path = manifest(HEADER, lines("N") + lines("S"))
    opened = Path.open

    def guarded(self, *arguments, **options):  # root may read everything, so the refusal is played
        if self == tmp_path / "N/0.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", guarded)
    assert "Permission denied" in check(path, study).errors[0].what


def test_an_unreadable_manifest_is_one_error(tmp_path, study):
    report = check(tmp_path / "none.csv", study)
    assert [problem.what for problem in report.problems] == ["there is no such file"]
    assert report.counts == ()


def test_federations_that_cannot_run_or_run_poorly():
    assert federation_problems(rows("N") + rows("S"), 12) == ()
    (alone,) = federation_problems(rows("N"), 4)
    assert alone.severity == "error"
    assert "a federation needs two" in alone.what
    assert federation_problems(rows("N"), 4, alone=True) == ()
    (untrained,) = federation_problems(rows("N") + rows("S", train=0), 4)
    assert (untrained.severity, untrained.column_or_path) == ("error", "site 'S'")
    warnings = {
        "has 12 training images where a batch has 16": federation_problems(rows("N", 20) + rows("S"), 16),
        "trains on one class only (0)": federation_problems(rows("N") + rows("S", train=1), 1),
        "has no val images": federation_problems(rows("N") + rows("S", val=0), 4),
        "has no test images": federation_problems(rows("N") + rows("S", test=0), 4),
        "has 9 patients in val": federation_problems(rows("N") + rows("S", val=9), 4),
        "sites 'N' and 'n' differ in nothing but capitals": federation_problems(rows("N") + rows("n"), 4),
    }
    for what, problems in warnings.items():
        assert [(problem.what, problem.severity) for problem in problems] == [(what, "warning")]


def test_multi_label_images_count_in_each_of_their_classes(manifest, study):
    target = {"x|y": (1, 1), "y": (0, 1), "": (0, 0)}.__getitem__
    study.task = SimpleNamespace(needs="label", classes=("x", "y"), target=target)
    path = manifest(HEADER, ["a.png,N,x|y,train,1", "b.png,N,y,train,2", "c.png,N,,train,3"])
    assert check(path, study).counts[0].classes == (("none", 1), ("x", 1), ("y", 2))


def test_command_without_a_study_says_what_it_did_not_check(manifest):
    path = manifest(HEADER, [*lines("N", train=16), "a.png,S,odd,train,p"])
    result = CliRunner().invoke(app, ["check", str(path)])
    assert result.exit_code == 0, result.output
    assert "N train: 16 images, 16 patients (0: 8, 1: 8)" in result.stdout
    assert "labels and settings were not checked" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("ready, 33 images of 2 sites.")


def test_command_fails_with_errors_and_says_what_to_do(manifest):
    path = manifest(HEADER, [*lines("N", train=16), *(f"{i}.jpg,S,1,train,p" for i in range(30))], pictures=False)
    result = CliRunner().invoke(app, ["check", str(path), "--quick"])
    assert result.exit_code == 1
    assert "errors more: --json lists all" in result.stdout
    assert "then run this check again" in result.stdout.splitlines()[-1]
    assert json.loads(CliRunner().invoke(app, ["check", str(path), "--json"]).stdout)["ok"] is False


def test_command_for_one_hospital(manifest):
    path = str(manifest(HEADER, lines("N", train=16)))
    assert CliRunner().invoke(app, ["check", path]).exit_code == 1
    assert CliRunner().invoke(app, ["check", path, "--one-site"]).exit_code == 0


def test_command_shows_a_table_on_a_terminal(manifest, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    result = CliRunner().invoke(app, ["check", str(manifest(HEADER, ["a.png,N,[red]x,train,p", "b.png,S,1,train,p"]))])
    assert "[red]x: 1" in result.stdout
    assert "patients" in result.stdout


def test_command_with_a_study_that_is_none(manifest, tmp_path):
    result = CliRunner().invoke(app, ["check", str(manifest(HEADER, lines("N"))), "--study", str(tmp_path / "no.toml")])
    assert isinstance(result.exception, StudyError)
