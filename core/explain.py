"""What several commands say of a study, in plain words and the same ones."""

from __future__ import annotations

from polyclinic.core.study import Study


def course(study: Study) -> list[str]:
    """Sentences on how a study goes: rounds, who takes part, how updates are merged, how long anybody is waited for."""
    rounds, training = study.rounds, study.training
    length = f"{training.steps} batches" if training.steps else f"{training.epochs or 1} epoch(s)"
    who = f"{rounds.sites_per_round} drawn sites" if rounds.sites_per_round else "all sites"
    return [
        f"{rounds.count} rounds with {who}; a site trains {length} at batches of {training.batch_size}.",
        study.strategy.explain(),
        f"A round counts if {rounds.quorum:.0%} of the sites answer well; nobody is waited for longer than "
        f"{rounds.deadline:,.0f} s. A site counts by {rounds.weight}, at most {rounds.weight_cap:,}.",
    ]


STAYS = "Images, file names, patients' identifiers, the manifest, single predictions, single features, gradients."
"""What does not leave a site."""
NO_PRIVACY = "The weights and statistics that leave are not noised: this study gives no differential privacy."
