"""Harmonisation against NumPy: histogram matching, FedDG's amplitude mixing, and ComBat as its authors compute it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyclinic.core import study as studies
from polyclinic.core.errors import StudyError
from polyclinic.core.study import Study
from polyclinic.models.adaptation import Adaptation, Trained
from polyclinic.models.adaptations.data_combat import Combat, Freed, shrunken
from polyclinic.models.adaptations.data_histogram import HarmoniseHistogram, Matched, mapped, quantiles
from polyclinic.models.adaptations.data_spectrum import ExchangeAmplitude, amplitudes, mixed
from polyclinic.models.contracts import Views
from polyclinic.models.network import Adapted, build
from polyclinic.models.tasks.classification import Classification
from tests.models.begun import begun

DONE = Trained(0.1, 1)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def bytes_of(count: int, seed: int, *, channels: int = 1, low: int = 1, high: int = 256) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(low, high, (count, channels, 32, 32), dtype=np.uint8))


def study_of(vit: Path, *methods: str, extra: str = "") -> Study:
    tables = "".join(f"[[adaptation]]\n{lines}\n" for lines in ('method = "probe"', *methods))
    return studies.loads(
        f'[study]\nname = "x"\n[data]\nimage_size = 32\n[backbone]\nreference = "file:{vit}"\n{tables}{extra}'
    )


def settled(adapted: Adapted, pixels: Tensor) -> dict[str, np.ndarray]:
    """What leaves a site of these pictures, right after ``adapted`` took over the state that it holds."""
    anchor = adapted.write(adapted.read())
    start = begun(Classification(), torch.zeros(len(pixels), dtype=torch.int64), pixels=pixels, anchor=anchor)
    assert adapted.chain.settle(adapted.network, start, DONE) == {}
    return dict(adapted.read())


def averaged(parts: list[tuple[int, dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    total = sum(count for count, _ in parts)
    return {
        name: (sum(count * part[name].astype(np.float64) for count, part in parts) / total).astype(np.float32)
        for name in parts[0][1]
    }


# histogram matching


@pytest.mark.parametrize("keep_black", [False, True])
def test_quantiles_are_numpys(keep_black: bool) -> None:
    rows = noise(5, 200).double()
    rows[1:3, :60] = 0.0
    rows[2] = 0.0
    found = quantiles(rows, 16, keep_black).numpy()
    for row, own in zip(rows.numpy(), found, strict=True):
        inside = row[row > 0.5 / 255] if keep_black else row
        expected = np.quantile(inside, np.linspace(0, 1, 17)) if len(inside) else np.zeros(17)
        np.testing.assert_allclose(own, expected, atol=1e-12)


def matched_by_cdf(source: np.ndarray, template: np.ndarray) -> np.ndarray:
    """scikit-image's ``exposure.match_histograms``, in its own steps."""
    _, inverse, counts = np.unique(source.ravel(), return_inverse=True, return_counts=True)
    values, template_counts = np.unique(template.ravel(), return_counts=True)
    source_quantiles = np.cumsum(counts) / source.size
    found = np.interp(source_quantiles, np.cumsum(template_counts) / template.size, values)
    return np.asarray(found[inverse].reshape(source.shape))


def test_one_picture_as_reference_is_histogram_matching() -> None:
    source = (0.3 + 0.4 * noise(1, 4096).double()) ** 2
    template = noise(1, 4096, seed=1).double().sqrt()
    found = mapped(source, quantiles(source, 256, False), quantiles(template, 256, False))
    expected = matched_by_cdf(source.numpy(), template.numpy())
    assert np.abs(found.numpy() - expected).max() < 0.02
    assert np.abs(found.numpy() - expected).mean() < 0.002


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=30), st.integers(0, 2**32 - 1))
def test_mapping_keeps_order_and_its_own_histogram_and_few_greys_go_to_the_middle(greys: list[int], seed: int) -> None:
    rows = torch.tensor([greys], dtype=torch.float64) / 6
    own = quantiles(rows, 12, False)
    torch.testing.assert_close(mapped(rows, own, own), rows, rtol=0, atol=1e-9)
    reference = torch.from_numpy(np.sort(np.random.default_rng(seed).random((1, 13)), axis=1))
    found = mapped(rows, own, reference)
    order = rows[0].argsort(stable=True)
    assert (found[0, order].diff() >= -1e-12).all()
    assert found.min() >= reference.min()
    assert found.max() <= reference.max()


def site(low: int, high: int, count: int, seed: int) -> Tensor:
    return bytes_of(count, seed, channels=3, low=low, high=high)


def test_the_reference_is_the_mean_over_all_pictures_of_all_sites(tiny_vit: Path) -> None:
    adapted = build(study_of(tiny_vit, 'method = "harmonise_histogram"\nlevels = 8'))
    sites = [site(1, 100, 5, 0), site(80, 256, 130, 1)]  # more than one batch of looking
    state = averaged([(len(pixels), settled(adapted, pixels)) for pixels in sites])
    every = torch.cat(sites).numpy().astype(np.float64).reshape(135, 3, -1) / 255
    expected = np.quantile(every, np.linspace(0, 1, 9), axis=2).mean(axis=1).T
    np.testing.assert_allclose(state["entry.histogram.told"], expected, atol=1e-6)


def test_nothing_changes_before_there_is_a_reference_and_what_settles_is_not_in_use(tiny_vit: Path) -> None:
    adapted = build(study_of(tiny_vit, 'method = "harmonise_histogram"'))
    dark, bright = site(1, 100, 6, 0), site(150, 256, 6, 1)
    seen = dark.float() / 255
    assert torch.equal(adapted.network.entry(seen), seen)
    told = settled(adapted, bright)
    assert torch.equal(adapted.network.entry(seen), seen)
    adapted.write(told)
    moved = adapted.network.entry(seen)
    assert moved.mean() > 0.7
    settled(adapted, dark)  # the site's own figures must not replace the federation's before they have been averaged
    assert torch.equal(adapted.network.entry(seen), moved)


def test_sites_look_alike_afterwards(tiny_vit: Path) -> None:
    adapted = build(study_of(tiny_vit, 'method = "harmonise_histogram"'))
    sites = [site(1, 120, 20, 0), site(90, 256, 20, 1)]
    adapted.write(averaged([(20, settled(adapted, pixels)) for pixels in sites]))
    before = [np.quantile(pixels.numpy() / 255, np.linspace(0, 1, 20)) for pixels in sites]
    after = [np.quantile(adapted.network.entry(p.float() / 255).numpy(), np.linspace(0, 1, 20)) for p in sites]
    assert np.abs(before[0] - before[1]).max() > 0.3
    assert np.abs(after[0] - after[1]).max() < 0.01


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (2, 3, 16, 16), (2, 1, 4, 16, 16)])
def test_black_stays_black_in_pictures_and_volumes_grey_and_in_colour(shape: tuple[int, ...]) -> None:
    pixels = 0.1 + 0.4 * noise(*shape)
    pixels[..., :6] = 0.0
    module = Matched(32, keep_black=True)
    module.reference.copy_(torch.linspace(0.5, 1.0, 33))
    found = module(pixels)
    assert found.shape == pixels.shape
    assert (found[..., :6] == 0).all()
    assert found[..., 6:].min() >= 0.5
    grey = module.own(pixels)
    assert grey.shape == (2, 3, 33)
    assert grey[..., 0].min() >= 0.1
    whole = Matched(32, keep_black=False)
    whole.reference.copy_(module.reference)
    assert (whole(pixels)[..., :6] > 0.5).all()


# amplitudes


def by_feddg(own: np.ndarray, other: np.ndarray, share: float, edge: int) -> np.ndarray:
    """``low_freq_mutate_np`` of the authors' code for [C, H, W], its ratio given and its cut in whole frequencies."""
    spectrum = np.fft.fft2(own, axes=(-2, -1))
    amplitude, phase = np.abs(spectrum), np.angle(spectrum)
    source = np.fft.fftshift(amplitude, axes=(-2, -1))
    target = np.fft.fftshift(np.abs(np.fft.fft2(other, axes=(-2, -1))), axes=(-2, -1))
    h, w = own.shape[-2:]
    rows, columns = slice(h // 2 - edge, h // 2 + edge + 1), slice(w // 2 - edge, w // 2 + edge + 1)
    source[:, rows, columns] = source[:, rows, columns] * (1 - share) + target[:, rows, columns] * share
    amplitude = np.fft.ifftshift(source, axes=(-2, -1))
    return np.asarray(np.real(np.fft.ifft2(amplitude * np.exp(1j * phase), axes=(-2, -1))))


@pytest.mark.parametrize("edge", [0, 1, 4])
@pytest.mark.parametrize("side", [16, 17])
def test_mixing_is_feddgs(edge: int, side: int) -> None:
    pixels, other = noise(3, 3, side, side), noise(1, 3, side, side, seed=1) ** 2
    share = torch.tensor([0.3, 1.0, 0.0])
    found = mixed(pixels, amplitudes(other, edge)[0], share).numpy()
    for i in range(3):
        expected = by_feddg(pixels[i].double().numpy(), other[0].double().numpy(), share[i].item(), edge)
        np.testing.assert_allclose(found[i], expected.clip(0, 1), atol=2e-6)
    assert torch.equal(torch.from_numpy(found[2]), pixels[2])


def test_phase_stays_and_brightness_goes_to_the_federations() -> None:
    pixels = 0.4 + 0.02 * noise(1, 1, 32, 32)
    other = amplitudes(0.6 + 0.02 * noise(1, 1, 32, 32, seed=1), 2)[0]
    found = mixed(pixels, other, torch.ones(1))
    assert found.mean() == pytest.approx(0.61, abs=0.005)
    before, after = (torch.fft.fft2(seen).angle() for seen in (pixels, found))
    apart = torch.remainder(after - before + np.pi, 2 * np.pi) - np.pi
    assert apart.abs().median() < 1e-4


def test_what_travels_is_the_mean_of_amplitudes_and_training_pictures_alone_are_mixed(tiny_vit: Path) -> None:
    adapted = build(study_of(tiny_vit, 'method = "exchange_amplitude"\nfrequencies = 2\nshare = 0.5'))
    sites = [bytes_of(4, 0, channels=3, high=100), bytes_of(100, 1, channels=3)]
    views = Views(noise(40, 3, 32, 32), torch.zeros(40))

    def batch(seed: int = 0) -> Tensor:
        drawn = torch.Generator().manual_seed(seed)
        return adapted.chain.batch(adapted.network, Classification(), views, drawn).pixels

    assert torch.equal(batch(), views.pixels)
    state = averaged([(len(pixels), settled(adapted, pixels)) for pixels in sites])
    spectra = np.abs(np.fft.fft2(torch.cat(sites).numpy() / 255.0)) / 1024
    expected = np.fft.fftshift(spectra.mean(axis=0), axes=(1, 2))[:, 14:19, 14:19]
    np.testing.assert_allclose(state["amplitude.told"], expected, atol=1e-6)
    adapted.write(state)
    changed = (batch() != views.pixels).flatten(1).any(dim=1)
    assert 10 < changed.sum() < 30
    assert torch.equal(batch(), batch())
    assert not torch.equal(batch(), batch(1))
    assert torch.equal(adapted.network.entry(views.pixels), views.pixels)
    grey = Views(noise(4, 1, 32, 32), torch.zeros(4))
    assert adapted.chain.batch(adapted.network, Classification(), grey, torch.Generator()).pixels.shape == (
        4,
        1,
        32,
        32,
    )


# ComBat


def features(seed: int = 0, width: int = 12) -> list[np.ndarray]:
    """Three sites, shifted and scaled feature by feature."""
    rng = np.random.default_rng(seed)
    base, spread = rng.normal(0, 3, width), rng.uniform(0.5, 2, width)
    return [
        base + spread * (rng.normal(0.5 * i, 0.3, width) + rng.uniform(0.6, 1.6, width) * rng.normal(size=(n, width)))
        for i, n in enumerate((15, 40, 90))
    ]


def neurocombat(sites: list[np.ndarray], shrink: bool) -> list[np.ndarray]:
    """ComBat without covariates over pooled data, in the steps and words of Fortin's ``neuroCombat``."""
    every = np.concatenate(sites)
    counts = np.array([len(rows) for rows in sites])
    means = np.array([rows.mean(axis=0) for rows in sites])
    grand_mean = counts @ means / len(every)
    var_pooled = sum(((rows - mean) ** 2).sum(axis=0) for rows, mean in zip(sites, means, strict=True)) / len(every)
    result = []
    for rows in sites:
        s_data = (rows - grand_mean) / np.sqrt(var_pooled)
        gamma_hat, delta_hat = s_data.mean(axis=0), s_data.var(axis=0, ddof=1)
        gamma_star, delta_star = gamma_hat, delta_hat
        if shrink:
            gamma_bar, t2 = gamma_hat.mean(), gamma_hat.var(ddof=1)
            m, s2 = delta_hat.mean(), delta_hat.var(ddof=1)
            a, b = (2 * s2 + m**2) / s2, (m * s2 + m**3) / s2
            change, n = 1.0, len(rows)
            while change > 1e-4:
                g_new = (t2 * n * gamma_hat + delta_star * gamma_bar) / (t2 * n + delta_star)
                sum2 = ((s_data - g_new) ** 2).sum(axis=0)
                d_new = (0.5 * sum2 + b) / (n / 2.0 + a - 1.0)
                change = max(
                    (np.abs(g_new - gamma_star) / np.abs(gamma_star)).max(),
                    (np.abs(d_new - delta_star) / delta_star).max(),
                )
                gamma_star, delta_star = g_new, d_new
        result.append((s_data - gamma_star) / np.sqrt(delta_star) * np.sqrt(var_pooled) + grand_mean)
    return result


def federated(sites: list[np.ndarray], shrink: bool) -> Iterator[np.ndarray]:
    """The same from what sites tell and what they keep."""
    total = sum(map(len, sites))
    module = Freed(sites[0].shape[1], shrink).double()
    told = [(len(rows), rows.mean(axis=0), rows.var(axis=0)) for rows in sites]
    with torch.no_grad():
        module.mean.copy_(torch.tensor(sum(n * mean for n, mean, _ in told) / total))
        module.variance.copy_(torch.tensor(sum(n * variance for n, _, variance in told) / total))
        for rows, (n, mean, variance) in zip(sites, told, strict=True):
            module.own_count.fill_(n)
            module.own_mean.copy_(torch.tensor(mean))
            module.own_variance.copy_(torch.tensor(variance))
            module.take()
            yield module(torch.tensor(rows)).numpy()


@pytest.mark.parametrize("shrink", [False, True])
def test_it_is_combat_over_the_pooled_features(shrink: bool) -> None:
    sites = features()
    for found, expected in zip(federated(sites, shrink), neurocombat(sites, shrink), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_without_shrinking_every_site_has_the_federations_mean_and_spread() -> None:
    sites = features()
    total = sum(map(len, sites))
    mean = sum(len(rows) * rows.mean(axis=0) for rows in sites) / total
    variance = sum(len(rows) * rows.var(axis=0) for rows in sites) / total
    for found in federated(sites, False):
        np.testing.assert_allclose(found.mean(axis=0), mean, atol=1e-9)
        np.testing.assert_allclose(found.var(axis=0, ddof=1), variance, rtol=1e-9)


def test_shrinking_draws_a_small_sites_figures_together_and_leaves_a_large_ones() -> None:
    gamma, delta2 = torch.tensor([-1.0, 0.2, 0.9, 2.0]).double(), torch.tensor([0.5, 1.0, 1.4, 2.5]).double()
    small, large = shrunken(gamma, delta2, 3), shrunken(gamma, delta2, 1e6)
    assert all(
        (part.max() - part.min()) < 0.9 * (own.max() - own.min())
        for part, own in zip(small, (gamma, delta2), strict=True)
    )
    torch.testing.assert_close(large[0], gamma, rtol=0, atol=1e-4)
    torch.testing.assert_close(large[1], delta2, rtol=1e-4, atol=0)
    alike = torch.ones(4).double()
    assert torch.equal(shrunken(alike, delta2, 5)[0], alike)


def test_a_site_without_figures_a_dead_feature_and_round_1_are_left_as_they_are(tiny_vit: Path) -> None:
    adapted = build(study_of(tiny_vit, 'method = "combat"'))
    neck = adapted.network.neck
    rows = noise(5, 64)
    assert torch.equal(neck(rows), rows)
    assert adapted.personal == tuple(f"neck.combat.own_{name}" for name in ("count", "mean", "variance"))
    told, own = settled(adapted, bytes_of(9, 0)), adapted.read_personal()
    adapted.write(told)  # another site, which has nothing of its own
    assert torch.equal(neck(rows), rows)
    told["neck.combat.variance"][3] = 0.0
    told["neck.combat.mean"] += 1.0
    adapted.write(told, own)
    assert torch.equal(neck(rows)[:, 3], rows[:, 3])
    assert ((neck(rows) - rows)[:, 4:].abs().mean(dim=0) > 0.01).all()
    adapted.write(told)
    assert torch.equal(neck(rows), rows)


def test_a_site_tells_mean_and_variance_of_what_reaches_its_place(tiny_vit: Path) -> None:
    adapted = build(study_of(tiny_vit, 'method = "combat"'))
    pixels = bytes_of(70, 2)
    told = settled(adapted, pixels)
    with torch.no_grad():
        rows = adapted.network.backbone(pixels.float() / 255).double().numpy()
    np.testing.assert_allclose(told["neck.combat.mean"], rows.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(told["neck.combat.variance"], rows.var(axis=0), rtol=1e-4)


# together


def test_they_combine_and_their_places_do_not_clash(tiny_vit: Path) -> None:
    three = ('method = "harmonise_histogram"', 'method = "combat"', 'method = "exchange_amplitude"')
    adapted = build(study_of(tiny_vit, *three))
    state = settled(adapted, bytes_of(12, 0))
    own = adapted.read_personal()
    adapted.write(state, own)
    assert [name for name in state if not name.startswith("head")] == [
        "amplitude.told", "entry.histogram.told", "neck.combat.mean", "neck.combat.variance",
    ]  # fmt: skip
    assert all(np.abs(state[name]).max() > 0 for name in state if name != "head.bias")
    assert [weight.requires_grad for weight in adapted.parameters()] == [True, True]
    loss = adapted.network(noise(4, 1, 32, 32)).square().mean()
    loss.backward()
    assert all(weight.grad is not None for weight in adapted.parameters())


@pytest.mark.parametrize("method", [HarmoniseHistogram(), ExchangeAmplitude(), Combat()])
def test_they_say_what_they_send(method: Any) -> None:
    built: Adaptation = method.build()
    assert built.families == {"data"} == set(method.facts.families)
    assert "each site sends" in method.explain()
    assert method.facts.travels != "nothing"
    assert not method.facts.exact_private
    assert method.merges == (method.method == "exchange_amplitude")  # for training alone


@pytest.mark.parametrize("method", ["harmonise_histogram", "exchange_amplitude", "combat"])
@pytest.mark.parametrize("step", ['method = "adam"', 'method = "sgd"\nlearning_rate = 0.5', 'method = "momentum"'])
def test_a_server_that_does_not_take_the_average_as_it_is_is_refused(method: str, step: str, tiny_vit: Path) -> None:
    with pytest.raises(StudyError, match=f"'{method}' sends means"):
        study_of(tiny_vit, f'method = "{method}"', extra=f"[server_step]\n{step}\n")


def test_studies_in_which_they_make_no_sense_are_refused() -> None:
    def study(lines: str, data: str) -> None:
        studies.loads(f'[study]\nname = "x"\n[data]\n{data}\n[[adaptation]]\nmethod = "probe"\n[[adaptation]]\n{lines}')

    deep = 'volume = "whole"\ndepth = 8'
    for lines, data, reason in [
        ('method = "exchange_amplitude"', deep, "volumes"),
        ('method = "exchange_amplitude"\nfrequencies = 20', "image_size = 32", "no 20 cycles"),
        ('method = "harmonise_histogram"\nlevels = 1', "", "levels"),
        ('method = "combat"\nshrinks = true', "", "did you mean 'shrink'"),
    ]:
        with pytest.raises(StudyError, match=reason):
            study(lines, data)
    assert not Combat.fits(type("Dense", (Classification,), {"dense": True}))
