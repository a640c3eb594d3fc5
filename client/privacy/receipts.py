"""What a site says of a round's cost: worked out from its ledger alone."""

from __future__ import annotations

from polyclinic.client.privacy.ledger import Ledger
from polyclinic.client.privacy.record import Reservation
from polyclinic.core.privacy.events import Event, Unit
from polyclinic.core.privacy.plan import UPDATE
from polyclinic.core.privacy.receipt import Receipt


def receipt(ledger: Ledger, reservation: Reservation, unit: Unit, delta: float) -> Receipt:
    """The receipt of a reservation, as the ledger stood when it was made: a repeated answer carries the same one."""
    record, number = ledger.record(), reservation.number
    costs = (
        list(reservation.charges),
        record.charged(reservation.question.study, number),
        record.charged(upto=number),
    )
    round_, study, site = (record.epsilon(charges, delta) for charges in costs)
    return Receipt(
        unit=unit,
        delta=delta,
        round=round_,
        study=max(study, round_),  # each is rounded up by itself
        site=max(site, study, round_),
        mechanism=mechanism(reservation),
        head=reservation.head,
        generator=reservation.generator,
    )


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
