"""The section [privacy]: absent it changes nothing, and what could not hold is refused when the study is read."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import rfc8785

from polyclinic.core import registry
from polyclinic.core import study as studies
from polyclinic.core.errors import PolicyError, StudyError
from polyclinic.core.privacy import accounting
from polyclinic.core.privacy.plan import DESCRIBED, demand, plan

BASE = '[study]\nname = "x"\n[[adaptation]]\nmethod = "lora"\n'
STEPS = '[training]\nsteps = 31\n[rounds]\ncount = 20\nweight = "patients"\n'
PLAINEST = 'optimiser = "sgd"\nmomentum = 0.0\nweight_decay = 0.0\nclip_norm = "none"\n'
NEEDS = {
    "scaffold": STEPS.replace("steps = 31\n", f"steps = 31\n{PLAINEST}"),
    "fedsvd": STEPS + '[strategy]\nmethod = "fedsvd"\n',
    "inflate": STEPS + '[data]\nvolume = "whole"\ndepth = 8\n',
}
"""Methods that ask for more of a study."""
PRIVATE = BASE + STEPS + "[privacy]\nexpected = 64\n"
SIZES = {"train": 2000, "val": 300, "test": 200}


def test_a_study_without_it_keeps_the_digest_that_it_had() -> None:
    study = studies.loads(BASE)
    document = study.model_dump(mode="json")
    assert "privacy" not in document
    assert "privacy" not in study.toml()
    assert study.digest == hashlib.sha256(rfc8785.dumps(document)).hexdigest()
    # of the very same text, before there was such a section
    assert study.digest == "e6c42cb7dbde24c5f85867bb34053ca336f1ebe6c924250150055b065a011b82"
    with pytest.raises(StudyError, match="no section"):
        demand(study)


def test_with_it_it_is_another_study_and_reads_back() -> None:
    private = studies.loads(PRIVATE + "noise = 1.0\n")
    assert private.digest != studies.loads(BASE + STEPS).digest
    assert studies.loads(private.toml()) == private
    assert private.privacy is not None
    assert (private.privacy.unit, private.privacy.generator) == ("patient", "system")


@pytest.mark.parametrize(
    ("text", "place", "advice"),
    [
        (PRIVATE, "privacy", "one of them"),
        (PRIVATE + "noise = 1.0\nepsilon = 4.0\n", "privacy", "one of them"),
        (PRIVATE + "epsilon = 4.0\nlimit = 3.0\n", "privacy", "no run could end"),
        (PRIVATE + "epsilon = 4.0\ndelta = 0.5\n", "privacy.delta", "less than"),
        (PRIVATE + "noise = 0.1\n", "privacy.noise", "greater than"),
        (PRIVATE + 'epsilon = 4.0\nunit = "site"\n', "privacy.unit", "'patient' or 'image'"),
        (PRIVATE + "epsilon = 4.0\nclipp = 1.0\n", "privacy.clipp", "did you mean 'clip'"),
        (PRIVATE.replace("steps = 31", "epochs = 1") + "noise = 1.0\n", "training", "training.steps"),
        (PRIVATE.replace("steps = 31", "") + "noise = 1.0\n", "training", "training.steps"),
        (PRIVATE.replace('"patients"', '"images"') + "noise = 1.0\n", "rounds.weight", "patients"),
        (PRIVATE + 'noise = 1.0\nunit = "image"\n', "rounds.weight", "images"),
        (PRIVATE + 'noise = 1.0\n[[adaptation]]\nmethod = "fedlc"\n', "adaptation", "counts"),
    ],
)
def test_refuses_with_place_and_reason(text: str, place: str, advice: str) -> None:
    with pytest.raises(StudyError) as refusal:
        studies.loads(text, "test.toml")
    assert place in str(refusal.value)
    assert advice in str(refusal.value)


@pytest.mark.parametrize("name", registry.names("adaptations"))
def test_methods_are_refused_by_what_they_say_of_themselves(name: str) -> None:
    facts = registry.load("adaptations", name).facts
    alone = registry.load("adaptations", name).adapts
    chain = f'[study]\nname = "x"\n[[adaptation]]\nmethod = "{"lora" if not alone else name}"\n'
    chain += "" if alone else f'[[adaptation]]\nmethod = "{name}"\n'
    chain += '[task]\nmethod = "classification"\nkind = "multiclass"\nclasses = ["a", "b", "c"]\n'
    text = chain + NEEDS.get(name, STEPS) + "[privacy]\nnoise = 1.0\n"
    if facts.exact_private:
        assert studies.loads(text).privacy is not None
    else:
        with pytest.raises(StudyError) as refusal:
            studies.loads(text)
        assert facts.because in str(refusal.value)


def test_a_task_that_says_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.load("tasks", "classification"), "facts", None)
    with pytest.raises(StudyError, match="'classification' cannot be private: says nothing"):
        studies.loads(PRIVATE + "noise = 1.0\n")


def test_a_plan_spends_the_target_on_every_split_and_no_more() -> None:
    found = plan(studies.loads(PRIVATE + "epsilon = 4.0\n"), SIZES)
    assert found.rate == 64 / 2000
    for split, spent in found.epsilon.items():
        events = [one.event for one in found.releases if one.split == split]
        assert accounting.epsilon(events, 1e-5) == pytest.approx(spent, rel=1e-4), split
        assert 3.97 < spent <= 4.0
    assert found.of_round(1)[0].what == "update"
    assert {one.what for one in found.of_round(1)} == {"update", *DESCRIBED}
    assert {one.what for one in found.of_round(6)} == {"update", "incoming/val"}
    assert {one.what for one in found.of_round(21)} == {"incoming/val", "incoming/test"}
    assert len(found.after(20)) == 2
    assert [one.what for one in found.of_round(3, "update")] == ["update"]


def test_a_share_is_a_share_and_none_lets_nothing_but_the_update_leave() -> None:
    half = plan(studies.loads(PRIVATE + "epsilon = 4.0\nstatistics_share = 0.5\n"), SIZES)
    assert 1.98 < half.epsilon["val"] <= 2.0
    none = plan(studies.loads(PRIVATE + "noise = 1.0\nstatistics_share = 0.0\n"), SIZES)
    assert none.epsilon == {"train": pytest.approx(5.13, rel=0.01), "val": 0.0, "test": 0.0}
    assert {one.what for one in none.releases} == {"update"}


def test_smaller_sites_add_more_noise_for_the_same_target() -> None:
    study = studies.loads(PRIVATE + "epsilon = 4.0\n")
    noises = [plan(study, {"train": count}).noise for count in (4000, 2000, 500)]
    assert noises == sorted(noises)
    assert noises[0] < noises[-1]


@pytest.mark.parametrize(
    ("sizes", "text", "why"),
    [
        ({"train": 63}, "noise = 1.0\n", "privacy.expected is 64"),
        ({}, "noise = 1.0\n", "0 patients train here"),
        ({"train": 2000}, "noise = 1.0\ndelta = 0.0005\n", "below 1 / 2000"),
        ({"train": 100, "val": 4000}, "noise = 1.0\ndelta = 0.0005\n", "in val"),
    ],
)
def test_a_site_too_small_or_a_delta_too_large_is_refused(sizes: dict[str, Any], text: str, why: str) -> None:
    with pytest.raises(PolicyError, match=why):
        plan(studies.loads(PRIVATE + text), sizes, "north")
