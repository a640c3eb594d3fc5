"""Hostile statistics, each with the reason that it must be given."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from polyclinic.core.statistics.contents import Labels
from polyclinic.core.statistics.outcome import tally
from tests.faults.hostile.bench import Bend
from tests.faults.hostile.forge import ESCAPE, header, text

LEAST = -(2**63)
VAL = "incoming/val"
NAMES = [f"p{i}" for i in range(24)]
LABELS = Labels.of(np.array([0, 1] * 12), NAMES, ("0", "1"))
KEPT = {"kind", "classes", "seed", "exclusive"}
"""Fields that are configuration."""


def said(name: str, value: Any) -> Bend:
    """The honest reply with one more statistic, or another in its place, as JSON."""
    return header(lambda found: found["statistics"].update({name: value}))


def withheld(name: str, kind: str) -> Bend:
    """The honest reply that withholds one more statistic, or one in its place."""
    return said(name, {"kind": kind, "withheld": 10})


def field(name: str, **values: Any) -> Bend:
    """The honest reply with fields of one of its statistics replaced; of what it does not tell, nothing."""
    return header(lambda found: found["statistics"].get(name, {"fields": {}})["fields"].update(values))


def outcome(**values: Any) -> Bend:
    """The honest reply with fields of its outcome replaced."""
    return field(VAL, **values)


def other_outcome(**bins: int) -> Bend:
    """An outcome of another configuration."""
    half, loss = np.full(24, 0.5), np.full(24, 0.7)
    value = tally("binary", half, np.arange(24) % 2, NAMES, loss, **({"bins": 4, "score_bins": 16} | bins))
    return said(VAL, {"kind": "outcome", "fields": value.fields()})


def multiplied(name: str, factor: int) -> Bend:
    """An honest statistic so many times over: it passes every test of its inner sense."""

    def times(value: Any) -> Any:
        return [times(item) for item in value] if isinstance(value, list) else value * factor

    def change(found: dict[str, Any]) -> None:
        fields = found["statistics"].get(name, {"fields": {}})["fields"]
        fields.update({key: times(value) for key, value in fields.items() if key not in KEPT})

    return header(change)


NAMED: dict[str, tuple[Bend, str]] = {
    "free text as a name": (withheld("Jane Doe 1950", "outcome"), r"^'Jane Doe 1950': statistic was not agreed on$"),
    "escapes as a name": (withheld(ESCAPE, "outcome"), r"^'\\x1b\[2J\\u202egnp\.exe\\u200b': statistic was not agreed"),
    "half a character as a name": (withheld("\ud800", "outcome"), r"^'\\ud800': statistic was not agreed on$"),
    "a path as a name": (withheld("../../etc/passwd", "outcome"), r"'\.\./\.\./etc/passwd': statistic was not agreed"),
    "a look-alike name": (withheld("incoming/v\u0430l", "outcome"), r"^'incoming/v\\u0430l': statistic was not"),
    "a name of a megabyte": (withheld("y" * 2**20, "outcome"), r"^'y{79}: statistic was not agreed on$"),
    "a hundred thousand of them": (
        header(lambda h: h.update(statistics={str(i): {"kind": "outcome", "withheld": 10} for i in range(100_000)})),
        r"^statistics: more than 64 statistics$",
    ),
    "another kind": (said(VAL, {"kind": "labels", "fields": LABELS.fields()}), r"statistic of another kind: labels"),
    "another kind withheld": (withheld("describe/labels", "outcome"), r"statistic of another kind: outcome"),
    "an unknown kind": (said(VAL, {"kind": "spy", "fields": {}}), r"is no statistic of a known kind"),
    "a kind of escapes": (said(VAL, {"kind": ESCAPE, "fields": {}}), r"^is no statistic of a known kind"),
    "a kind of a list": (said(VAL, {"kind": [], "fields": {}}), r"is no statistic of a known kind"),
    "no table": (said(VAL, 5), r"is no statistic of a known kind"),
    "both told and withheld": (
        said(VAL, {"kind": "outcome", "fields": {"patients": 1}, "withheld": 1}), r"is no statistic of a known kind",
    ),
    "withheld for a text": (said(VAL, {"kind": "outcome", "withheld": "Jane Doe"}), r"withheld: is no number"),
    "withheld beyond belief": (said(VAL, {"kind": "outcome", "withheld": 2**31}), r"withheld: is no number"),
    "other bins": (other_outcome(bins=7), r"reliability: has another configuration"),
    "other score bins": (other_outcome(score_bins=32), r"scores: has another configuration"),
    "moments of fewer dimensions": (
        field("describe/features", first=[0] * 2, second=[2**24] * 3), r"first: has another configuration",
    ),
    "a kernel of another seed": (field("describe/kernel", seed=21), r"seed: has another configuration"),
    "a kernel of another size": (
        field("describe/kernel", first=[0] * 6, second=[2**20] * 21), r"first: has another configuration",
    ),
    "labels of more classes": (
        field("describe/labels", class_patients=[12, 12, 0], class_images=[12, 12, 0]), r"has another configuration",
    ),
    "labels of several a picture": (field("describe/labels", exclusive=0), r"exclusive: has another configuration"),
}  # fmt: skip
COUNTED: dict[str, tuple[Bend, str]] = {
    "free text in a field": (outcome(kind="Jane Doe"), r"kind: is unknown"),
    "free text for a count": (outcome(images="Jane Doe"), r"images: is no int"),
    "a field more": (outcome(note="Jane Doe"), r"'note': is no field of this statistic"),
    "a field of escapes more": (outcome(**{ESCAPE: 1}), r"^'\\x1b\[2J\\u202egnp\.exe\\u200b': is no field"),
    "a field less": (header(lambda h: h["statistics"][VAL]["fields"].pop("nll")), r"nll: is missing"),
    "fields no table": (header(lambda h: h["statistics"][VAL].update(fields=[1])), r"is no table of fields"),
    "negative counts": (outcome(confusion=[[-1, 13], [6, 6]]), r"confusion: has negative counts"),
    "negative patients": (outcome(patients=-1), r"patients: is no possible count"),
    "more patients than images": (outcome(patients=25), r"patients: are more than images"),
    "images beyond belief": (outcome(images=2**34 + 1), r"images: is no possible count"),
    "counts that do not add up": (outcome(confusion=[[1, 1], [1, 1]]), r"confusion: does not add up"),
    "counts that add up by overflow": (
        outcome(confusion=[[2**62, 2**62], [2**62, 2**62]]), r"confusion: does not add up",
    ),
    "scores that add up by overflow": (
        header(lambda h: h["statistics"][VAL]["fields"]["scores"][0][0].__setitem__(slice(0, 4), [2**62] * 4)),
        r"scores: do not add up",
    ),
    "a loss beyond belief": (outcome(nll=2**80), r"nll: is no possible sum"),
    "a loss of 4000 digits": (outcome(nll=10**4000), r"nll: is no possible sum"),
    "a fraction for a count": (outcome(images=24.0), r"images: is no int"),
    "true for a count": (outcome(images=True), r"images: is no int"),
    "NaN for a count": (outcome(nll=math.nan), r"nll: is no int"),
    "infinity for a count": (outcome(nll=math.inf), r"nll: is no int"),
    "NaN in a list": (outcome(sides=[[12, math.nan]]), r"sides: is no list of integers"),
    "beyond 64 bits": (outcome(sides=[[12, 2**70]]), r"sides: (is empty or has numbers|has rows .*) beyond bounds"),
    "at the top of 64 bits": (outcome(sides=[[12, 2**63 - 1]]), r"sides: has numbers beyond bounds"),
    "at the bottom of 64 bits": (outcome(sides=[[12, LEAST]]), r"sides: has numbers beyond bounds"),
    "at the bottom, among moments": (
        field("describe/features", second=[2**28, LEAST, 0, 2**28, 0, 2**28]), r"second: has numbers beyond bounds",
    ),
    "rows of unequal length": (outcome(scores=[[[1, 2], [1]]]), r"scores: has rows of unequal lengths"),
    "an empty list": (outcome(scores=[]), r"scores: is empty"),
    "lists nested deep": (
        text(lambda t: t.replace('"sides": [[', f'"sides": {"[" * 990}[[', 1).replace("]]", f"]]{']' * 990}", 1)),
        r"header is damaged|nested too deep|sides: has rows",
    ),
    "moments that cannot be": (field("describe/features", second=[0] * 6), r"second: is less than the first moment"),
    "moments beyond belief": (field("describe/features", first=[2**40] * 3), r"first: is beyond bounds"),
    "shares that do not add up": (field("describe/intensities", mass=[0] * 16), r"mass: does not add up"),
    "an outcome of 2^33 images": (multiplied(VAL, 2**28), r"/val: counts more than the 1048576 images that one site"),
    "labels of 2^33 images": (multiplied("describe/labels", 2**28), r"describe/labels: counts more than the 1048576"),
    "moments of 2^33 patients": (multiplied("describe/features", 2**28), r"describe/features: counts more than the"),
    "an outcome of minus 24 images": (multiplied(VAL, -1), r"is no possible count"),
}  # fmt: skip
