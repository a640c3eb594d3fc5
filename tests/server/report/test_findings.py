"""The sentences: exact for known figures, never a number that the run does not hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import sqrt
from typing import Any

import pytest

from polyclinic.server.report import data
from polyclinic.server.report.data import Evidence
from polyclinic.server.report.findings import Finding, findings

Json = dict[str, Any]
STUDY = {"study": {"name": "x"}, "task": {"kind": "binary", "classes": ["healthy", "ill"]}}


KNOWN = [
    (
        "Was it worth federating?",
        "good",
        # (0.2 + 0.02) / 2; each half-width is √(0.03² + 0.04²) = 0.05, of the mean 0.05 / √2
        "Yes: on average over 2 sites, AUROC is 0.110 higher (95 % interval +0.075 to +0.145) than with each site "
        "training alone.",
        (
            "On average AUROC is 0.020 lower (95 % interval −0.053 to +0.013) than with one model trained on all "
            "images in one place: no difference that these data can show.",
            "In 2 rounds the pooled AUROC on validation images went from 0.500 to 0.870: +0.370 (+0.316 to +0.424).",
        ),
    ),
    (
        "For whom?",
        "good",
        "Of 2 sites that can be compared, a gain is shown at 1, a loss at none.",
        (
            "Gain: a +0.200 (+0.150 to +0.250).",
            "No difference that these data can show: b +0.020 (−0.030 to +0.070).",
            "Cannot be compared: c (only one class present).",
        ),
    ),
    (
        "Who is worst off?",
        "note",
        "b: AUROC 0.800 (95 % interval 0.770 to 0.830) on test images, the lowest of 2 sites.",
        (
            "Pooled over sites: 0.870 (0.850 to 0.890). This site less pooled: −0.070 (−0.106 to −0.034).",
            "No AUROC: c (only one class present).",
        ),
    ),
    (
        "Who is miscalibrated?",
        "bad",
        "b: 1 of 3 sites with a calibration error beyond what chance explains.",
        (
            "b: calibration error 0.220 (0.120 to 0.320); probabilities too high (mean 0.62, observed 0.40).",
            "Pooled over sites: 0.050 (0.000 to 0.100), which chance may explain.",
        ),
    ),
    (
        "Who is shifted?",
        "note",
        "b (p = 0.003): the images of 1 of 3 sites differ from all others’ (MMD test, Holm’s correction).",
        (
            "Brightness (PSI): marked shift at b (0.30).",
            "Features lie furthest off at b: squared Fréchet distance 0.200.",
            "Patients with class ill: from 30 % (a) to 60 % (b).",
        ),
    ),
    (
        "Was anybody set aside?",
        "bad",
        "c, at least once in 2 rounds and the last evaluation.",
        ("c, in round 2: no answer.",),
    ),
]
"""Topic, level, text and more of the run ``three``."""


def told(value: float, half: float, bound: float = 0.0) -> Json:
    return {"value": value, "low": value - half, "high": value + half, "bound": bound}


def unknown(why: str) -> Json:
    return {"value": None, "low": None, "high": None, "bound": 0.0, "why": why}


def judged(auroc: Json, ece: Json | None = None, nll: Json | None = None) -> Json:
    return {"auroc": auroc, "ece": ece or told(0.05, 0.05), "nll": nll or told(0.5, 0.1)}


def row(own: Json, alone: Json | None = None, central: Json | None = None, **more: Any) -> Json:
    shift = {"frechet": 0.01, "mmd2": 0.001, "p_value": 0.5, "intensity_psi": 0.05, "prevalence": [0.7, 0.3]}
    found: Json = {"n": {"test": {"images": 90, "patients": 80}}, "metrics": {"test": own, "val": own}, "shift": shift}
    found |= {"alone": {"test": alone}} if alone else {}
    return found | ({"central": {"test": central}} if central else {}) | more


def summary(sites: Json, pooled: Json, **more: Any) -> Json:
    return {
        "sites": sites, "pooled": {"test": pooled, "val": pooled}, "pooled_reliability": {}, "excluded": {},
        "bytes_up": 10, "bytes_down": 20, "rounds": 2, **more,
    }  # fmt: skip


def line(number: int, arrived: Json, excluded: dict[str, str] | None = None) -> Json:
    sites = {name: {"incoming": found, "fitted": found, "weight": 1, "seconds": 1.0} for name, found in arrived.items()}
    pooled = {"incoming": next(iter(arrived.values()), None), "fitted": None}
    return {
        "round": number, "seconds": 1.0, "bytes_up": 5, "bytes_down": 10, "sites": sites, "pooled": pooled,
        "excluded": excluded or {}, "base": "", "result": "",
    }  # fmt: skip


@pytest.fixture
def three() -> Evidence:
    """a gains, b shows nothing and is miscalibrated and shifted, c has one class and was late once."""
    bins = {"test": [{"low": 0.6, "high": 0.7, "count": 90, "confidence": 0.62, "frequency": 0.4}]}
    far = {"frechet": 0.2, "mmd2": 0.1, "p_value": 0.001, "intensity_psi": 0.3, "prevalence": [0.4, 0.6]}
    one = judged(unknown("only one class present"))
    sites = {
        "a": row(judged(told(0.9, 0.03)), judged(told(0.7, 0.04)), judged(told(0.88, 0.03))),
        "b": row(
            judged(told(0.8, 0.03), told(0.22, 0.1)), judged(told(0.78, 0.04)), judged(told(0.86, 0.04)),
            shift=far, reliability=bins,
        ),
        "c": row(one, one, one),
    }  # fmt: skip
    start = judged(told(0.5, 0.05))
    rounds = [line(1, {"a": start, "b": start, "c": one}), line(2, {"a": start, "b": start}, {"c": "no answer"})]
    return data.evidence(STUDY, summary(sites, judged(told(0.87, 0.02))), rounds)


def by_topic(evidence: Evidence) -> dict[str, Finding]:
    return {finding.topic: finding for finding in findings(evidence)}


def test_sentences_of_a_known_run(three: Evidence) -> None:
    assert [(found.topic, found.level, found.text, found.more) for found in findings(three)] == KNOWN


def test_an_interval_that_holds_0_is_no_difference() -> None:
    sites = {"a": row(judged(told(0.82, 0.05)), judged(told(0.8, 0.05)))}
    found = by_topic(data.evidence(STUDY, summary(sites, judged(told(0.82, 0.05))), []))
    assert found["Was it worth federating?"].level == "open"
    assert found["Was it worth federating?"].text.startswith("No difference that these data can show: at one site, ")
    assert "the only site with this figure" in found["Who is worst off?"].text


def test_a_loss_is_called_a_loss() -> None:
    sites = {"a": row(judged(told(0.6, 0.02)), judged(told(0.8, 0.02)))}
    found = by_topic(data.evidence(STUDY, summary(sites, judged(told(0.6, 0.02))), []))
    assert found["Was it worth federating?"].text == (
        "No: at one site, AUROC is 0.200 lower (95 % interval −0.228 to −0.172) than with each site training alone."
    )
    assert found["For whom?"].level == "bad"


def test_without_baselines_the_run_cannot_say() -> None:
    found = by_topic(data.evidence(STUDY, summary({"a": row(judged(told(0.8, 0.1)))}, judged(told(0.8, 0.1))), []))
    assert found["Was it worth federating?"].level == "unknown"
    assert "For whom?" not in found


def test_where_auroc_is_nowhere_balanced_accuracy_or_log_loss_compares() -> None:
    one = unknown("only one class present")
    sites = {"a": row(judged(one, nll=told(0.2, 0.05))), "b": row(judged(one, nll=told(0.4, 0.05)))}
    found = by_topic(data.evidence(STUDY, summary(sites, judged(one, nll=told(0.3, 0.05))), []))
    assert found["Who is worst off?"].text.startswith("b: Log loss 0.400")
    assert found["Who is worst off?"].text.endswith("the highest of 2 sites.")


def test_a_start_whose_scores_all_tie_is_told_by_log_loss() -> None:
    start = judged(told(0.5, 0.1, bound=0.3), nll=told(0.7, 0.01))
    sites = {"a": row(judged(told(0.9, 0.02), nll=told(0.4, 0.01)))}
    evidence = data.evidence(
        STUDY, summary(sites, judged(told(0.9, 0.02), nll=told(0.4, 0.01))), [line(1, {"a": start})]
    )
    assert by_topic(evidence)["Was it worth federating?"].more == (
        "In 1 round the pooled log loss on validation images went from 0.700 to 0.400: −0.300 (−0.314 to −0.286).",
    )


def test_before_and_after_are_not_compared_over_other_sites() -> None:
    start = judged(told(0.5, 0.05))
    sites = {name: row(judged(told(0.9, 0.02))) for name in "ab"}
    evidence = data.evidence(STUDY, summary(sites, judged(told(0.9, 0.02))), [line(1, {"a": start}, {"b": "late"})])
    assert by_topic(evidence)["Was it worth federating?"].more == ()


def test_a_run_that_told_nothing_says_so() -> None:
    gone = unknown("fewer than 10 patients")
    sites: Json = {
        "a": {"n": {}, "metrics": {"test": {"auroc": gone, "ece": gone}}, "shift": None},
        "b": {"n": {}, "metrics": {}, "reliability": {}, "shift": None, "excluded": "no answer"},
    }
    nothing = summary(sites, {}) | {"pooled": {"test": None, "val": None}, "excluded": {"b": "no answer"}}
    evidence = data.evidence(STUDY, nothing, [])
    found = by_topic(evidence)
    levels = [found[topic].level for topic in found]
    assert levels == ["unknown", "unknown", "unknown", "unknown", "bad"]
    assert found["Who is worst off?"].more == ("No AUROC: a (fewer than 10 patients) and b (set aside: no answer).",)
    assert found["Was anybody set aside?"].more == ("b, in the last evaluation: no answer.",)


def test_many_sites_are_told_what_chance_does(fifty: Any) -> None:
    found = by_topic(fifty.evidence)
    assert "Where nothing differs, 1 interval in 20 leaves out 0: of 50, 2.5 on average." in found["For whom?"].more
    assert "The lowest of 50 is so in part by chance, for which these intervals do not allow." in (
        found["Who is worst off?"].more
    )


@pytest.mark.parametrize("name", ["five", "two"])
def test_every_number_in_the_sentences_comes_from_the_run(name: str, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(name)
    evidence: Evidence = made.evidence
    names = sorted((site.name for site in evidence.sites), key=len, reverse=True)
    sentences = " ".join(text for found in findings(evidence) for text in (found.text, *found.more))
    for each in names:
        sentences = sentences.replace(each, "")
    sentences = sentences.replace("95 % interval", "").replace("1 interval in 20", "").replace("below 0.1", "")
    allowed = {written for number in numbers(made) for written in spellings(number)}
    said = re.findall(r"[−+]?\d+(?:\.\d+)?", sentences)
    assert len(said) > 20
    assert [number for number in said if number not in allowed] == []


def spellings(number: float) -> Iterator[str]:
    for places in (0, 1, 2, 3):
        for written in (f"{number:.{places}f}", f"{number:+.{places}f}", f"{100 * number:.0f}"):
            yield written.replace("-", "−")


def numbers(made: Any) -> Iterator[float]:
    """Every number of the summary, the first round and the counts; differences and means of them, by hand."""
    found = made.summary
    for row in found["sites"].values():
        yield from leaves([row["metrics"]["test"][key] for key in ("auroc", "ece")])
        yield from leaves(row["shift"])
    yield from leaves([found["pooled"]["test"][key] for key in ("auroc", "ece")])
    ends = (made.rounds[0]["pooled"]["incoming"], found["pooled"]["val"])
    yield from (end[key]["value"] for end in ends for key in ("auroc", "nll"))
    yield from (int(n) for one in made.rounds for why in one["excluded"].values() for n in re.findall(r"\d+", why))
    yield from range(max(len(found["sites"]), len(made.rounds)) + 1)
    yield from (n / 20 for n in range(len(found["sites"]) + 1))
    yield from (n / 40 for n in range(len(found["sites"]) + 1))
    p_values = sorted(s["shift"]["p_value"] for s in found["sites"].values() if s["shift"]["p_value"] is not None)
    yield from (p * (len(p_values) - rank) for rank, p in enumerate(p_values))
    for model in ("alone", "central"):
        pairs = [
            (row["metrics"]["test"]["auroc"], row[model]["test"]["auroc"])
            for row in found["sites"].values()
            if model in row and row["metrics"]["test"]["auroc"]["value"] is not None
        ]
        gaps = [gap(one, other) for one, other in pairs]
        yield from (number for row in gaps for number in row)
        yield from average(gaps) if gaps else ()
    before, after = made.rounds[0]["pooled"]["incoming"], found["pooled"]["val"]
    yield from (number for key in ("auroc", "nll") for number in gap(after[key], before[key]))
    for row in found["sites"].values():
        if row["metrics"]["test"]["auroc"]["value"] is not None:
            yield from gap(row["metrics"]["test"]["auroc"], found["pooled"]["test"]["auroc"])
        bins = row["reliability"].get("test", [])
        for key in ("confidence", "frequency") if bins else ():
            yield weighted([(b["count"], b[key]) for b in bins])
            yield weighted([(b["count"], b[key] if b["confidence"] >= 0.5 else 1 - b[key]) for b in bins])


def weighted(pairs: list[tuple[float, float]]) -> float:
    return sum(weight * value for weight, value in pairs) / sum(weight for weight, _ in pairs)


def leaves(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    elif isinstance(value, int | float):
        yield value
    elif isinstance(value, str) and "fewer than" in value:
        yield 10


def gap(one: Json, other: Json) -> tuple[float, float, float]:
    """Difference and limits after Zou and Donner, widened by both bounds."""
    value, bound = one["value"] - other["value"], one["bound"] + other["bound"]
    low = value - sqrt((one["value"] - one["low"]) ** 2 + (other["high"] - other["value"]) ** 2) - bound
    return value, low, value + sqrt((one["high"] - one["value"]) ** 2 + (other["value"] - other["low"]) ** 2) + bound


def average(gaps: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    value = sum(middle for middle, _, _ in gaps) / len(gaps)
    low = value - sqrt(sum((middle - low) ** 2 for middle, low, _ in gaps)) / len(gaps)
    return value, low, value + sqrt(sum((high - middle) ** 2 for middle, _, high in gaps)) / len(gaps)


def test_under_privacy_a_site_is_shifted_where_its_distance_stands_out_of_the_noise() -> None:
    near = {"mmd2": 0.02, "mmd2_noise": 0.015, "p_value": None}
    far = {"mmd2": 0.15, "mmd2_noise": 0.03, "p_value": None}
    sites = {"a": row(judged(told(0.8, 0.1)), shift=near), "b": row(judged(told(0.8, 0.1)), shift=far)}
    found = by_topic(data.evidence(STUDY, summary(sites, judged(told(0.8, 0.05))), [line(1, {})]))["Who is shifted?"]
    assert found.text == "b (MMD² 0.150, noise ±0.030): features lie off by more than twice the noise at 1 of 2 sites."
    assert found.level == "note"
    sites["b"]["shift"] = near
    found = by_topic(data.evidence(STUDY, summary(sites, judged(told(0.8, 0.05))), [line(1, {})]))["Who is shifted?"]
    assert (found.level, found.text) == ("open", "Nobody that can be told from the noise of privacy, among 2 sites.")
