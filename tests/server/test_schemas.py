"""The run folder's contract: JSON schemas, code and docs/run-folder.md agree."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from polyclinic.core.runs import Run
from polyclinic.core.statistics.metrics import JUDGED, PLAIN
from polyclinic.core.study import Study
from polyclinic.simulations.simulate import Options, simulate
from tests.conftest import write_images

DOCS = Path(__file__).parents[2] / "docs" / "run-folder.md"

METRICS = tuple(dict.fromkeys(metric.key for judged in JUDGED.values() for metric in judged.metrics))


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files("polyclinic.server").joinpath(f"{name}.schema.json").read_text("utf-8"))
    Draft202012Validator.check_schema(found)
    return found


@pytest.fixture(scope="module")
def run(tiny_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """With baselines, a site with one class only and one whose figures are withheld."""
    folder = tmp_path_factory.mktemp("schemas")
    manifest = write_images(folder, {"large": 48, "small": 12, "sick": 40, "west": 44})
    manifest.write_text(manifest.read_text().replace(",sick,0,", ",sick,1,"))
    return simulate(tiny_study, manifest, folder / "run", Options(baselines=True))


def test_a_real_run_keeps_the_contract(run: Run) -> None:
    summary, rounds = run.summary, run.rounds
    Draft202012Validator(schema("summary")).validate(summary)
    assert summary["sites"]["sick"]["metrics"]["test"]["auroc"]["why"]
    assert summary["sites"]["small"]["alone"]["test"]["nll"]["value"] is None
    assert summary["map"].keys() == {"large", "sick", "west"}
    assert len(rounds) == 2
    for record in rounds:
        Draft202012Validator(schema("round")).validate(record)


def test_an_excluded_site_keeps_the_contract(run: Run) -> None:
    left_out: dict[str, Any] = {"n": {}, "metrics": {}, "reliability": {}, "shift": None, "excluded": "no reply"}
    summary = run.summary | {"sites": run.summary["sites"] | {"late": left_out}, "excluded": {"late": "no reply"}}
    Draft202012Validator(schema("summary")).validate(summary)


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every object stands that has fixed keys: names of sites and splits are data."""
    children = document.items() if isinstance(document, dict) else enumerate(document)
    if isinstance(document, dict) and path[-1:] not in (("sites",), ("excluded",), ("map",)):
        yield path
    for key, value in children:
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


@pytest.mark.parametrize("name", ["summary", "round"])
def test_nothing_may_be_added_anywhere(name: str, run: Run) -> None:
    document: dict[str, Any] = run.summary if name == "summary" else run.rounds[0]
    validator = Draft202012Validator(schema(name))
    found = list(places(document))
    assert len(found) > 20
    for path in found:
        copy = json.loads(json.dumps(document))
        at = copy
        for key in path:
            at = at[key]
        at["surprise"] = 1
        assert not validator.is_valid(copy), f"a key may be added at {path}"


@pytest.mark.parametrize(
    ("key", "value"),
    [("adapter_sha256", "abc"), ("seed", -1), ("rounds", 0), ("seconds", "1"), ("worst_site", {"site": "large"})],
)
def test_wrong_values_are_refused(key: str, value: object, run: Run) -> None:
    with pytest.raises(ValidationError):
        Draft202012Validator(schema("summary")).validate(run.summary | {key: value})


def keys(document: Any) -> set[str]:
    """Names of all properties that a schema knows, splits and the reliability's words included."""
    if isinstance(document, list):
        return {key for item in document for key in keys(item)}
    if not isinstance(document, dict):
        return set()
    here = set(document["properties"]) if isinstance(document.get("properties"), dict) else set()
    return here | {key for value in document.values() for key in keys(value)}


def section(title: str) -> set[str]:
    """The words in backticks in a section of docs/run-folder.md, taken apart at dots."""
    text = DOCS.read_text(encoding="utf-8").split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    return {word for span in re.findall(r"`([^`]+)`", text) for word in re.findall(r"[a-z_0-9]+", span)}


def test_schemas_code_and_docs_name_the_same_figures() -> None:
    for name in ("summary", "round"):
        defined = schema(name)["$defs"]
        chosen = [choice["$ref"].rpartition("/")[2] for choice in defined["metrics"]["oneOf"]]
        assert chosen == [f"{kind}_metrics" for kind in PLAIN]
        for kind, judged in PLAIN.items():
            keys = [metric.key for metric in judged.metrics]
            assert list(defined[f"{kind}_metrics"]["properties"]) == defined[f"{kind}_metrics"]["required"] == keys
    assert section("Figures") >= {*METRICS, "value", "low", "high", "bound", "why", "noise"}


@pytest.mark.parametrize(
    ("name", "title", "elsewhere"),
    [
        ("round", "`rounds.jsonl`", {"site", "metric"}),
        ("summary", "`summary.json`", {"train", "val", "test", "site", "metric", "split", "image"}),
    ],
)
def test_docs_name_every_key_of_a_schema_and_no_other(name: str, title: str, elsewhere: set[str]) -> None:
    figures = {*METRICS, "value", "bound"}
    known = keys(schema(name)) - figures - elsewhere
    told = section(title)
    assert known - told - section("Figures") - section("`summary.json`") == set()
    assert (
        told - keys(schema(name)) - {"jsonl", "json", "baselines", "adapter_model", "safetensors", "adapter"} == set()
    )
