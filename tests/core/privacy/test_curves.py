"""What a plan says that privacy may cost: read off the measured curves, and nothing where nobody measured."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from polyclinic.core import study as studies
from polyclinic.core.privacy.curves import CURVES, Curve, curve

MADE = Curve("made up", {1.0: (0.3, 0.2, 0.4), 4.0: (0.1, 0.0, 0.2)})


def test_between_two_epsilons_it_is_read_on_a_logarithmic_scale_and_beyond_them_it_is_the_nearest() -> None:
    assert MADE.at(2.0) == pytest.approx((0.2, 0.1, 0.3))
    assert MADE.at(1.0) == MADE.at(0.1) == pytest.approx((0.3, 0.2, 0.4))
    assert MADE.at(4.0) == MADE.at(math.inf) == pytest.approx((0.1, 0.0, 0.2))


@pytest.mark.parametrize("found", CURVES.values(), ids=lambda found: found.of)
def test_every_mean_lies_between_its_extremes(found: Curve) -> None:
    for mean, least, most in found.lost.values():
        assert -0.1 <= least <= mean <= most < 0.5
    assert all(one < other for one, other in pairwise(sorted(found.lost)))


def test_a_study_finds_the_curve_of_what_it_trains() -> None:
    def of(method: str, more: str = "") -> Curve | None:
        return curve(studies.loads(f'[study]\nname = "x"\n{more}[[adaptation]]\nmethod = "{method}"\n'))

    assert [getattr(of(name), "of", None) for name in ("probe", "lora", "vpt")] == [
        "a linear probe", "low-rank factors", "prompts"
    ]  # fmt: skip
    assert of("full") is None
    assert of("probe", '[task]\nmethod = "segmentation"\nclasses = ["a"]\n') is None
