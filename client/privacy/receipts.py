"""What a site says of a round's cost: worked out from its ledger alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from polyclinic.client.privacy.ledger import Ledger
from polyclinic.client.privacy.record import Charge, Reservation
from polyclinic.core.privacy import accounting
from polyclinic.core.privacy.events import Event, Unit
from polyclinic.core.privacy.plan import UPDATE
from polyclinic.core.privacy.receipt import Receipt
from polyclinic.core.privacy.told import split_of


def receipt(ledger: Ledger, reservation: Reservation, unit: Unit, delta: float) -> Receipt:
    """The receipt of a reservation, as the ledger stood when it was made: a repeated answer carries the same one."""
    record, number = ledger.record(), reservation.number
    round_, study = (
        accounting.largest(by_unit(charges), delta)
        for charges in (list(reservation.charges), record.charged(reservation.question.study, number))
    )
    return Receipt(
        unit=unit,
        delta=delta,
        round=round_,
        study=max(study, round_),  # each is rounded up by itself
        mechanism=mechanism(reservation),
        head=reservation.head,
        generator=reservation.generator,
    )


def by_unit(charges: Sequence[Charge]) -> Iterator[accounting.Sums]:
    """What one unit in each split paid, at most, as it follows from the charges alone.

    Where a study met several cohorts, somebody may be in all of them, and in another split each time.
    """
    splits: dict[str, list[Charge]] = {}
    for charge in charges:
        splits.setdefault("train" if charge.what == UPDATE else split_of(charge.what), []).append(charge)
    one_each = all(len({charge.cohort for charge in group}) == 1 for group in splits.values())
    for group in splits.values() if one_each else [list(charges)]:
        yield accounting.sums((charge.event, 1) for charge in group)


def mechanism(reservation: Reservation) -> str:
    """In words: how the update was noised, and in how many other figures there is noise."""
    updates = [charge.event for charge in reservation.charges if charge.what == UPDATE]
    others = len(reservation.charges) - len(updates)
    said = [spoken(event) for event in updates]
    if others:
        said.append(f"Gaussian noise on {others} {'figure' if others == 1 else 'figures'}")
    return "; ".join(said)


def spoken(event: Event) -> str:
    """An event in words."""
    drawn = f"drawn by Poisson sampling at rate {event.rate:.4g}" if event.rate < 1.0 else "all"
    times = f"{event.steps} sums" if event.steps != 1 else "one sum"
    return f"Gaussian noise of {event.noise:.4g} × the clipping norm on {times} over {event.unit}s, {drawn}"
