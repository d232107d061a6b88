from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptbridge.data.sampling import Permutation, Samples, split_bounds

SEEDS = st.integers(0, 2**63 - 1)


@pytest.mark.parametrize(
    ("documents", "bounds"),
    [
        (10, (0, 10, 10, 10)),
        (20, (0, 19, 20, 20)),
        (100, (0, 95, 100, 100)),
        (1000, (0, 949, 999, 1000)),
        (50257, (0, 47694, 50207, 50257)),
    ],
)
def test_splits_are_rounded_as_paddlenlp_does(documents: int, bounds: tuple[int, ...]) -> None:
    assert split_bounds(documents, (949, 50, 1)) == bounds


def test_a_share_of_half_a_document_is_rounded_to_even_and_the_excess_is_taken_back() -> None:
    assert split_bounds(5, (0.3, 0.3, 0.4)) == (0, 1, 3, 5)  # 2, 2 and 2 are one too many
    assert split_bounds(2, (0.75, 0.25, 0)) == (0, 2, 2, 2)


@given(st.integers(1, 10**7), st.tuples(*[st.floats(0, 1000)] * 3).filter(lambda shares: sum(shares) > 0))
def test_splits_cover_the_documents_in_order(documents: int, shares: tuple[float, ...]) -> None:
    bounds = split_bounds(documents, shares)
    assert list(bounds) == sorted(bounds)
    assert (bounds[0], bounds[-1]) == (0, documents)


@given(st.integers(1, 3000), SEEDS, st.integers(0, 10**6))
@settings(deadline=None)
def test_the_permutation_is_a_bijection(size: int, seed: int, epoch: int) -> None:
    image = Permutation(size, seed=seed, epoch=epoch)(np.arange(size))
    assert np.array_equal(np.sort(image), np.arange(size))


@given(st.integers(10**6, 10**15), SEEDS)
@settings(deadline=None, max_examples=30)
def test_large_permutations_stay_within_bounds_and_never_collide(size: int, seed: int) -> None:
    some = np.unique(np.random.default_rng(seed).integers(0, size, 20_000))
    image = Permutation(size, seed=seed, epoch=3)(some)
    assert image.min() >= 0
    assert image.max() < size
    assert len(np.unique(image)) == len(some)


def test_the_permutation_of_a_part_is_a_part_of_the_permutation() -> None:
    permute = Permutation(1000, seed=5, epoch=0)
    assert np.array_equal(permute(np.arange(1000))[117:130], permute(np.arange(117, 130)))


def test_seed_and_epoch_change_the_order() -> None:
    orders = [Permutation(500, seed=s, epoch=e)(np.arange(500)) for s in (0, 1) for e in (0, 1)]
    for i, order in enumerate(orders):
        assert not any(np.array_equal(order, other) for other in orders[i + 1 :])


@pytest.mark.parametrize("size", [7, 100, 2000])
def test_every_place_is_equally_likely(size: int) -> None:
    """A chi-square test at 6 standard deviations; the order of the numbers fails it by far."""
    draws, bins = 600, min(size, 20)

    def surprise(images: NDArray[np.int64]) -> float:
        counts = np.bincount(images * bins // size, minlength=bins)
        exact = draws * np.bincount(np.arange(size) * bins // size, minlength=bins) / size
        chi_square = float(((counts - exact) ** 2 / exact).sum())
        return float((chi_square - (bins - 1)) / np.sqrt(2 * (bins - 1)))

    for place in (0, size // 2, size - 1):
        images = [Permutation(size, seed=seed, epoch=seed % 3)(np.array([place]))[0] for seed in range(draws)]
        assert surprise(np.array(images)) < 6
    assert surprise(np.full(draws, size // 2)) > 6


def test_neighbours_are_torn_apart() -> None:
    image = Permutation(100_000, seed=1, epoch=1)(np.arange(100_000)).astype(float)
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(image, np.arange(100_000))[0, 1]) < 0.02


def test_samples_overlap_by_one_token_and_start_over_after_an_epoch() -> None:
    samples = Samples(first_token=100, tokens=21, seq_length=5)
    assert samples.per_epoch == 4
    assert samples.starts(np.arange(6)).tolist() == [100, 105, 110, 115, 100, 105]


@pytest.mark.parametrize(("tokens", "count"), [(0, 0), (1, 0), (5, 0), (6, 1), (10, 1), (11, 2)])
def test_a_sample_needs_a_label_for_its_last_token(tokens: int, count: int) -> None:
    assert Samples(0, tokens, seq_length=5).per_epoch == count


@given(st.integers(1, 200), SEEDS, st.integers(8, 60))
@settings(deadline=None, max_examples=25)
def test_each_epoch_visits_every_sample_once_however_it_is_cut(count: int, seed: int, size: int) -> None:
    samples = Samples(0, count * 4 + 1, seq_length=4, seed=seed, shuffle=True)
    whole = samples.starts(np.arange(3 * count))
    pieces = [samples.starts(np.arange(at, min(at + size, 3 * count))) for at in range(0, 3 * count, size)]
    assert np.array_equal(whole, np.concatenate(pieces))
    for epoch in whole.reshape(3, count):
        assert np.array_equal(np.sort(epoch), np.arange(count) * 4)


def test_epochs_of_many_samples_differ() -> None:
    samples = Samples(0, 4001, seq_length=4, seed=9, shuffle=True)
    first, second = samples.starts(np.arange(2000)).reshape(2, 1000)
    assert (first != second).mean() > 0.9


def test_the_order_is_part_of_what_a_checkpoint_means() -> None:
    """The values are from plain integers, outside NumPy: another order would derail resumed runs."""
    small = Permutation(1000, seed=1234, epoch=0)(np.arange(6))
    assert small.tolist() == [771, 264, 560, 723, 397, 139]
    large = Permutation(10**12, seed=2**63 - 1, epoch=7)(np.array([0, 10**12 - 1]))
    assert large.tolist() == [218936326421, 217850157172]
