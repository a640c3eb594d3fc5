"""What events cost: against dp-accounting, Opacus and closed forms; and how the figures that mislead come about."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binom, norm

from polyclinic.core.errors import PrivacyError
from polyclinic.core.privacy import accounting
from polyclinic.core.privacy.accounting import Sort, epsilon, largest, noise_for, renyi, rounded_up, sums
from polyclinic.core.privacy.events import Event, Unit

DELTA = 1e-5
RATE, EPOCH = 64 / 2000, 31
"""N = 2000 and batches of 64: 31 whole ones an epoch."""


def drawn(noise: float = 1.0, rate: float = RATE, steps: int = EPOCH, unit: Unit = "patient") -> Event:
    return Event("poisson_gaussian", noise, rate, steps, unit)


def one_gaussian(noise: float, delta: float) -> float:
    """Balle & Wang 2018, theorem 8: the exact epsilon of one Gaussian sum."""

    def excess(eps: float) -> float:
        a, b = 1 / (2 * noise), eps * noise
        return float(norm.cdf(a - b) - math.exp(eps) * norm.cdf(-a - b)) - delta

    return float(brentq(excess, 0.0, 500.0, xtol=1e-12))


def googles(*events: Event) -> float:
    """dp-accounting's own account, at its own finest setting."""
    import dp_accounting as dp
    from dp_accounting import pld

    accountant = pld.PLDAccountant()
    for event in events:
        gaussian = dp.GaussianDpEvent(event.noise)
        accountant.compose(
            gaussian if event.rate == 1.0 else dp.PoissonSampledDpEvent(event.rate, gaussian), event.steps
        )
    return float(accountant.get_epsilon(DELTA))


def opacus(noise: float, rate: float, steps: int) -> float:
    from opacus.accountants.analysis import rdp

    orders = [1 + x / 10 for x in range(1, 100)] + list(range(12, 64))
    found = rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=orders)
    return float(rdp.get_privacy_spent(orders=orders, rdp=found, delta=DELTA)[0])


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0, 30.0, 200.0])
@pytest.mark.parametrize("steps", [1, 40])
def test_gaussian_sums_cost_what_the_closed_form_says(noise: float, steps: int) -> None:
    exact = one_gaussian(noise / math.sqrt(steps), DELTA)
    found = epsilon([Event("gaussian", noise, steps=steps)], DELTA)
    assert exact <= found <= exact * 1.002 + 1e-5


def test_twenty_epochs_as_dp_accounting_has_them() -> None:
    """5.69 is Rényi's figure, dp-accounting's and Opacus's alike; loss distributions are tighter."""
    run = drawn(steps=20 * EPOCH)
    assert googles(run) <= epsilon([run], DELTA) <= googles(run) * 1.01
    assert epsilon([run], DELTA) == pytest.approx(5.13, rel=0.01)
    assert renyi(sums([(run, 1)]), DELTA) == pytest.approx(5.69, rel=0.01)
    assert opacus(1.0, RATE, 20 * EPOCH) == pytest.approx(5.69, rel=0.001)


def test_an_account_that_forgets_prints_the_first_epoch_for_ever() -> None:
    assert opacus(1.0, RATE, EPOCH) == pytest.approx(2.0, rel=0.005)
    assert opacus(1.0, RATE, EPOCH) <= renyi(sums([(drawn(), 1)]), DELTA) <= 2.06  # whole orders alone: a little above
    assert epsilon([drawn()] * 20, DELTA) == epsilon([drawn(steps=20 * EPOCH)], DELTA)  # ours does not


def test_shuffled_epochs_are_not_amplified() -> None:
    """Every image is in one batch of each epoch: twenty plain Gaussian sums, and no chance of not being drawn."""
    shuffled = Event("gaussian", 1.0, steps=20)
    assert renyi(sums([(shuffled, 1)]), DELTA) == pytest.approx(30.1, rel=0.005)
    assert epsilon([shuffled], DELTA) == pytest.approx(28.4, rel=0.005)


@pytest.mark.filterwarnings("ignore:Optimal order is the smallest alpha:UserWarning")  # Opacus's: it has no smaller
@pytest.mark.parametrize(("images", "naive", "tight"), [(2, 62, 11.7), (4, 751, 28.0), (8, 12546, 72.6)])
def test_a_patient_is_not_an_image(images: int, naive: float, tight: float) -> None:
    """Naively a patient is in a step if any image is, and then with all; how many are drawn is binomial."""
    assert opacus(1 / images, 1 - (1 - RATE) ** images, 20 * EPOCH) == pytest.approx(naive, rel=0.01)
    found = epsilon([drawn(steps=20 * EPOCH, unit="image")], DELTA, images=images)
    assert found == pytest.approx(tight, rel=0.01)
    assert epsilon([drawn(steps=20 * EPOCH)], DELTA, images=images) == epsilon([drawn(steps=20 * EPOCH)], DELTA)


def test_one_step_of_a_patient_with_three_images_by_integration() -> None:
    """The hockey-stick divergence of a binomial mixture against the noise alone, both ways, on a grid."""
    found = epsilon([drawn(0.8, 0.1, 1, "image")], DELTA, images=3)
    x = np.linspace(-12, 16, 400_001)
    step = x[1] - x[0]
    p = sum(binom.pmf(k, 3, 0.1) * norm.pdf(x, k, 0.8) for k in range(4))
    q = norm.pdf(x, 0, 0.8)

    def delta_at(eps: float) -> float:
        both = (p - math.exp(eps) * q, q - math.exp(eps) * p)
        return max(float(np.clip(one, 0, None).sum() * step) for one in both)

    assert delta_at(found) <= DELTA * 1.001
    assert delta_at(found * 0.99) > DELTA


def test_fifty_rounds_and_five_restarts_are_one_long_run() -> None:
    rounds = [drawn() for _ in range(50)]
    restarted = [event for start in range(0, 50, 10) for event in rounds[start : start + 10]]
    assert epsilon(restarted, DELTA) == epsilon([drawn(steps=50 * EPOCH)], DELTA)


def test_different_rates_and_noises_compose_as_dp_accounting_has_it() -> None:
    events = [drawn(1.0, 0.05, 40), drawn(2.0, 0.3, 7), Event("gaussian", 6.0, steps=3), drawn(0.8, 0.01, 200)]
    assert googles(*events) <= epsilon(events, DELTA) * 1.0001
    assert epsilon(events, DELTA) <= googles(*events) * 1.01


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.8, 1.5, 5.0]), st.sampled_from([0.02, 0.4, 1.0]), st.integers(1, 30)),
        min_size=1,
        max_size=5,
    )
)
def test_more_never_costs_less_and_order_does_not_matter(parts: list[tuple[float, float, int]]) -> None:
    events = [drawn(*part) for part in parts]
    whole = epsilon(events, DELTA)
    assert epsilon(events[::-1], DELTA) == pytest.approx(whole, rel=1e-3)
    assert epsilon(events[:-1], DELTA) <= whole * (1 + 1e-6)
    assert whole <= renyi(sums((event, 1) for event in events), DELTA) * 1.001
    assert epsilon(events, DELTA / 10) >= whole


@pytest.mark.parametrize(("noise", "rate", "images"), [(1.0, 0.032, 1), (0.6, 0.5, 1), (5.0, 1.0, 1), (1.0, 0.01, 4)])
def test_renyi_is_dp_accountings(noise: float, rate: float, images: int) -> None:
    import dp_accounting as dp
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(accounting.ORDERS)
    q = 1 - (1 - rate) ** images
    gaussian = dp.GaussianDpEvent(noise / images)
    accountant.compose(gaussian if q == 1.0 else dp.PoissonSampledDpEvent(q, gaussian), 17)
    assert renyi(((Sort(noise, rate, images), 17),), DELTA) == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-9)


@pytest.mark.parametrize(
    ("target", "rate", "steps"), [(1.0, RATE, 620), (8.0, RATE, 620), (0.05, 0.01, 100), (2.0, 1.0, 40), (60.0, 0.5, 2)]
)
def test_noise_is_the_least_that_is_enough(target: float, rate: float, steps: int) -> None:
    noise = noise_for(target, DELTA, rate, steps)
    assert epsilon([drawn(noise, rate, steps)], DELTA) <= target
    assert epsilon([drawn(noise * 0.995, rate, steps)], DELTA) > target
    assert noise == float(f"{noise:.4g}")
    if rate == 1.0:
        assert noise == pytest.approx(math.sqrt(steps) * _least(target), rel=1e-3)


def _least(target: float) -> float:
    return float(brentq(lambda noise: one_gaussian(noise, DELTA) - target, 0.1, 100.0))


@given(st.floats(1e-6, 1e6))
def test_rounding_goes_up(value: float) -> None:
    found = rounded_up(value)
    assert value <= found <= value * 1.0011
    assert found == float(f"{found:.4g}")


def test_the_largest_is_found_without_reckoning_all(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    honest = accounting.of_sums
    monkeypatch.setattr(accounting, "of_sums", lambda one, delta: asked.append(1) or honest(one, delta))
    groups = [sums([(drawn(noise), 1)]) for noise in (1.0, 1.05, 2.0, 4.0, 8.0)]
    assert largest([*groups, ()], DELTA) == honest(groups[0], DELTA)
    assert len(asked) == 2  # Rényi's bound of the second lies above the first, that of the others does not
    assert largest([], DELTA) == 0.0


def test_an_account_above_its_bound_is_believed_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "_by_losses", lambda together, delta: 100.0)
    with pytest.raises(PrivacyError, match="above Rényi's bound"):
        accounting.of_sums.__wrapped__(sums([(drawn(), 1)]), DELTA)


def test_a_patient_of_very_many_images_is_reckoned_by_renyi_alone() -> None:
    many = sums([(drawn(unit="image"), 40)])
    assert epsilon([drawn(unit="image")], DELTA, images=40) == renyi(many, DELTA)
    assert renyi(many, DELTA) > epsilon([drawn(unit="image")], DELTA, images=16)


def test_a_thousand_events_of_twenty_kinds_are_few_distributions() -> None:
    events = [drawn(1.0 + 0.01 * run) for run in range(20) for _ in range(50)]
    assert len(sums((event, 1) for event in events)) == 20
    assert epsilon(events, DELTA) == epsilon([drawn(1.0 + 0.01 * run, steps=50 * EPOCH) for run in range(20)], DELTA)
