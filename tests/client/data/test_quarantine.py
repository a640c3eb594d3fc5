"""A damaged image stops a study with a way out, and the list that the check writes is that way."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyclinic.client.data.check import check
from polyclinic.client.data.manifest import read_manifest
from polyclinic.client.data.quarantine import kept
from polyclinic.client.policy import Policy
from polyclinic.core.errors import DataError
from polyclinic.core.study import Study
from polyclinic.models.network import task
from polyclinic.server.rounds import Event
from polyclinic.simulations.simulate import gather
from tests.conftest import write_images


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A manifest of two sites, two pictures of which cannot be read."""
    manifest = write_images(tmp_path / "data", {"north": 24, "south": 24})
    for name in ("south-3", "north-20"):
        picture = manifest.parent / "images" / f"{name}.png"
        picture.write_bytes(picture.read_bytes()[:200])
    return manifest


def test_the_error_names_the_image_and_says_how_to_go_on_and_the_list_is_how(
    damaged: Path, tiny_study: Study, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as raised:
        gather(tiny_study, damaged, Policy())
    assert raised.value.where.endswith("north-20.png")
    assert "data check --quarantine FILE" in raised.value.remedy
    assert "simulate --quarantine FILE" in raised.value.remedy
    listed = tmp_path / "quarantine.csv"
    listed.write_text(check(damaged, tiny_study).quarantine_list())
    told: list[Event] = []
    rows, cohort = gather(tiny_study, damaged, Policy(), told.append, None, listed)
    assert len(rows) == 46
    assert cohort["south"].data.sizes()["train"] == (11, 11)
    assert f"2 of 48 images are in quarantine and left out (listed in {listed})" in [event.failure for event in told]
    every = read_manifest(damaged, tiny_study.data, task(tiny_study), tiny_study.study.seed)
    assert {row.name for row in every} - {row.name for row in rows} == {"images/south-3.png", "images/north-20.png"}
    assert set(rows) < set(every), "nobody else has moved to another split"


def test_names_that_are_no_longer_in_the_manifest_do_no_harm_and_no_list_leaves_all(
    tiny_study: Study, tiny_manifest: Path, tmp_path: Path
) -> None:
    rows = read_manifest(tiny_manifest, tiny_study.data, task(tiny_study), 0)
    listed = tmp_path / "list.csv"
    listed.write_text("reason,path\ngone,images/none.png\n")
    assert kept(rows, listed) == (rows, "")
    assert kept(rows, None) == (rows, "")
    listed.write_text("path\n")
    assert kept(rows, listed) == (rows, "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "there is no such file"),
        ("", "is empty"),
        ("file,reason\na,b\n", "it has no column 'path'"),
        ('path\n"a', "no CSV record starts here"),
        ("path,reason\na\n", "has 1 cells where the header has 2"),
        ("path\na\0b\n", "NUL"),
    ],
)
def test_a_list_that_is_none_is_refused(text: str | None, reason: str, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    if text is not None:
        listed.write_text(text)
    with pytest.raises(DataError, match=reason) as raised:
        kept((), listed)
    assert raised.value.where == str(listed)
    assert "data check" in raised.value.remedy
