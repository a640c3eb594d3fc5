"""An offer in plain words for the people who answer for a site's data: what trains, what leaves, under which rules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from polyclinic.client.approvals import Decision
from polyclinic.client.home import Home
from polyclinic.client.offer import Offer
from polyclinic.core.envelope import REFUSAL_LIMIT
from polyclinic.core.explain import beside, course, heads, privacy, staying
from polyclinic.core.privacy.plan import demand, judged
from polyclinic.core.privacy.told import blanks, kind_of
from polyclinic.core.statistics.acquisition import VALUES, Acquisition
from polyclinic.core.statistics.contents import BINS, Intensities, Labels
from polyclinic.core.statistics.features import FeatureMoments
from polyclinic.core.statistics.kernel import KernelMeans
from polyclinic.core.statistics.monoid import Json, Statistic
from polyclinic.core.study import Study


@dataclass(frozen=True)
class Told:
    """A statistic that may leave.

    Attributes:
        name: under which it travels.
        kind: under which the site's policy knows it.
        when: it is told.
        what: it holds.
        numbers: how many whole numbers it is made of.
    """

    name: str
    kind: str
    when: str
    what: str
    numbers: int


def words(offer: Offer, home: Home, decided: Decision | None = None) -> dict[str, list[str]]:
    """Title → sentences; ``decided`` is what the site decided last about the study."""
    study, settings = offer.study, home.settings
    last, days = study.rounds.count + 1, (study.rounds.count + 1) * study.rounds.deadline / 86400
    return {
        f"Study {study.study.name}": [
            study.study.description or "It has no description.",
            study.task.explain(),
            f"Published by {settings.coordinator.host} on {_day(offer.published)}.",
        ],
        "What trains, and on what": list(_training(offer, home)),
        "Which code, which backbone": [
            f"Polyclinic {offer.version}, as it is installed here. No code travels: what is sent to this site is data.",
            f"The backbone is {study.backbone.reference}, SHA-256 {offer.backbone_sha256}.",
            f"The weights before round 1 have the digest {offer.initial}.",
        ],
        "How it goes, and how long": [
            *course(study),
            f"A last evaluation follows: {last} instructions in all, at most {days:.3g} days if every one takes its "
            "whole time.",
            "The coordinator may run an approved study more than once; a limit on rounds counts over all runs.",
        ],
        "What leaves this site": list(leaving(offer, home)),
        "What does not leave this site": staying(study),
        "Privacy": [
            *privacy(study),
            "Who sees the trained weights and the statistics could try to infer who was trained on.",
        ],
        "What is signed": [
            "Every reply and refusal, with this site's key, over site, study, run, round, nonce, base, version, kind "
            "and the SHA-256 of the body; every decision; every line of this site's book.",
            "The study and the receipt of every round, by the coordinator, with the key that this site pinned when it "
            "joined.",
        ],
        "This site's own limits": list(_limits(home, decided)),
        "Digest": [study.digest],
    }


def leaving(offer: Offer, home: Home) -> Iterator[str]:
    """A sentence on every field of a reply, with its size and the rule under which it leaves."""
    study, rules = offer.study, home.settings.policy
    yield "In every reply, in any case:"
    yield (
        f"  tensors: the trained weights, {len(offer.manifest)} tensors, {offer.bytes_up:,} bytes, in every round of "
        f"training: {_shapes(offer.manifest)}."
    )
    yield from (f"  {sentence}" for sentence in beside(study))
    yield (
        f"  weight: one number, what the update counts: its {study.rounds.weight}."
        if (study.rounds.weight != "equal")
        else "  weight: the number 1: all sites count the same."
    )
    yield "  sizes: numbers of images and of patients in train, val and test: six numbers."
    yield "  seconds: how long the work took: one number."
    if study.privacy is None:
        yield "  receipt: none, for the study has no privacy to account for."
    else:
        yield (
            "  receipt: what was spent of privacy by the round, by the study and by all that this site ever released, "
            "how it was noised, and the last line of this site's privacy ledger: three numbers, a sentence, a digest."
        )
    yield "  site, study, run, round, nonce, base: which instruction is answered, by whom; names and digests."
    yield "  version, kind, body: the seal's part of it, with a signature of 64 bytes."
    yield (
        f"Statistics, each only if it speaks for {rules.minimum_patients} patients or more (else: word that it is "
        "withheld), and only if this site's policy tells its kind:"
    )
    for told in statistics(study):
        state = "" if told.kind in rules.tell else " THIS SITE'S POLICY DOES NOT TELL IT."
        yield f"  {told.name} ({told.kind}), {told.when}: {told.what}; {told.numbers:,} whole numbers.{state}"
    yield (
        f"In place of a reply, a refusal: why, a sentence of at most 500 characters ({REFUSAL_LIMIT:,} bytes) that "
        "names no image, file or patient."
    )
    yield (
        "Beside replies: what the agent is doing (idle, working; study, run, round, since when), this site's version "
        "and clock, its decisions with their limits, its refusals, and heads of ledgers (digests)."
    )


def statistics(study: Study) -> list[Told]:
    """Every statistic that a reply may hold; counted on empty ones of the study's own configuration."""
    if study.privacy is not None:
        return list(_noised(study))
    task: Any = study.task
    monitoring = study.monitoring
    outcome = _count(task.blank(bins=monitoring.bins, score_bins=monitoring.score_bins))
    judged = task.told(bins=monitoring.bins, score_bins=monitoring.score_bins)
    dims, waves, k = monitoring.feature_dims, monitoring.kernel_features, len(task.classes)
    moments = FeatureMoments(0, np.zeros(dims, np.int64), np.zeros(dims * (dims + 1) // 2, np.int64))
    kernel = KernelMeans(0, 0, np.zeros(waves, np.int64), np.zeros(waves * (waves + 1) // 2, np.int64))
    intensities = Intensities(0, 0, np.zeros(BINS, np.int64))
    labels = Labels(0, 1, 0, np.zeros(k, np.int64), np.zeros(k, np.int64))
    once = "with the first reply, and again while another site's is missing"
    return [
        Told("incoming/val", "outcome", "in every round and at the end", f"the model as it came: {judged}", outcome),
        Told("incoming/test", "outcome", "at the end", f"the final model on test images: {judged}", outcome),
        Told("fitted/val", "outcome", "in every round", f"the model after training here: {judged}", outcome),
        Told("describe/features", "features", once, f"sums of {dims} projections of frozen features of the training "
             "images, one image a patient, and of their products", _count(moments)),
        Told("describe/kernel", "kernel", once, f"sums of {waves} random Fourier features of the same, and of their "
             "products", _count(kernel)),
        Told("describe/intensities", "intensities", once, f"a histogram of grey values in {BINS} bins",
             _count(intensities)),
        Told("describe/labels", "labels", once, f"images and patients in each of {k} classes", _count(labels)),
        Told("describe/acquisition", "acquisition", once, f"patients by {', '.join(VALUES)} of their first image, each "
             "one of a closed list or a range of numbers, values that too few share counted as withheld",
             _count(Acquisition.of((), ()))),
    ]  # fmt: skip


def _noised(study: Study) -> Iterator[Told]:
    if not demand(study).statistics_share:
        return
    listed = ", ".join(str(number) for number in judged(study)[:-1])
    val = f"in round{'s' if ',' in listed else ''} {listed} and at the end" if listed else "at the end"
    what = {
        "describe/kernel": ("once a run", "sums of random Fourier features of frozen features of validation images"),
        "describe/labels": ("once a run", "validation patients by class"),
        "incoming/val": (val, "the model as it came, on validation patients"),
        "incoming/test": ("at the end", "the final model, on test patients"),
    }
    for name, blank in blanks(study).items():
        when, said = what[name]
        noise = f"one bounded vector a {demand(study).unit}, summed, with Gaussian noise on every number"
        yield Told(name, kind_of(name), when, f"{said}: {noise}", _count(blank))


def _training(offer: Offer, home: Home) -> Iterator[str]:
    study = offer.study
    weights = sum(int(np.prod(row["shape"], dtype=np.int64)) for row in offer.manifest)
    yield f"This site's own images: those of '{home.settings.name}' in {home.manifest}, as train, val and test split."
    yield "What of the backbone is not named here stays as it was pretrained."
    yield from (method.explain() for method in study.adaptation)
    yield from heads(study)
    yield f"Together {weights:,} numbers travel."


def _limits(home: Home, decided: Decision | None) -> Iterator[str]:
    rules = home.settings.policy
    told = ", ".join(rules.tell) or "none"
    yield f"Policy: no statistic over fewer than {rules.minimum_patients} patients; kinds that are told: {told}."
    if rules.epsilon is not None:
        yield f"Privacy: at most ε = {rules.epsilon:g} for any patient, over all studies, at δ = {rules.delta:g}."
    if decided is None:
        yield "This study was not approved here: everything that it asks is refused."
    elif decided.verb == "withdraw":
        yield f"This site withdrew on {_day(decided.time)}: everything that it asks is refused."
    else:
        yield f"Approved on {_day(decided.time)} for polyclinic {decided.version}: {decided.limits.words()}."


def _shapes(manifest: Sequence[Any]) -> str:
    """Names and shapes; tensors that differ only in the number of their layer are told once."""
    groups: dict[str, int] = {}
    for row in manifest:
        shape = "×".join(str(n) for n in row["shape"])
        told = f"{re.sub(r'(?<=[.])[0-9]+(?=[.])', 'N', row['name'])} [{shape}]"
        groups[told] = groups.get(told, 0) + 1
    return "; ".join(name if count == 1 else f"{count} of {name}" for name, count in groups.items())


def _count(statistic: Statistic) -> int:
    """Whole numbers in all fields."""

    def numbers(value: Json) -> int:
        return sum(numbers(item) for item in value) if isinstance(value, list) else int(isinstance(value, int))

    return sum(numbers(value) for value in statistic.fields().values())


def _day(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d}"
