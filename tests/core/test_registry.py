"""Plugins are found by name, one at a time, and a wrong name says what there is."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints

import pytest

from polyclinic.core import registry
from polyclinic.core.errors import PluginError


def test_built_ins_are_registered_like_any_plugin() -> None:
    assert set(registry.names("strategies")) >= {"exact", "mean"}
    assert set(registry.names("server_steps")) >= {"adagrad", "adam", "momentum", "sgd", "yogi"}
    assert set(registry.names("adaptations")) >= {"augment", "fedprox", "lora"}
    assert set(registry.names("backbones")) >= {"embedded", "file", "hf"}
    assert registry.load("strategies", "mean").__name__ == "Mean"


def test_an_unknown_name_lists_what_there_is_and_the_nearest() -> None:
    with pytest.raises(PluginError, match=r"no plugin 'maen' in strategies \(did you mean 'mean'\? installed: .*exact"):
        registry.load("strategies", "maen")


def with_points(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    made = EntryPoints(EntryPoint(name, value, "polyclinic.strategies") for name, value in points)
    monkeypatch.setattr(registry, "entry_points", lambda group: made.select(group=group))


def test_a_plugin_of_another_package_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    with_points(monkeypatch, ("median", "statistics:median"))
    assert registry.load("strategies", "median")([3, 1, 2]) == 2


def test_a_name_that_two_packages_claim_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with_points(monkeypatch, ("x", "statistics:mean"), ("x", "statistics:median"))
    with pytest.raises(PluginError, match="registered 2 times: statistics:mean, statistics:median"):
        registry.load("strategies", "x")


@pytest.mark.parametrize("value", ["no_such_module_at_all:x", "statistics:no_such_name"])
def test_a_plugin_that_cannot_be_imported_is_no_silent_warning(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    with_points(monkeypatch, ("x", value))
    with pytest.raises(PluginError, match="cannot be imported"):
        registry.load("strategies", "x")
