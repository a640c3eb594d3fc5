"""Checks: silent over tasks, units and methods where all is well, and as rarely wrong as they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dp_accounting import dp_event

from polyclinic.core.errors import DataError, StudyError
from polyclinic.core.privacy.accounting import epsilon
from polyclinic.core.privacy.events import Event
from polyclinic.core.study import loads
from polyclinic.simulations.audit.checks import ALPHA, accountant, checks, poisson, sensitivity
from polyclinic.simulations.audit.pictures import joined, made_up
from polyclinic.simulations.audit.report import audit, largest
from tests.conftest import write_images
from tests.simulations.audit.conftest import MakeStudy
from tests.simulations.audit.planted import Forgetful

PROX = '[[adaptation]]\nmethod = "fedprox"\n'
KINDS = [
    {"task": "segmentation", "more": 'clipping = "automatic"\n'},
    {"task": "detection", "method": "houlsby"},
    {"task": "multilabel", "more": 'unit = "image"\n'},
    {"task": "multiclass", "knobs": PROX, "training": ""},
    {"method": "probe", "knobs": '[[adaptation]]\nmethod = "augment"\nflip = true\nrotate = 90.0\n'},
    {"method": "vpt", "more": 'clipping = "per_layer"\n'},
    {"method": "ia3", "more": 'unit = "image"\nclipping = "automatic"\n'},
    {"more": 'step = "opacus"\n', "noise": 0.3},
    {"method": "probe", "noise": 5.0},
]


@pytest.mark.audit
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_no_alarm_is_raised_without_reason(kind: dict[str, str], private: MakeStudy) -> None:
    found = list(checks(private(**kind), np.random.default_rng(5)))
    assert len(found) == 7
    assert all(one.passed for one in found), found


def test_samples_that_are_poisson_pass_as_often_as_is_said_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    wrong = sum(not poisson(rng.random((400, 12)) < 0.5, 0.5).passed for _ in range(1000))
    assert wrong <= 2  # of 1000, at a chance of 1e-4 each: more happen in one of five thousand such tests
    assert not poisson(rng.random((400, 12)) < 0.6, 0.5).passed  # more often than was said
    fixed = np.array([rng.permutation(12) < 6 for _ in range(400)])  # always six, anew in every step
    assert not poisson(fixed, 0.5).passed
    together = np.repeat(rng.random((400, 6)) < 0.5, 2, axis=1)  # two by two
    assert not poisson(together, 0.5).passed
    sticky = np.repeat(rng.random((200, 12)) < 0.5, 2, axis=0)  # the same in two steps
    assert not poisson(sticky, 0.5).passed
    assert ALPHA <= 1e-3


def test_one_neighbour_above_the_clip_is_enough() -> None:
    assert sensitivity({"one": 1.0, "two": 0.2}).passed
    failed = sensitivity({"one": 1.01, "two": 0.2})
    assert not failed.passed
    assert "(one)" in failed.figure


def test_the_second_accountant_agrees_with_the_first_and_is_none_of_ours() -> None:
    event = dp_event.PoissonSampledDpEvent(0.3, dp_event.GaussianDpEvent(0.9))
    ours = epsilon([Event("poisson_gaussian", 0.9, 0.3, 7)], 1e-5)
    assert accountant({event: 7}, 1e-5) == pytest.approx(ours, rel=0.01)


def test_made_up_patients_fit_their_study_and_join_others(private: MakeStudy) -> None:
    for task in ("binary", "multilabel", "segmentation", "detection"):
        study, rng = private(task=task), np.random.default_rng(0)
        own, more = (made_up(study, "site", {"train": counts}, rng) for counts in ([2, 1], [1, 1, 1]))
        both, first = joined(own, more)
        images = both.images("train")
        assert (first, len(images)) == (3, 6)
        assert both.sizes()["train"] == (6, 5)
        assert images.patients == tuple(row.patient for row in both.rows)
        np.testing.assert_array_equal(images.pixels[first:], more.images("train").pixels)
        assert len(images.targets) == 6
        assert len(both.images("val")) == 0


def test_where_no_site_would_train_nothing_else_is_tried(private: MakeStudy) -> None:
    found = list(checks(private(), np.random.default_rng(0), Forgetful))
    assert [(one.check, one.passed) for one in found] == [("gradients", False)]
    assert "head.bias" in found[0].figure


def test_a_study_without_privacy_has_no_claim(tiny_vit: Path) -> None:
    study = loads(f'[study]\nname = "x"\n[backbone]\nreference = "file:{tiny_vit}"\n[[adaptation]]\nmethod = "lora"\n')
    with pytest.raises(StudyError, match="no section"):
        audit(study, ("gradient",), 10)


def test_the_largest_site_is_audited(private: MakeStudy, tmp_path: Path) -> None:
    manifest = write_images(tmp_path, {"north": 8, "south": 12, "west": 6})
    assert largest(private(), manifest).site == "south"
    text = manifest.read_text().replace(",train,", ",val,")
    manifest.write_text(text)
    with pytest.raises(DataError, match="no training images"):
        largest(private(), manifest)
