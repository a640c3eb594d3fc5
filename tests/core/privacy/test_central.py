"""What noise at the server costs a site, by Google's own accountant; and every study that is refused, and why."""

from __future__ import annotations

import math

import dp_accounting as dp
import pytest
from dp_accounting import pld

from polyclinic.core import explain
from polyclinic.core import study as studies
from polyclinic.core.errors import StudyError
from polyclinic.core.privacy.central import Central, Spent, spent_in_words
from polyclinic.core.privacy.events import Event
from polyclinic.core.study import Study
from polyclinic.server.live.publish import publish

DELTA = 1e-5


def study(
    central: str = "noise = 1.0", rounds: str = 'weight = "equal"', extra: str = "", method: str = "lora"
) -> Study:
    return studies.loads(
        f'[study]\nname = "x"\n[[adaptation]]\nmethod = "lora"\n{extra}\n'
        f"[rounds]\n{rounds}\n[central]\nsites = 100\n{central}\n".replace('"lora"', f'"{method}"', 1)
    )


def googles(noise: float, rate: float, steps: int) -> float:
    event: dp.DpEvent = dp.GaussianDpEvent(noise)
    accountant = pld.PLDAccountant()
    accountant.compose(dp.PoissonSampledDpEvent(rate, event) if rate < 1 else event, steps)
    return float(accountant.get_epsilon(DELTA))


@pytest.mark.parametrize(("noise", "rate", "rounds"), [(1.0, 1.0, 1), (1.0, 0.1, 20), (0.7, 0.02, 50), (3.0, 1.0, 30)])
def test_epsilon_is_googles_for_the_composed_events(noise: float, rate: float, rounds: int) -> None:
    terms = Central(sites=1000, noise=noise, rate=rate)
    events = [event for n in range(1, rounds + 1) if (event := terms.event(n, noise))]
    assert len(events) == rounds
    assert all(event.unit == "site" for event in events)
    spent = Spent.of(terms, events, 1.0)
    assert spent.study == pytest.approx(googles(noise, rate, rounds), rel=0.01)
    assert spent.known == pytest.approx(googles(noise, 1.0, rounds), rel=0.01)
    assert spent.study <= spent.known


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_noise_from_an_epsilon_costs_that_epsilon(rate: float) -> None:
    noise = Central(sites=1000, epsilon=3.0, rate=rate).multiplier(25)
    assert 2.97 <= googles(noise, rate, 25) <= 3.0 * 1.001


@pytest.mark.parametrize(("bands", "rounds"), [(2, 7), (3, 9), (8, 8)])
def test_groups_in_turn_are_charged_once_a_turn_and_before_they_answer(bands: int, rounds: int) -> None:
    terms = Central(sites=100, noise=1.0, mechanism="banded", bands=bands)
    events = [terms.event(n, 1.0) for n in range(1, rounds + 1)]
    for group in range(bands):
        for now in range(1, rounds + 1):
            answered = sum((n - 1) % bands == group for n in range(1, now + 1))
            assert answered <= sum(event is not None for event in events[:now])
    assert sum(event is not None for event in events) == math.ceil(rounds / bands)


def test_events_of_sites_travel_and_nobody_else_may_claim_them() -> None:
    event = Event("gaussian", 1.0, 1.0, 3, "site")
    assert Event.read(event.document()) == event
    with pytest.raises(StudyError, match="unit"):
        studies.loads('[study]\nname = "x"\n[[adaptation]]\nmethod = "lora"\n[privacy]\nnoise = 1.0\nunit = "site"\n')


def test_a_study_without_the_section_has_the_digest_that_it_always_had() -> None:
    plain = studies.loads('[study]\nname = "x"\n[[adaptation]]\nmethod = "lora"\n')
    assert b"central" not in plain.canonical
    with_it = study()
    assert with_it.digest != plain.digest
    assert studies.loads(with_it.toml()).digest == with_it.digest


SCAFFOLD = (
    '[[adaptation]]\nmethod = "scaffold"\n'
    '[training]\noptimiser = "sgd"\nmomentum = 0.0\nweight_decay = 0.0\nclip_norm = "none"'
)
REFUSED = {
    "unknown sensitivity": ({"extra": '[strategy]\nmethod = "exact"'}, "what one site can change is unknown"),
    "weights": ({"rounds": 'weight = "images"'}, "sites that count by images differ"),
    "fixed samples": ({"rounds": 'weight = "equal"\nsites_per_round = 3'}, "each must be drawn by itself"),
    "both": ({"central": "noise = 1.0\nepsilon = 2.0"}, "one of them"),
    "neither": ({"central": ""}, "one of them"),
    "delta": ({"central": "noise = 1.0\ndelta = 0.01"}, "below 1 / sites"),
    "bands without banded": ({"central": "noise = 1.0\nbands = 3"}, "needs bands"),
    "banded without bands": ({"central": 'noise = 1.0\nmechanism = "banded"'}, "needs bands"),
    "banded and drawn": ({"central": 'noise = 1.0\nmechanism = "banded"\nbands = 2\nrate = 0.5'}, "draws nobody"),
    "banded, adaptive": (
        {"central": 'noise = 1.0\nmechanism = "banded"\nbands = 2\nclipping = "adaptive"'},
        "keep it fixed",
    ),
    "more bands than rounds": (
        {"central": 'noise = 1.0\nmechanism = "banded"\nbands = 20', "rounds": 'weight = "equal"\ncount = 10'},
        "some would never be asked",
    ),
    "control variates": ({"extra": SCAFFOLD}, "plain mean over sites"),
    "means": ({"extra": '[[adaptation]]\nmethod = "harmonise_histogram"'}, "must stay the means"),
    "a fingerprint": ({"method": "pissa"}, "the very fingerprint"),
    "faint noise": ({"central": "noise = 0.01"}, "noise"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_would_not_hold_is_refused_when_the_study_is_read(why: str) -> None:
    given, reason = REFUSED[why]
    with pytest.raises(StudyError, match=reason):
        study(**given)


def test_a_live_federation_does_not_publish_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(StudyError, match="signed receipts that name who took part"):
        publish(study(), tmp_path / "initial", None)  # type: ignore[arg-type]


def test_words_name_unit_adjacency_and_what_is_not_covered_and_simulated_noise_gives_no_privacy() -> None:
    said = " ".join(explain.privacy(study("noise = 1.0\nrate = 0.1")))
    for words in ("by site, add or remove one", "δ = 1e-05", "who knows who was asked", "Not covered: figures"):
        assert words in said
    assert "no privacy" in " ".join(explain.privacy(study('noise = 1.0\ngenerator = "simulated"')))
    simulated = Central(sites=10, noise=1.0, generator="simulated")
    told = Spent.of(simulated, [Event("gaussian", 1.0, unit="site")], 1.0).document()
    assert spent_in_words(told).startswith("simulated noise: no privacy")
