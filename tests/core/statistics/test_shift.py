"""Comparisons of sites against direct computation from all rows, and their rates of alarm by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg, stats

from polyclinic.core.errors import DataError, UpdateError
from polyclinic.core.statistics import features, kernel
from polyclinic.core.statistics.monoid import LIMIT
from polyclinic.core.statistics.shift import (
    FeatureMoments,
    Intensities,
    KernelMeans,
    Labels,
    classical_mds,
    frechet,
    label_shift,
    mmd2,
    prevalence,
    projection,
    psi,
    rest,
    standardise,
)

WIDTH = 48
COMMON = np.random.default_rng(5).normal(size=WIDTH)
PLANE = projection(WIDTH, 32, 20)


def backbone(rng, n, moved=0.0, common=2.0):
    """Features as of a backbone: a common part, directions of unequal spread; some directions ``moved``."""
    x = rng.normal(size=(n, WIDTH)) * 2 * 0.93 ** np.arange(WIDTH) + common * COMMON
    x[:, :8] += moved
    return standardise(x) @ PLANE


def means(rows):
    return KernelMeans.of(rows, 64, 20)


def test_standardised_rows_ignore_scale_and_offset():
    x = np.random.default_rng(0).normal(size=(5, 9))
    found = standardise(x)
    np.testing.assert_allclose(standardise(3 * x + 7), found, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)
    assert (standardise(np.ones((2, 4))) == 0).all()


def test_projections_keep_lengths_on_average_and_follow_their_seed():
    p = projection(200, 32, 3)
    np.testing.assert_allclose(p.T @ p, np.eye(32) * 200 / 32, atol=1e-9)
    assert (p == projection(200, 32, 3)).all()
    assert (p != projection(200, 32, 4)).any()
    rows = standardise(np.random.default_rng(0).normal(size=(500, 200)))
    assert ((rows @ p) ** 2).sum(axis=1).mean() == pytest.approx(1, rel=0.05)
    assert projection(8, 32, 1).shape == (8, 8)


def test_moments_are_those_of_the_rows():
    rows = backbone(np.random.default_rng(0), 300)
    moments = FeatureMoments.of(rows)
    np.testing.assert_allclose(moments.mean(), rows.mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(moments.covariance(), np.cov(rows.T), atol=1e-7)
    assert FeatureMoments.of(np.full((1, 2), 1e9)).first.tolist() == [2**26, 2**26]
    assert features.CUT**2 * 2**features.UNIT * LIMIT <= 2**62
    assert 2**kernel.UNIT * LIMIT <= 2**62
    with pytest.raises(DataError):
        FeatureMoments.of(np.array([[np.nan]]))
    with pytest.raises(DataError):
        KernelMeans.of(np.array([[np.inf]]), 8, 1)


def test_bures_distance_is_the_textbook_one():
    rng = np.random.default_rng(1)
    a, b = (np.cov(rng.normal(size=(5, 40)) * np.arange(1, 6)[:, None]) for _ in range(2))
    expected = np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert features.bures(a, b) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "m"), [(49, 400), (49, 49), (200, 1000)])
def test_frechet_is_about_nothing_without_shift_and_grows_with_it(n, m):
    rng = np.random.default_rng(2)
    still = [frechet(FeatureMoments.of(backbone(rng, n)), FeatureMoments.of(backbone(rng, m))) for _ in range(60)]
    moved = [frechet(FeatureMoments.of(backbone(rng, n, 1.0)), FeatureMoments.of(backbone(rng, m))) for _ in range(5)]
    assert abs(np.mean(still)) < np.std(still)
    assert min(moved) > max(still)


def test_frechet_comes_to_the_distance_of_the_truths():
    rng = np.random.default_rng(3)
    spread, wider = np.array([0.3, 0.2, 0.1, 0.05]), np.array([0.3, 0.3, 0.1, 0.1])
    expected = 0.2**2 + ((spread - wider) ** 2).sum()
    found = []
    for _ in range(80):
        a, b = rng.normal(size=(60, 4)) * spread, rng.normal(size=(90, 4)) * wider + [0.2, 0, 0, 0]
        found.append(frechet(FeatureMoments.of(a), FeatureMoments.of(b)))
    assert np.mean(found) == pytest.approx(expected, abs=3 * np.std(found) / np.sqrt(80) + 0.001)


def test_frechet_says_nothing_from_too_few_rows():
    rng = np.random.default_rng(4)
    many = FeatureMoments.of(rng.normal(size=(300, 32)) / 6)
    assert frechet(FeatureMoments.of(rng.normal(size=(10, 32)) / 6), many) is None
    for n in (0, 1):
        assert frechet(FeatureMoments.of(np.zeros((n, 32))), many) is None


def test_fourier_features_stand_for_the_mean_kernel():
    rows = backbone(np.random.default_rng(0), 40)
    z = kernel.fourier(rows, 8192, 1)
    np.testing.assert_allclose((z**2).sum(axis=1), 1)
    squared = ((rows[:, None] - rows[None]) ** 2).sum(axis=-1)
    expected = np.mean([np.exp(-squared / (2 * s**2)) for s in kernel.BANDWIDTHS], axis=0)
    assert np.abs(z @ z.T - expected).max() < 0.05


def test_mmd_is_the_unbiased_one_over_all_pairs():
    rng = np.random.default_rng(1)
    a, b = backbone(rng, 30, 1.0), backbone(rng, 17)
    x, y = kernel.fourier(a, 64, 20), kernel.fourier(b, 64, 20)
    within = [(g.sum() - np.trace(g)) / (len(g) * (len(g) - 1)) for g in (x @ x.T, y @ y.T)]
    expected = sum(within) - 2 * (x @ y.T).mean()
    assert mmd2(means(a), means(b))[0] == pytest.approx(expected, abs=1e-9)
    with pytest.raises(UpdateError, match="seed"):
        mmd2(means(a), KernelMeans.of(b, 64, 21))


@pytest.mark.parametrize(("n", "m"), [(50, 400), (50, 50)])
def test_false_alarms_come_at_their_rate_and_shifts_are_found(n, m):
    rng = np.random.default_rng(6)
    p = np.array([mmd2(means(backbone(rng, n)), means(backbone(rng, m)))[1] for _ in range(500)])
    low, high = stats.binom.interval(0.998, 500, 0.05)
    assert low <= (p < 0.05).sum() <= high
    assert (p < 0.5).mean() == pytest.approx(0.5, abs=0.08)
    found = [mmd2(means(backbone(rng, n, 1.5)), means(backbone(rng, m)))[1] for _ in range(20)]
    assert np.mean(np.array(found) < 0.05) > 0.9


def test_unbiased_squares_of_the_spectrum():
    rng = np.random.default_rng(7)
    truth = np.linalg.eigvalsh(np.cov(kernel.fourier(backbone(rng, 20_000), 64, 20).T))
    found = [(kernel._spectrum(means(backbone(rng, 60))) ** 2).sum() for _ in range(60)]
    assert np.mean(found) == pytest.approx((truth**2).sum(), rel=0.1)


def test_mmd_of_degenerate_sites():
    same = means(np.zeros((5, 3)))
    value, p = mmd2(same, same)
    assert value == pytest.approx(0, abs=1e-6)
    assert p == 1.0
    for n in (0, 1):
        assert mmd2(means(np.zeros((n, 3))), same) == (None, None)
    value, p = mmd2(means(np.eye(3)[:2]), means(np.eye(3)[1:]))
    assert 0 <= p <= 1


@pytest.mark.parametrize("skewness", [0.05, 0.5, 2.0])
def test_tails_are_pearsons(skewness):
    for x in (-1.9, -0.3, 0.0, 1.0, 4.0):
        assert kernel._tail(x, skewness) == pytest.approx(stats.pearson3.sf(x, skewness), rel=1e-6, abs=1e-12)


def test_intensities_weigh_every_image_the_same():
    pixels = np.array([[[0, 15], [16, 255]], [[128, 128], [128, 128]]], dtype=np.uint8)
    histogram = Intensities.of(pixels, "ab")
    shares = np.zeros(16)
    shares[[0, 1, 15, 8]] = [0.5, 0.25, 0.25, 1.0]
    np.testing.assert_allclose(histogram.mass / 2**28, shares)
    for bad in (pixels.astype(np.float32), pixels[:1]):
        with pytest.raises(DataError):
            Intensities.of(bad, "ab")


def test_psi_by_hand():
    dark, light = (Intensities.of(np.full((4, 3, 3), level, dtype=np.uint8), range(4)) for level in (10, 200))
    p, q = (1 + 1e-4) / (1 + 16e-4), 1e-4 / (1 + 16e-4)
    assert psi(dark, light) == pytest.approx(2 * (p - q) * np.log(p / q))
    assert psi(dark, dark) == 0
    assert psi(dark, rest(dark, dark)) is None


def test_labels_count_patients_and_images():
    labels = Labels.of(np.array([0, 0, 2, 2, 2]), ["a", "a", "a", "b", "b"], "xyz")
    assert labels.class_images.tolist() == [2, 0, 3]
    assert labels.class_patients.tolist() == [1, 0, 2]
    found = prevalence(labels)
    assert [figure.value for figure in found] == [0.5, 0.0, 1.0]
    assert all(figure.low <= figure.value <= figure.high for figure in found)
    many = Labels.of(np.array([[1, 0], [1, 1]]), "ab", "xy")
    assert many.class_patients.tolist() == [2, 1]
    empty = Labels.of(np.zeros(0, dtype=int), [], "xyz")
    assert [figure.why for figure in prevalence(empty)] == ["no patients"] * 3
    assert label_shift(labels, empty) is None
    for bad in (np.array([0, 3]), np.array([0, -1]), np.array([0]), np.array([[0, 1], [2, 0]])):
        with pytest.raises(DataError):
            Labels.of(bad, "ab", "xy")


def test_label_shift_is_the_two_proportion_test():
    def site(positives, n):
        return Labels.of((np.arange(n) < positives).astype(int), range(n), "xy")

    expected = stats.chi2_contingency([[20, 30], [40, 160]], correction=False).pvalue
    assert label_shift(site(20, 50), site(40, 200)) == pytest.approx(expected)
    assert label_shift(site(0, 50), site(0, 200)) == 1.0
    with pytest.raises(UpdateError):
        label_shift(site(1, 5), Labels.of(np.arange(3), range(3), "xyz"))


def test_label_shift_rarely_alarms_without_one():
    rng = np.random.default_rng(8)
    p = [
        label_shift(*(Labels.of(rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1]), range(n), "wxyz") for n in (50, 400)))
        for _ in range(400)
    ]
    assert np.mean(np.array(p) < 0.05) < 0.08


def test_others_are_the_total_without_one():
    rng = np.random.default_rng(9)
    for make in (FeatureMoments.of, means):
        sites = [make(backbone(rng, n)) for n in (3, 4, 5)]
        assert rest(sites[0] + sites[1] + sites[2], sites[1]) == sites[0] + sites[2]


def test_maps_keep_plane_distances():
    places = np.random.default_rng(0).normal(size=(7, 2))
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    found = classical_mds(distances)
    np.testing.assert_allclose(np.linalg.norm(found[:, None] - found[None], axis=-1), distances, atol=1e-9)
    turned = classical_mds(
        np.linalg.norm(places[:, None] @ [[0, -1], [1, 0]] - places[None] @ [[0, -1], [1, 0]], axis=-1)
    )
    np.testing.assert_allclose(found, turned, atol=1e-9)


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_maps_of_few_sites(size):
    found = classical_mds(np.ones((size, size)) - np.eye(size))
    assert found.shape == (size, 2)
    assert np.isfinite(found).all()
    if size == 2:
        np.testing.assert_allclose(found, [[0.5, 0], [-0.5, 0]], atol=1e-12)
