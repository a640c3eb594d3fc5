"""What several commands say of a study, in plain words and the same ones."""

from __future__ import annotations

from typing import Any

from polyclinic.core.privacy.central import Spent, spent_in_words
from polyclinic.core.privacy.events import ADJACENCY
from polyclinic.core.study import Study


def course(study: Study) -> list[str]:
    """Sentences on how a study goes: rounds, who takes part, how updates are merged, how long anybody is waited for."""
    rounds, training = study.rounds, study.training
    length = f"{training.steps} batches" if training.steps else f"{training.epochs or 1} epoch(s)"
    who = f"{rounds.sites_per_round} drawn sites" if rounds.sites_per_round else "all sites"
    central, counts = study.central, "answer well"
    if central is not None and central.secret:
        who, counts = f"each of {central.sites} sites drawn by itself with rate {central.rate:g}", "can be asked"
    elif central is not None and central.bands > 1:
        who = f"{central.bands} groups of sites in turn"
    return [
        f"{rounds.count} rounds with {who}; a site trains {length} at batches of {training.batch_size}.",
        study.strategy.explain(),
        f"A round counts if {rounds.quorum:.0%} of the sites {counts}; nobody is waited for longer than "
        f"{rounds.deadline:,.0f} s. A site counts by {rounds.weight}, at most {rounds.weight_cap:,}.",
    ]


STAYS = (
    "Images, file names, patients' identifiers, the manifest, single predictions, single features, single gradients."
)
"""What does not leave a site."""


def heads(study: Study) -> list[str]:
    """A sentence on the task's head, unless a method puts another in its place."""
    replaced = any("head" in method.fills for method in study.adaptation)
    task: Any = study.task
    return [] if replaced else [task.trained(study.backbone.pooling)]


def beside(study: Study) -> list[str]:
    """Sentences on what leaves because of the methods, each in its own words."""
    facts = ((method.method, method.facts) for method in study.adaptation)
    return [f"Of this, because of '{n}': {told.travels}." for n, told in facts if told and told.travels != "nothing"]


def staying(study: Study) -> list[str]:
    """Sentences on what does not leave a site, what is its own included."""
    facts = ((method.method, method.facts) for method in study.adaptation)
    own = [
        f"A site's own, kept in its folder from round to round ('{name}'): {told.personal}."
        for name, told in facts
        if told is not None and told.personal != "nothing"
    ]
    return [STAYS, *own]


def privacy(study: Study) -> list[str]:
    """Sentences on what a study promises about privacy."""
    return [*by_patient(study), *by_site(study)] if study.privacy or study.central is None else by_site(study)


def by_site(study: Study) -> list[str]:
    """Sentences on noise at the server."""
    if (asked := study.central) is None:
        return []
    if asked.generator == "simulated":
        return ["Noise at the server is simulated, from the study's seed: no privacy."]
    noise = asked.multiplier(study.rounds.count)
    events = [event for n in range(1, study.rounds.count + 1) if (event := asked.event(n, noise))]
    spent = Spent.of(asked, events, asked.clip).document()
    kept = f"What a site changes is clipped to a norm of {asked.clip:g} ({asked.clipping}), all tensors together."
    return [f"Whole sites, by noise at the server: {spent['mechanism']}.", f"A run: {spent_in_words(spent)}", kept]


def by_patient(study: Study) -> list[str]:
    """Sentences on noise at the sites, or that there is none."""
    if (asked := study.privacy) is None:
        return [NO_PRIVACY]
    if asked.generator == "simulated":
        return ["Noise is simulated, from the study's seed: no privacy."]
    spend = f"at most ε = {asked.epsilon:g}" if asked.epsilon else f"what noise of {asked.noise:g} × the norm makes"
    share = asked.statistics_share
    others = f"at most {share:.0%} of that" if share else "nothing, for nothing but the update leaves"
    whole = "all pictures of a patient together" if asked.unit == "patient" else "each image by itself, not a patient"
    return [
        f"Differential privacy by {asked.unit} ({whole}; {ADJACENCY}), δ = {asked.delta:g}: a whole run costs those "
        f"who train {spend}, those behind the other figures {others}.",
        f"A step draws {asked.expected} {asked.unit}s on average; gradients are clipped to a norm of {asked.clip:g} "
        f"({asked.clipping}).",
        f"Patients are told apart by the manifest's column '{study.data.columns.patient}', and the ledger knows them "
        "by it: see that every study names the same one.",
        "Every site's own ledger says what was spent, over all runs and studies: polyclinic privacy show.",
    ]


NO_PRIVACY = "The weights and statistics that leave are not noised: this study gives no differential privacy."
