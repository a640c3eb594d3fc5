"""Whitening and alignment against NumPy and SciPy; the federation's moments against those of all images together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import fractional_matrix_power, sqrtm
from scipy.spatial.distance import cdist
from torch import nn

from polyclinic.core import study as studies
from polyclinic.core.errors import StudyError
from polyclinic.core.statistics.features import standardise
from polyclinic.core.statistics.kernel import BANDWIDTHS
from polyclinic.core.study import Study
from polyclinic.models.adaptations.representation_alignment import Coral, FourierMeans, Mmd
from polyclinic.models.adaptations.representation_whitening import Scaled, scale
from polyclinic.models.contracts import Batch, Objective
from polyclinic.models.export import load_adapted, write_adapter
from polyclinic.models.network import build, plain
from polyclinic.strategies.mean import MeanStrategy
from tests.conftest import study_text
from tests.models.begun import begun
from tests.models.pooled import members, rounds, together

N, WIDTH = 40, 6


def study_on(weights: Path, method: str, more: str = "", knobs: str = "") -> Study:
    text = study_text(weights, f'[[adaptation]]\nmethod = "{method}"\n{knobs}\n{more}')
    return studies.loads(text.replace("[[adaptation]]", 'pooling = "mean"\n[[adaptation]]', 1))


def rows(seed: int = 0, count: int = N) -> np.ndarray:
    """[N, WIDTH], correlated, of unequal scales, off the origin."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, WIDTH)) @ rng.normal(size=(WIDTH, WIDTH)) + rng.normal(size=WIDTH)


def set_to(neck: Scaled, x: np.ndarray, seen: float = 0.7) -> None:
    second = x.T @ x / len(x) if neck.second.dim() == 2 else (x**2).mean(axis=0)
    with torch.no_grad():
        neck.mean.copy_(torch.tensor(seen * x.mean(axis=0)))
        neck.second.copy_(torch.tensor(seen * second))
        neck.seen.fill_(seen)
    neck.renew()


def test_whitened_features_have_the_identity_for_covariance_and_are_the_nearest_such_ones() -> None:
    x = rows()
    neck = Scaled(WIDTH, 0.0, full=True)
    set_to(neck, x)
    with torch.no_grad():
        y = neck(torch.tensor(x).float()).double().numpy()
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(y.T, bias=True), np.eye(WIDTH), atol=1e-3)
    expected = fractional_matrix_power(np.cov(x.T, bias=True), -0.5)
    np.testing.assert_allclose(neck.turn.numpy(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_shrinkage_is_towards_the_mean_variance(shrinkage: float) -> None:
    covariance = np.cov(rows().T, bias=True)
    target = np.trace(covariance) / WIDTH * np.eye(WIDTH)
    expected = np.linalg.inv(sqrtm((1 - shrinkage) * covariance + shrinkage * target).real)
    np.testing.assert_allclose(scale(torch.tensor(covariance), shrinkage).numpy(), expected, rtol=1e-6, atol=1e-8)
    variances = np.diag(covariance)
    one = 1 / np.sqrt((1 - shrinkage) * variances + shrinkage * variances.mean())
    np.testing.assert_allclose(scale(torch.tensor(variances), shrinkage).numpy(), one, rtol=1e-9)


def test_standardised_features_are_what_scikit_learn_makes_of_them() -> None:
    from sklearn.preprocessing import StandardScaler

    x = rows()
    neck = Scaled(WIDTH, 0.0, full=False)
    set_to(neck, x)
    with torch.no_grad():
        y = neck(torch.tensor(x).float()).numpy()
    np.testing.assert_allclose(y, StandardScaler().fit_transform(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("full", [True, False])
def test_nothing_is_blown_up_that_does_not_vary_and_nothing_changes_unseen(full: bool) -> None:
    x = rows()
    x[:, 2] = 1.5
    neck = Scaled(WIDTH, 0.0, full=full)
    given = torch.tensor(x).float()
    with torch.no_grad():
        assert torch.equal(neck(given), given)
        set_to(neck, x)
        y = neck(given)
        assert torch.isfinite(y).all()
        assert y.abs().max() < 10
        neck.seen.zero_()
        neck.renew()
        assert torch.equal(neck(given), given)
        set_to(neck, x * 0)
        assert torch.equal(neck(given), given)


@pytest.mark.parametrize("method", ["standardise", "whiten", "coral"])
@pytest.mark.parametrize("strategy", ["mean", "exact"])
def test_the_federations_moments_are_those_of_all_images_in_one_place(
    method: str, strategy: str, tiny_vit: Path, tiny_manifest: Path
) -> None:
    study = study_on(tiny_vit, method, f'[[adaptation]]\nmethod = "fedprox"\n[strategy]\nmethod = "{strategy}"\n')
    cohort, place = members(study, tiny_manifest), "coral" if method == "coral" else "neck"
    before, updates, after = rounds(study, cohort, 2)
    residuals = {name: array for name, array in before.items() if name.endswith(".residual")}
    x, _, _ = together(study, cohort, [{**update.tensors, **residuals} for update in updates], raw=True)
    assert after[f"{place}.seen"] == pytest.approx(1.0)
    np.testing.assert_allclose(after[f"{place}.mean"], x.mean(axis=0), rtol=1e-4, atol=1e-5)
    second = (x**2).mean(axis=0) if method == "standardise" else x.T @ x / len(x)
    np.testing.assert_allclose(after[f"{place}.second"], second, rtol=1e-4, atol=1e-5)


def test_a_probes_whitened_features_are_white_over_all_sites(tiny_vit: Path, tiny_manifest: Path) -> None:
    text = study_text(tiny_vit, '[[adaptation]]\nmethod = "whiten"\nshrinkage = 0.0\n')
    lora = '[[adaptation]]\nmethod = "lora"\nrank = 2\nalpha = 4\n'
    text = text.replace(lora, 'pooling = "mean"\n[[adaptation]]\nmethod = "probe"\n')
    study = studies.loads(text)
    cohort = members(study, tiny_manifest)
    _, _, after = rounds(study, cohort, 1)
    y, _, _ = together(study, cohort, [after] * 3)
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-2)
    eigenvalues = np.linalg.eigvalsh(np.cov(y.T, bias=True))
    assert (eigenvalues < 1.05).all()
    assert (eigenvalues > 0.95).sum() > 20  # of 32; the others vary less than float32 can say
    _, _, again = rounds(study, cohort, 2)
    np.testing.assert_allclose(again["neck.mean"], after["neck.mean"], rtol=1e-6)  # measured before the neck


def test_a_site_of_too_few_patients_tells_nothing_and_the_others_count(tiny_vit: Path, tiny_manifest: Path) -> None:
    for method, place in (("whiten", "neck"), ("coral", "coral"), ("mmd", "mmd")):
        study = study_on(tiny_vit, method, knobs="minimum_patients = 24")  # south has 20
        cohort = members(study, tiny_manifest)
        _, updates, after = rounds(study, cohort, 1)
        north, south, west = (update.tensors for update in updates)
        assert not south[f"{place}.mean"].any()
        assert after[f"{place}.seen"] == pytest.approx(54 / 74)
        expected = (24 * north[f"{place}.mean"] + 30 * west[f"{place}.mean"]) / 54
        np.testing.assert_allclose(after[f"{place}.mean"] / after[f"{place}.seen"], expected, rtol=1e-4, atol=1e-6)


def total(model: nn.Module, batch: Batch) -> torch.Tensor:
    return batch.output.sum()


def value(objective: Objective, model: nn.Module, x: np.ndarray) -> tuple[float, np.ndarray]:
    """(loss less that without alignment, gradient)."""
    given = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    loss = objective(model, Batch(given, given, torch.ones(2), torch.zeros(2)))
    loss.backward()
    assert given.grad is not None
    return loss.item() - 2.0, given.grad.numpy()


def test_coral_is_the_papers_equation() -> None:
    x, federation = rows(1, 9), rows(2)
    seen = 0.6
    anchor = {
        "coral.mean": torch.tensor(seen * federation.mean(axis=0)),
        "coral.second": torch.tensor(seen * federation.T @ federation / N),
        "coral.seen": torch.tensor([seen]).double(),
    }
    objective = Coral(weight=0.5).build().objective(total, begun(anchor=anchor))
    loss, gradient = value(objective, nn.Identity(), x)
    apart = np.cov(x.T) - np.cov(federation.T, bias=True)
    assert loss == pytest.approx(0.5 * (apart**2).sum() / (4 * WIDTH**2), rel=1e-4)
    # Sun and Saenko 2016, equation 4: 1/(d²(n−1)) · (Xᵀ − (1ᵀX)ᵀ1ᵀ/n)ᵀ-terms times the difference
    expected = 0.5 * (x - x.mean(axis=0)) @ apart / (WIDTH**2 * (len(x) - 1))
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)
    one = torch.ones((1, WIDTH))
    assert objective(nn.Identity(), Batch(one, one, torch.ones(2), torch.zeros(2))).item() == 2.0


def test_mmd_is_that_of_the_gaussian_kernels() -> None:
    x, federation = rows(1, 9), rows(2)
    model = nn.Module()
    model.mmd = FourierMeans(WIDTH, 4096, 5)
    z = model.mmd(torch.tensor(federation).float()).mean(dim=0)
    anchor = {"mmd.mean": 0.6 * z, "mmd.seen": torch.tensor([0.6])}
    loss, gradient = value(Mmd(weight=0.5, features=4096).build().objective(total, begun(anchor=anchor)), model, x)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        apart = cdist(standardise(a), standardise(b), "sqeuclidean")
        return float(np.mean([np.exp(-apart / (2 * width**2)).mean() for width in BANDWIDTHS]))

    exact = kernel(x, x) + kernel(federation, federation) - 2 * kernel(x, federation)
    assert loss == pytest.approx(0.5 * exact, rel=0.1)
    assert np.abs(gradient).max() > 0


def test_the_federations_fourier_means_are_those_of_all_images_in_one_place(
    tiny_vit: Path, tiny_manifest: Path
) -> None:
    study = study_on(tiny_vit, "mmd")
    cohort = members(study, tiny_manifest)
    _, updates, after = rounds(study, cohort, 2)
    x, _, _ = together(study, cohort, [update.tensors for update in updates])
    w = build(study).network.mmd.frequencies.double().numpy()  # type: ignore[union-attr,operator]
    angles = standardise(x) @ w.T
    z = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / np.sqrt(len(w))
    np.testing.assert_allclose(after["mmd.mean"], z.mean(axis=0), rtol=1e-4, atol=1e-5)
    assert after["mmd.seen"] == pytest.approx(1.0)


def test_frequencies_are_the_same_at_every_site_and_others_under_another_seed(tiny_vit: Path) -> None:
    study = study_on(tiny_vit, "mmd")
    one, again, other = (build(each).network.mmd.frequencies for each in (study, study, study.with_seed(9)))  # type: ignore[union-attr]
    assert torch.equal(one, again)  # type: ignore[arg-type]
    assert not torch.equal(one, other)  # type: ignore[arg-type]


def test_in_round_one_nothing_is_aligned_and_features_stay_as_they_are(tiny_vit: Path) -> None:
    for method in ("coral", "mmd"):
        study = study_on(tiny_vit, method)
        adapted = build(study)
        anchor = adapted.write(adapted.read())
        assert adapted.chain.objective(total, begun(anchor=anchor)) is total


def test_while_a_site_trains_the_neck_stays_what_arrived(tiny_vit: Path, tiny_manifest: Path) -> None:
    study = study_on(tiny_vit, "whiten")
    cohort = members(study, tiny_manifest)
    _, updates, after = rounds(study, cohort, 2)
    fold = MeanStrategy().init(after)
    for update in updates:
        fold = MeanStrategy().add(fold, update)
    np.testing.assert_array_equal(MeanStrategy().finish(fold)["neck.second"], after["neck.second"])
    adapted = build(study)
    adapted.write(after)
    turn = adapted.network.neck.turn.clone()  # type: ignore[union-attr,operator]
    with torch.no_grad():
        adapted.network.neck.second.mul_(3.0)  # type: ignore[union-attr,operator]
    assert torch.equal(adapted.network.neck.turn, turn)  # type: ignore[arg-type]
    adapted.write(adapted.read())
    assert not torch.equal(adapted.network.neck.turn, turn)  # type: ignore[arg-type]


def test_what_is_saved_whitens_as_it_did(tiny_vit: Path, tiny_manifest: Path, tmp_path: Path) -> None:
    study = study_on(tiny_vit, "whiten")
    _, _, after = rounds(study, members(study, tiny_manifest), 2)
    write_adapter(study, after, tmp_path / "adapter", plain(study).backbone.sha256)
    adapted = build(study)
    adapted.write(after)
    pixels = torch.rand((3, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(load_adapted(study, tmp_path / "adapter")(pixels), adapted.network(pixels))


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        ("whiten", "standardise", "at the model's neck, which 'standardise' does, too"),
        ("coral", "whiten", "at the model's neck, which 'coral' needs as it is"),
        ("whiten", "mmd", "'mmd' needs as it is"),
        ("whiten", "fedproto", "'fedproto' needs as it is"),
        ("prototypes", "standardise", "'prototypes' needs as it is"),
    ],
)
def test_necks_that_fight_and_what_a_neck_would_spoil_are_refused(
    one: str, other: str, why: str, tiny_vit: Path
) -> None:
    with pytest.raises(StudyError, match=why):
        study_on(tiny_vit, one, f'[[adaptation]]\nmethod = "{other}"\n')
    study_on(tiny_vit, "coral", '[[adaptation]]\nmethod = "mmd"\n[[adaptation]]\nmethod = "fedproto"\n')
