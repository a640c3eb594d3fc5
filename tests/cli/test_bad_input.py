"""Everything that a stranger may get wrong: one clear line, exit code 1, and no trace of a run."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from polyclinic.core import runs
from tests.cli.conftest import Call, Said
from tests.conftest import write_images

Damage = Callable[[Path], object]


def edited(old: str, new: str) -> Damage:
    """The manifest with ``old`` replaced by ``new``, wherever it stands."""

    def damage(manifest: Path) -> None:
        text = manifest.read_text()
        assert old in text
        manifest.write_text(text.replace(old, new))

    return damage


def truncated(manifest: Path) -> None:
    picture = manifest.parent / "images" / "south-3.png"
    picture.write_bytes(picture.read_bytes()[:300])


def repeated(manifest: Path) -> None:
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*lines, lines[3]]) + "\n")


def one_site(manifest: Path) -> None:
    manifest.write_text("".join(line for line in manifest.read_text().splitlines(True) if ",south," not in line))


def no_training(manifest: Path) -> None:
    text = manifest.read_text().splitlines(True)
    manifest.write_text("".join(line.replace(",train,", ",val,") if ",south," in line else line for line in text))


def in_latin_1(manifest: Path) -> None:
    manifest.write_bytes(manifest.read_text().replace("north,0", "nörth,0", 1).encode("latin-1"))


MANIFESTS: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "missing image": (
        lambda manifest: (manifest.parent / "images" / "north-3.png").unlink(),
        ("line 5, images/north-3.png: there is no such image", "paths are relative to the manifest's folder"),
    ),
    "truncated image": (truncated, ("south-3.png: is damaged or cut short", "export it again")),
    "no image": (
        lambda manifest: (manifest.parent / "images" / "south-3.png").write_text("hello"),
        ("south-3.png: is no PNG", "export it as PNG"),
    ),
    "unknown label": (edited("north-3.png,north,1", "north-3.png,north,maybe"), ("line 5, label", "'maybe'")),
    "no training images": (no_training, ("site 'south': has no training images", "leave the site out")),
    "one patient in two splits": (
        edited("north,0,val,p12", "north,0,val,p0"),
        ("line 14, images/north-12.png: patient 'p0' of north is in val, but in train on line 2", "in one split"),
    ),
    "duplicate path": (repeated, ("line 50", "the same image as on line 4", "list every image once")),
    "one site only": (one_site, ("'north' is the only site, and a federation needs two", "list the images of another")),
    "not UTF-8": (in_latin_1, ("line 2: is not UTF-8: byte 0xf6", "save the table as 'CSV UTF-8'")),
    "no manifest": (lambda manifest: manifest.unlink(), ("manifest.csv", "there is no such file", "check the path")),
    "no split": (edited(",val,", ",vall,"), ("line 14, split: 'vall' is no split", "train, val or test")),
    "no column": (
        edited("path,site,label", "path,hospital,label"),
        ("site: this column is missing", "data.columns.site"),
    ),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_cannot_be_used(case: str, polyclinic: Call, study_file: Path, tmp_path: Path) -> None:
    damage, expected = MANIFESTS[case]
    manifest = write_images(tmp_path / "data", {"north": 24, "south": 24})
    damage(manifest)
    said = polyclinic("simulate", study_file, "--data", manifest, "--run", tmp_path / "run")
    for part in (str(tmp_path / "data"), *expected):
        assert part in said.complaint
    assert not (tmp_path / "run").exists()


def test_an_image_that_may_not_be_read(
    polyclinic: Call, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_images(tmp_path / "data", {"north": 24, "south": 24})
    really = Path.open

    def forbidden(path: Path, *words: Any, **more: Any) -> IO[Any]:
        if path.name == "south-3.png":
            raise PermissionError(13, "Permission denied")  # as for anyone but root, who may run this
        stream: IO[Any] = really(path, *words, **more)
        return stream

    monkeypatch.setattr(Path, "open", forbidden)
    said = polyclinic("simulate", study_file, "--data", manifest, "--run", tmp_path / "run")
    assert "south-3.png: cannot be read: Permission denied" in said.complaint
    assert not (tmp_path / "run").exists()


STUDIES = {
    "absent": ("", "", ("study.toml", "cannot be read", "No such file")),
    "no TOML": ("[study]", "[study", ("study.toml", "this is not TOML", "line 2")),
    "unknown key": ("batch_size", "batchsize", ("unknown key 'training.batchsize'", "did you mean 'batch_size'")),
    "wrong type": ("rank = 2", 'rank = "two"', ("adaptation.0", "key 'rank'", "two")),
    "unknown kind of backbone": ('"file:', '"fil:', ("unknown kind of backbone 'fil:'", "file")),
    "no such backbone": ("tiny.safetensors", "huge.safetensors", ("huge.safetensors", "cannot be read", "needs")),
    "no such embedded backbone": ('"file:', '"embedded:', ("no embedded backbone", "vit-tiny")),
    "wrong hash": ("[[adaptation]]", f'sha256 = "{"0" * 64}"\n[[adaptation]]', ("SHA-256 is", "get the right file")),
    "unknown method": ('"lora"', '"lorra"', ("no plugin 'lorra'", "did you mean 'lora'")),
}


@pytest.mark.parametrize("case", STUDIES)
def test_a_study_that_cannot_be_run(
    case: str, polyclinic: Call, study_file: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    old, new, expected = STUDIES[case]
    study = tmp_path / "study.toml"
    if old:
        assert old in study_file.read_text()
        study.write_text(study_file.read_text().replace(old, new, 1))
    said = polyclinic("simulate", study, "--data", tiny_manifest, "--run", tmp_path / "run", "--workers", 2)
    for part in expected:
        assert part in said.complaint.replace("\n", " ")
    assert not (tmp_path / "run").exists()


def test_an_unusable_place_for_the_run(
    polyclinic: Call, study_file: Path, tiny_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(folder: Path, *more: str) -> Said:
        return polyclinic("simulate", study_file, "--data", tiny_manifest, "--run", folder, *more)

    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_text("")
    for more in ((), ("--resume",)):
        assert "holds something else than a run" in call(photos, *more).complaint
    assert [path.name for path in photos.iterdir()] == ["cat.jpg"]
    assert "is no folder" in call(photos / "cat.jpg").complaint
    assert "there is no such run" in call(tmp_path / "typo", "--resume").complaint
    assert "Not a directory" in call(photos / "cat.jpg" / "run").complaint

    def forbidden(path: Path, *words: Any, **more: Any) -> None:
        raise PermissionError(13, "Permission denied")  # as for anyone but root, who may run this

    monkeypatch.setattr(Path, "mkdir", forbidden)
    assert "cannot be written: Permission denied" in call(tmp_path / "mine").complaint
    assert not (tmp_path / "mine").exists()


def test_a_run_of_another_study_or_of_other_images_is_not_resumed(
    polyclinic: Call, finished: runs.Run, study_file: Path, manifest: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    call = ("simulate", study_file, "--run", folder, "--resume")
    assert "is a run of another study" in polyclinic(*call, "--data", manifest, "--seed", 9).complaint
    assert "is a run of another data" in polyclinic(*call, "--data", tiny_manifest).complaint
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("words", [("--resume",), ("--ray-address", "auto"), ("--workers", "-1"), ("--seed", "x")])
def test_options_that_make_no_sense_are_named(
    words: tuple[str, ...], polyclinic: Call, study_file: Path, manifest: Path
) -> None:
    said = polyclinic("simulate", study_file, "--data", manifest, *words)
    assert said.code == 2
    assert words[0] in said.err
    reasons = {"--resume": "--run FOLDER", "--ray-address": "--engine flower", "--workers": "x>=0", "--seed": "integer"}
    assert reasons[words[0]] in said.err
    assert "Traceback" not in said.err


def flipped(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    body = bytearray(weights.read_bytes())
    body[-1] ^= 1
    weights.write_bytes(body)


def re_signed(adapter: Path) -> None:
    """Another adapter with a card that fits it: only the run itself knows better."""
    flipped(adapter)
    card = json.loads((adapter / "polyclinic.json").read_text())
    card["sha256"] = hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
    (adapter / "polyclinic.json").write_text(json.dumps(card))


ADAPTERS: dict[str, tuple[Damage, str]] = {
    "absent": (shutil.rmtree, "holds no adapter"),
    "flipped bit": (flipped, "changed or damaged"),
    "cut short": (lambda adapter: (adapter / "adapter_model.safetensors").write_bytes(b"1234"), "damaged"),
    "no card": (lambda adapter: (adapter / "polyclinic.json").write_text("{"), "holds no adapter"),
    "of another run": (re_signed, "is the adapter of another run"),
}


@pytest.mark.parametrize("case", ADAPTERS)
@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_an_adapter_that_is_not_the_run_s(
    case: str, command: str, polyclinic: Call, finished: runs.Run, manifest: Path, tmp_path: Path
) -> None:
    damage, expected = ADAPTERS[case]
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    damage(folder / "adapter")
    words = ("--data", manifest) if command == "evaluate" else (tmp_path / "out",)
    assert expected in polyclinic(command, folder, *words).err
    assert polyclinic(command, folder, *words).code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_adapter_of_another_study(
    polyclinic: Call, finished: runs.Run, study_file: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    polyclinic("simulate", study_file, "--data", tiny_manifest, "--run", tmp_path / "other", "--seed", 8)
    shutil.rmtree(tmp_path / "other" / "adapter")
    shutil.copytree(finished.adapter, tmp_path / "other" / "adapter")
    said = polyclinic("evaluate", tmp_path / "other", "--data", tiny_manifest)
    assert "the adapter belongs to another study (use the run that it came from)" in said.complaint


def test_what_is_no_run_is_neither_judged_nor_exported(
    polyclinic: Call, finished: runs.Run, manifest: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    shutil.copytree(finished.folder, half)
    (half / "summary.json").unlink()
    torn = tmp_path / "torn"
    shutil.copytree(finished.folder, torn)
    (torn / "summary.json").write_text('{"study_digest": ')
    for folder, why in ((tmp_path / "no", "holds no run"), (half, "has not finished"), (torn, "is damaged")):
        for command in (("evaluate", folder, "--data", manifest), ("report", folder), ("verify", folder)):
            assert why in polyclinic(*command).complaint
        assert why in polyclinic("export", folder, tmp_path / "out").complaint
    assert not (tmp_path / "out").exists()


def test_a_split_without_images(polyclinic: Call, finished: runs.Run, tmp_path: Path) -> None:
    others = write_images(tmp_path, {"east": 12})
    edited(",test,", ",val,")(others)
    said = polyclinic("evaluate", finished.folder, "--data", others)
    assert f"{others}: no image is in split 'test' (choose another --split, or all)" in said.complaint


def test_the_demo_deletes_nothing_that_is_not_its_own(polyclinic: Call, tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("path,site,label\n")
    assert "holds something else than a run" in polyclinic("demo", "--run", tmp_path).complaint
    said = polyclinic("demo", "--run", tmp_path / "run", "--images", tmp_path)
    assert "manifest.csv: is not the demo's own" in said.complaint
    (tmp_path / "file").write_text("")
    said = polyclinic("demo", "--run", tmp_path / "run", "--images", tmp_path / "file" / "images")
    assert "Not a directory" in said.complaint
    assert (tmp_path / "manifest.csv").read_text() == "path,site,label\n"
