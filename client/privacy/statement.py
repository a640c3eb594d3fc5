"""What a ledger comes to: spent and left, by cohort and study, worked out from its entries at any delta."""

from __future__ import annotations

from typing import Any

from polyclinic.client.privacy.record import Charge, Record

Json = dict[str, Any]


def statement(record: Record, delta: float, limit: float | None = None) -> Json:
    """Everything that was spent, as JSON.

    ``epsilon`` is the most for any patient; ``studies`` and ``cohorts`` say it of one study, or of those in one cohort
    (with what they paid elsewhere); ``spent`` of a study within a cohort. These do not add up: epsilons never do.
    """
    charges, studies = record.charged(), dict.fromkeys(one.question.study for one in record.reserved.values())
    charged = dict.fromkeys(charge.cohort for charge in charges)
    epsilon = record.epsilon(charges, delta)
    return {
        "delta": delta,
        "unit": "patient",
        "epsilon": epsilon,
        "limit": limit,
        "left": None if limit is None else max(0.0, limit - epsilon),
        "simulated": any(one.generator == "simulated" for one in record.reserved.values()),
        "head": record.last.digest if record.last else None,
        "studies": [_study(record, study, delta) for study in studies],
        "cohorts": [_cohort(record, cohort, charges, list(studies), delta) for cohort in charged],
    }


def _study(record: Record, study: str, delta: float) -> Json:
    made = [one for one in record.reserved.values() if one.question.study == study]
    return {
        "study": study,
        "epsilon": record.epsilon(record.charged(study), delta),
        "runs": len({one.question.run for one in made}),
        "rounds": len({(one.question.run, one.question.round) for one in made}),
        "reservations": len(made),
        "simulated": any(one.generator == "simulated" for one in made),
        "first": min(record.times[one.number] for one in made),
        "last": max(record.times[one.number] for one in made),
    }


def _cohort(record: Record, digest: str, charges: list[Charge], studies: list[str], delta: float) -> Json:
    cohort = record.cohorts[digest]

    def here(study: str) -> list[Charge]:
        return [charge for charge in record.charged(study) if charge.cohort == digest]

    return {
        "cohort": digest,
        "patients": len(cohort.members),
        "images": cohort.images,
        "what": sorted({charge.what for charge in charges if charge.cohort == digest}),
        "epsilon": record.epsilon(charges, delta, among=digest),
        "spent": {study: record.epsilon(here(study), delta, among=digest) for study in studies if here(study)},
    }
