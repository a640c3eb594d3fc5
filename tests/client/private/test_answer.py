"""What a site answers in a private study, whatever it is asked: nothing unpaid, nothing twice, no word of a patient."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyclinic.client import respond as answering
from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.manifest import read_manifest, sites
from polyclinic.client.keep import Keep
from polyclinic.client.policy import Policy
from polyclinic.client.privacy.account import demand_once
from polyclinic.client.private.answer import Vault
from polyclinic.client.respond import Site, Workbench, respond, sayable
from polyclinic.core import study as studies
from polyclinic.core.errors import DataError, LimitError, PolicyError, PrivacyError, StudyError
from polyclinic.core.messages import Instruction
from polyclinic.core.signing import SigningKey
from polyclinic.core.study import Study
from polyclinic.core.update import digest
from polyclinic.core.version import VERSION
from polyclinic.models.network import task
from polyclinic.server.live.publish import publish
from tests.conftest import study_text


def private(tiny_vit: Path, more: Mapping[str, Any] | None = None, adaptation: str = "", training: str = "") -> Study:
    asked = {"noise": 1.0, "delta": 1e-3, "expected": 6, "statistics_share": 0.0} | dict(more or {})
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in asked.items())
    text = study_text(tiny_vit).replace("[training]", f"{adaptation}[training]\nsteps = 2\n{training}")
    return studies.loads(text.replace("[rounds]", '[rounds]\nweight = "patients"') + f"\n[privacy]\n{lines}\n")


@pytest.fixture
def at(tiny_manifest: Path, tmp_path: Path) -> Any:
    def made(study: Study, **vault: Any) -> tuple[Workbench, Site]:
        rows = sites(read_manifest(tiny_manifest, study.data, task(study), 0))["north"]
        data = SiteData("north", rows, study.data, task(study))
        site = Site("north", data, Policy(), Keep(tmp_path / "own"), Vault(tmp_path / "privacy", **vault))
        return Workbench(study), site

    return made


def order(bench: Workbench, number: int = 1, *, fit: bool = True, scale: float = 1.0, **more: Any) -> Instruction:
    tensors = {name: (array * scale).astype(np.float32) for name, array in bench.adapted.read().items()}
    told = Instruction(bench.study.digest, "run", number, "n", digest(tensors), fit, ("val",), False, VERSION, tensors)
    return replace(told, **more)


def test_no_update_leaves_in_a_round_that_nothing_was_planned_for(tiny_vit: Path, at: Any) -> None:
    bench, site = at(private(tiny_vit))
    for number in (3, 4):  # of two rounds
        with pytest.raises(PolicyError, match="no update is planned"):
            respond(bench, site, order(bench, number))
    assert not bench.account(site).ledger.record().reserved  # type: ignore[union-attr]


def test_another_memory_is_another_question_with_noise_of_its_own(tiny_vit: Path, at: Any) -> None:
    """Else two updates with one noise, of two memories, would show their difference."""
    scaffold = '[[adaptation]]\nmethod = "scaffold"\n'
    plainest = 'optimiser = "sgd"\nmomentum = 0.0\nweight_decay = 0.0\nclip_norm = "none"\n'
    bench, site = at(private(tiny_vit, {}, scaffold, plainest))
    first, second = order(bench), order(bench, 2)
    one = respond(bench, site, first)
    before = respond(bench, site, second)
    respond(bench, site, order(bench, 1, scale=1.5))  # round 1 again, from another state: it leaves another memory
    after = respond(bench, site, second)
    reserved = bench.account(site).ledger.record().reserved.values()  # type: ignore[union-attr]
    assert len([r for r in reserved if r.question.round == 2]) == 2
    assert digest(before.update.tensors) != digest(after.update.tensors)
    assert one.receipt is not None


def test_of_an_answer_that_may_not_leave_nothing_is_kept(
    tiny_vit: Path, at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, site = at(private(tiny_vit, {}, '[[adaptation]]\nmethod = "moon"\n'))
    asked = order(bench)
    respond(bench, site, asked)
    kept = site.keep.before("run", 2)
    true = answering.fit
    monkeypatch.setattr(answering, "fit", lambda adapted, *given: _nudged(adapted, true(adapted, *given)))
    with pytest.raises(PrivacyError, match="came out differently"):
        respond(bench, site, asked)
    again = site.keep.before("run", 2)
    assert kept is not None
    assert again is not None
    assert all((kept[name] == again[name]).all() for name in kept)


def _nudged(adapted: Any, memory: Any) -> Any:
    next(iter(adapted.parameters())).data.add_(1.0)
    return {name: tensor + 1.0 for name, tensor in memory.items()}


def test_examples_that_cannot_be_drawn_are_no_reason_not_to_answer(
    tiny_vit: Path, at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any) -> None:
        raise DataError("one picture overflows", where="p7")

    bench, site = at(private(tiny_vit))
    monkeypatch.setattr(answering, "write_examples", fails)
    assert respond(bench, site, order(bench, 3, fit=False)).update is None


def test_a_model_that_gives_no_numbers_is_answered_like_any_other(tiny_vit: Path, at: Any) -> None:
    bench, site = at(private(tiny_vit, {"statistics_share": 1.0, "judged": 3}))
    with np.errstate(all="ignore"):
        reply = respond(bench, site, order(bench, 3, fit=False, scale=1e30))
    assert reply.statistics.keys() == {"incoming/val"}
    assert reply.receipt is not None


def test_what_was_spent_is_not_told_in_a_refusal_nor_in_a_receipt(tiny_vit: Path, at: Any) -> None:
    bench, site = at(private(tiny_vit, {"limit": 0.01}))
    with pytest.raises(LimitError, match=r"Spent: 0\.000") as refusal:
        respond(bench, site, order(bench))
    assert sayable(refusal.value, "north").startswith("a limit on ε at this site would be passed")


def test_noise_from_a_seed_is_refused_where_patients_are(tiny_vit: Path, at: Any, tmp_path: Path) -> None:
    simulated = private(tiny_vit, {"generator": "simulated"})
    bench, site = at(simulated, key=SigningKey.new())
    with pytest.raises(PolicyError, match="hides nobody"):
        respond(bench, site, order(bench))
    with pytest.raises(PolicyError, match="no privacy at all"):
        Policy(epsilon=1.0).demand_privacy(simulated)
    with pytest.raises(StudyError, match="hides nobody"):
        publish(simulated, tmp_path / "initial", SigningKey.new())


def test_one_file_under_two_names_is_refused(tiny_vit: Path, tiny_manifest: Path, tmp_path: Path) -> None:
    study = private(tiny_vit)
    row = sites(read_manifest(tiny_manifest, study.data, task(study), 0))["north"][0]
    link = tmp_path / "another.png"
    link.symlink_to(row.path)
    demand_once([row], "north")
    with pytest.raises(DataError, match="stands once"):
        demand_once([row, replace(row, path=link, name="another.png")], "north")
