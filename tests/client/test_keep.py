"""What a site keeps for itself: whole or not at all, its owner's alone, and a repeated round begins where it began."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polyclinic.client import keep as module
from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.manifest import read_manifest, sites
from polyclinic.client.keep import ROUNDS, RUNS, Keep
from polyclinic.client.policy import Policy
from polyclinic.client.respond import Site, Workbench, respond
from polyclinic.core import study as studies
from polyclinic.core.errors import RunError, UpdateError
from polyclinic.core.messages import Instruction, Reply, encode_reply
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, digest
from polyclinic.core.version import VERSION
from polyclinic.models.network import task
from tests.conftest import study_text


def left(number: int) -> dict[str, Tensor]:
    return {"personal/w": torch.full((3,), float(number)), "memory/m/x": torch.arange(number, dtype=torch.int64)}


def equal(one: object, other: dict[str, Tensor]) -> bool:
    assert isinstance(one, dict)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in other)


@pytest.fixture(params=["memory", "folder"])
def keep(request: pytest.FixtureRequest, tmp_path: Path) -> Keep:
    return Keep(tmp_path / "own" / "north" if request.param == "folder" else None)


def files_of(keep: Keep) -> list[Path]:
    assert keep.folder is not None
    return sorted(path for path in keep.folder.rglob("*") if path.is_file())


def test_a_round_begins_with_what_the_last_one_before_it_left(keep: Keep) -> None:
    assert keep.before("run", 1) is None
    keep.after("run", 1, left(1))
    keep.after("run", 3, left(3))  # it was not asked in between
    assert keep.before("run", 1) is None
    assert equal(keep.before("run", 2), left(1))
    assert equal(keep.before("run", 3), left(1))
    assert equal(keep.before("run", 4), left(3))
    assert equal(keep.before("run", 9), left(3))
    assert keep.before("another", 4) is None


def test_a_repeated_round_replaces_what_it_left_and_all_that_came_after_it(keep: Keep) -> None:
    for number in (1, 2, 3):
        keep.after("run", number, left(number))
    keep.after("run", 2, left(20))
    assert equal(keep.before("run", 2), left(1))
    assert equal(keep.before("run", 3), left(20))
    assert equal(keep.before("run", 4), left(20))


def test_what_was_kept_does_not_change_with_what_it_was_copied_from(keep: Keep) -> None:
    own = torch.zeros(2)
    keep.after("run", 1, {"w": own})
    own.add_(1.0)
    assert equal(keep.before("run", 2), {"w": torch.zeros(2)})


def test_rounds_are_pruned_and_one_too_old_is_refused_where_beginning_anew_would_be_another_training(
    keep: Keep,
) -> None:
    for number in range(1, 8):
        keep.after("run", number, left(number))
    assert [equal(keep.before("run", number + 1), left(number)) for number in (5, 6, 7)] == [True] * ROUNDS
    with pytest.raises(RunError, match="before round 5 is no longer held"):
        keep.before("run", 5)
    assert keep.before("run", 1) is None  # nothing came before the first
    keep.after("run", 1, left(1))
    assert equal(keep.before("run", 2), left(1))
    if keep.folder is not None:
        assert [path.name for path in files_of(keep)] == ["1.safetensors"]


def test_nothing_is_written_for_who_keeps_nothing_but_nothing_is_kept_where_something_was(keep: Keep) -> None:
    keep.after("run", 1, {})
    assert keep.before("run", 2) is None
    assert keep.folder is None or not keep.folder.exists()
    keep.after("run", 2, left(2))
    keep.after("run", 3, {})
    assert equal(keep.before("run", 4), {})


def test_folders_are_their_owners_alone_and_a_runs_name_becomes_no_path(tmp_path: Path) -> None:
    keep = Keep(tmp_path / "own" / "study")
    for name in ("../../escaped", "/etc/x", "a" * 5000, "\0", "ü"):
        keep.after(name, 1, left(1))
        assert equal(keep.before(name, 2), left(1))
    assert {path.name for path in tmp_path.iterdir()} == {"own"}
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    assert len(folders) == 2 + 5


def test_however_many_runs_there_are_a_disk_does_not_fill(tmp_path: Path) -> None:
    keep = Keep(tmp_path / "own")
    for number in range(RUNS + 5):
        keep.after(f"run {number}", 1, left(number))
    assert len(files_of(keep)) == RUNS
    assert equal(keep.before(f"run {RUNS + 4}", 2), left(RUNS + 4))


@given(cut=st.integers(0, 400), flip=st.integers(0, 400))
def test_a_damaged_file_is_a_clear_error_wherever_the_damage_is(cut: int, flip: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        keep = Keep(Path(folder) / "own")
        keep.after("run", 1, left(4))
        (path,) = files_of(keep)
        whole = path.read_bytes()
        path.write_bytes(whole[: min(cut, len(whole) - 1)])
        with pytest.raises(RunError, match=r"1\.safetensors: the site's own state cannot be read.*begins"):
            keep.before("run", 2)
        at = flip % len(whole)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            found = keep.before("run", 2)
        except RunError:
            return
        assert equal(found, left(4))  # damage in what nothing is read from, such as a blank of the header


def test_a_full_disk_is_a_clear_error_and_what_stood_there_still_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Keep(tmp_path / "own")
    keep.after("run", 1, left(1))

    def full(*told: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.files.os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        keep.after("run", 1, left(2))
    monkeypatch.undo()
    assert equal(keep.before("run", 2), left(1))
    assert [path.name for path in files_of(keep)] == ["1.safetensors"]


@pytest.fixture(scope="module")
def study(tiny_vit: Path) -> Study:
    """LoRA, and normalisations that stay at home."""
    return studies.loads(study_text(tiny_vit, '[[adaptation]]\nmethod = "fedbn"\n'))


@pytest.fixture(scope="module")
def bench(study: Study) -> Workbench:
    return Workbench(study)


@pytest.fixture(scope="module")
def north(study: Study, tiny_manifest: Path) -> SiteData:
    rows = sites(read_manifest(tiny_manifest, study.data, task(study), 0))["north"]
    return SiteData("north", rows, study.data, task(study))


def ask(bench: Workbench, data: SiteData, keep: Keep, state: Tensors, number: int, *, fit: bool = True) -> Reply:
    base = digest(state)
    asked = Instruction(bench.study.digest, "run", number, "n", base, fit, ("val",), False, VERSION, state)
    return respond(bench, Site("north", data, Policy(), keep), asked)


def sent(reply: Reply) -> str:
    assert reply.update is not None
    return digest(reply.update.tensors)


def test_a_site_trains_on_from_its_own_state_and_a_repeated_round_gives_the_same_bits(
    bench: Workbench, north: SiteData, keep: Keep
) -> None:
    state = bench.adapted.read()
    one = ask(bench, north, keep, state, 1)
    kept = keep.before("run", 2)
    assert kept is not None
    assert {name.removeprefix("personal/") for name in kept} == set(bench.adapted.personal)
    moved = [
        not torch.equal(kept[f"personal/{name}"], bench.adapted._pretrained[name]) for name in bench.adapted.personal
    ]
    assert all(moved)
    two = ask(bench, north, keep, state, 2)
    assert sent(ask(bench, north, keep, state, 2)) == sent(two)
    assert sent(ask(bench, north, Keep(), state, 2)) != sent(two)  # it matters
    assert sent(ask(bench, north, keep, state, 1)) == sent(one)  # a coordinator that goes back finds the same site
    assert sent(ask(bench, north, keep, state, 2)) == sent(two)


def test_the_incoming_model_is_judged_with_what_is_the_sites_own(bench: Workbench, north: SiteData, keep: Keep) -> None:
    state = bench.adapted.read()
    before = ask(bench, north, keep, state, 1, fit=False).statistics["incoming/val"]
    ask(bench, north, keep, state, 1)
    after = ask(bench, north, keep, state, 2, fit=False).statistics["incoming/val"]
    assert before != after


def test_bytes_of_what_is_personal_are_in_no_reply(bench: Workbench, north: SiteData, keep: Keep) -> None:
    state = bench.adapted.read()
    for number in (1, 2):
        reply = ask(bench, north, keep, state, number)
        assert reply.update is not None
        assert not reply.update.tensors.keys() & set(bench.adapted.personal)
        message = encode_reply(reply)
        kept = keep.before("run", number + 1)
        assert kept is not None
        canaries = [tensor.numpy().tobytes() for tensor in kept.values()]
        assert len(canaries) == len(bench.adapted.personal) > 5
        assert not [canary for canary in canaries if canary[:16] in message]
        update = next(iter(reply.update.tensors.values()))
        assert np.ascontiguousarray(update).tobytes()[:16] in message  # so canaries would be found


def test_a_state_that_is_not_this_models_is_named(bench: Workbench, north: SiteData, keep: Keep) -> None:
    state, name = bench.adapted.read(), bench.adapted.personal[0]
    ask(bench, north, keep, state, 1)
    kept = dict(keep.before("run", 2) or {})
    for wrong in (
        {key: value for key, value in kept.items() if name not in key},
        kept | {f"personal/{name}": torch.ones(1)},
    ):
        keep.after("run", 1, wrong)
        with pytest.raises(UpdateError, match="what this site kept as its own") as caught:
            ask(bench, north, keep, state, 2)
        assert caught.value.where == name


def test_a_site_of_another_name_or_run_has_another_state(bench: Workbench, north: SiteData, tmp_path: Path) -> None:
    state = bench.adapted.read()
    one, other = Keep(tmp_path / "own" / "north"), Keep(tmp_path / "own" / "south")
    ask(bench, north, one, state, 1)
    assert other.before("run", 2) is None
    assert (
        respond(
            bench,
            Site("north", north, Policy(), one),
            replace(
                Instruction(bench.study.digest, "other", 1, "n", digest(state), True, (), False, VERSION, state),
                round=2,
            ),
        ).update
        is not None
    )
    assert one.before("other", 2) is None
    assert one.before("other", 3) is not None
