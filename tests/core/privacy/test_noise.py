"""What private releases draw: of the right distribution, on its grid, and foreseeable only where it says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from polyclinic.client.private import noise as of_tensors
from polyclinic.core.privacy.noise import GRID, Chance, Keyed, drawn, gaussian, released

MANY = 200_000


def keyed(seed: int) -> Chance:
    return Keyed(seed.to_bytes(32, "little"))


def test_gaussian_numbers_are_so_by_the_kolmogorov_smirnov_test_and_do_not_know_their_neighbours() -> None:
    numbers = gaussian(keyed(5), MANY)
    assert numbers.dtype == np.float64
    assert stats.kstest(numbers, "norm").pvalue > 1e-6
    for lag in (1, 2, 7, MANY // 2):
        assert abs(np.corrcoef(numbers[:-lag], numbers[lag:])[0, 1]) < 6 / np.sqrt(MANY - lag)
    assert abs(np.corrcoef(numbers[:-1] ** 2, numbers[1:] ** 2)[0, 1]) < 6 / np.sqrt(MANY)
    assert stats.kstest((numbers[:-1] + numbers[1:]) / np.sqrt(2), "norm").pvalue > 1e-6


def test_uniform_numbers_are_so_and_never_zero() -> None:
    numbers = keyed(7).uniform(MANY)
    assert stats.kstest(numbers, "uniform").pvalue > 1e-6
    assert numbers.min() > 0
    assert numbers.max() <= 1
    assert np.array_equal(numbers * 2**53, np.rint(numbers * 2**53))


def test_they_are_the_key_stream_of_the_cipher_and_never_come_twice() -> None:
    key, zero = bytes(range(32)), bytes(16)
    block = b"".join(
        Cipher(algorithms.AES256(key), modes.ECB()).encryptor().update(i.to_bytes(16, "big")) for i in range(4)
    )
    truth = [((int.from_bytes(block[i : i + 8], "little") >> 11) + 1) / 2**53 for i in range(0, 64, 8)]
    chance = Keyed(key)
    assert [*chance.uniform(3), *chance.uniform(5)] == truth
    assert len(set(Keyed(zero + zero).uniform(1000)) | set(keyed(1).uniform(1000))) == 2000
    with pytest.raises(ValueError, match="32 bytes"):
        Keyed(zero)


def test_a_poisson_sample_has_the_size_of_a_binomial_and_takes_each_alike() -> None:
    chance, rate, count, times = keyed(1), 0.3, 40, 2000
    taken = np.zeros((times, count))
    for row in taken:
        row[drawn(chance, count, rate)] = 1
    sizes = taken.sum(axis=1)
    expected = stats.binom.pmf(np.arange(count + 1), count, rate) * times
    enough = expected > 8
    seen = np.bincount(sizes.astype(int), minlength=count + 1)
    rest = [seen[~enough].sum()], [expected[~enough].sum()]
    found = stats.chisquare(np.append(seen[enough], rest[0]), np.append(expected[enough], rest[1]))
    assert found.pvalue > 1e-6
    assert (np.abs(taken.mean(axis=0) - rate) < 6 * np.sqrt(rate * (1 - rate) / times)).all()
    assert len(drawn(chance, count, 1.0)) == count
    assert len(drawn(chance, 0, 0.5)) == 0


def test_a_key_repeats_and_another_does_not() -> None:
    assert np.array_equal(gaussian(keyed(3), 50), gaussian(keyed(3), 50))
    assert not np.array_equal(gaussian(keyed(3), 50), gaussian(keyed(4), 50))


@pytest.mark.parametrize("deviation", [0.7, 3.0, 1e-4])
def test_what_is_released_lies_on_a_grid_that_no_data_choose(deviation: float) -> None:
    total = np.linspace(-1, 1, 5000) * np.pi
    result = released(total, deviation, keyed(2))
    grid = 2.0 ** np.floor(np.log2(deviation)) * GRID
    assert np.array_equal(result, np.rint(result / grid) * grid)
    assert stats.kstest((result - total) / deviation, "norm").pvalue > 1e-6
    assert np.array_equal(released(total, 0.0, keyed(2)), total)


def test_tensors_get_the_same_noise_as_arrays() -> None:
    total = np.linspace(-1, 1, 60).reshape(3, 20)
    for deviation in (0.0, 0.3):
        ours = of_tensors.released(torch.from_numpy(total), deviation, keyed(9))
        assert np.array_equal(ours.numpy(), released(total, deviation, keyed(9)))
