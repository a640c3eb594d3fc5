"""polyclinic methods: complete, true to the plugins, and its study lines are a study's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyclinic.cli.methods import entries
from polyclinic.core import registry
from polyclinic.core import study as studies
from polyclinic.core.errors import PluginError
from tests.cli.conftest import Call

THREE = '[task]\nmethod = "classification"\nkind = "multiclass"\nclasses = ["a", "b", "c"]\n'
BEFORE = {"fixmatch": '[[adaptation]]\nmethod = "label_budget"\n'}
"""Methods that need another before them."""
PRIVATE_NOT = {
    "loha", "lokr", "fedlc", "class_balanced", "soft_ece", "rebalance", "by_patient", "label_budget", "active",
    "fixmatch", "harmonise_histogram", "exchange_amplitude", "combat", "fedbn", "silobn",
    "fedproto", "prototypes", "standardise", "whiten", "coral", "mmd",
}  # fmt: skip
VOLUMES = {"inflate": '[data]\nvolume = "whole"\ndepth = 8\n'}
KEYS = {
    "method", "families", "paper", "tasks", "backbones", "adapts", "travels", "personal", "exact_private", "because",
    "identity", "merges", "low_rank", "study",
}  # fmt: skip


def test_every_registered_method_is_listed_once_with_all_that_is_asked(polyclinic: Call) -> None:
    found = json.loads(polyclinic("methods", "--json").out)
    assert sorted(entry["method"] for entry in found) == list(registry.names("adaptations"))
    for entry in found:
        assert entry.keys() == KEYS
        assert all(entry[key] for key in ("families", "paper", "because", "backbones", "travels", "personal"))
        assert "classification" in entry["tasks"]
    told = {entry["method"]: entry for entry in found}
    assert told["lora"]["low_rank"]
    assert not told["dora"]["low_rank"]
    assert [name for name, entry in told.items() if not entry["exact_private"]] == [
        name for name in told if name in PRIVATE_NOT
    ]


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry["method"])
def test_its_study_lines_are_a_sound_study_that_writes_out_the_same(entry: dict[str, str], tiny_vit: Path) -> None:
    first = "" if entry["adapts"] else '[[adaptation]]\nmethod = "lora"\n'
    first += BEFORE.get(entry["method"], "")
    study = studies.loads(f'[study]\nname = "x"\n{first}{entry["study"]}{VOLUMES.get(entry["method"], "")}{THREE}')
    method = study.adaptation[-1]
    assert method.model_dump(mode="json") == method.__class__(method=entry["method"]).model_dump(mode="json")
    assert method.build().families == set(entry["families"])  # type: ignore[attr-defined]


def test_a_family_is_picked_and_an_unknown_one_refused(polyclinic: Call) -> None:
    said = polyclinic("methods", "--family", "objective").out
    assert "fedlc  (objective)" in said
    assert "exact under differential privacy: no: the site's class counts enter" in said
    assert 'in a study: [[adaptation]]; method = "fedlc"; tau = 1.0' in said
    assert "lora  (" not in said
    assert (
        "one of architecture, data, objective, parameter, representation"
        in polyclinic("methods", "--family", "x").complaint
    )


def test_a_plugin_that_says_nothing_of_itself_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.load("adaptations", "augment"), "facts", None)
    with pytest.raises(PluginError, match="'augment' says nothing of itself"):
        entries()
