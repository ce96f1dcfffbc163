"""The keyed bijection is a bijection, equals its definition, and shuffles.

Every statistic is turned into a z-score and must lie within 5: a perfect shuffle fails one such
check once in 1.7 million. There are about 200 of them, and the seeds are fixed, so the tests
are deterministic. That they can fail at all is shown at the end, on shuffles with a flaw.
"""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import OptionError
from headrace.sampling import bijection
from headrace.sampling.bijection import ROUNDS, TABLE_ITEMS, Bijection, draws, philox

Z = 5.0
# Around powers of two, where a network's halves change their widths, and in between.
LARGE = [2**16 + 1, 100_003, 2**17 - 1, 2**17, 2**17 + 1, 2**18, 2**18 + 1, 300_000]
SIZES = [1000, 2**16 - 1, 2**16, *LARGE]


def order(n, seed, number=0):
    return Bijection(n, seed, number).block(0, n)


# --- it is a bijection, and what its docstring says -------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    n=st.one_of(
        st.integers(1, 300), st.integers(TABLE_ITEMS - 3, TABLE_ITEMS + 3), st.integers(1, 400_000)
    ),
    seed=st.integers(-(2**63), 2**64),
    number=st.integers(0, 2**64 - 1),
)
def test_every_item_comes_exactly_once(n, seed, number):
    values = order(n, seed, number)
    assert values.dtype == np.int64
    assert np.array_equal(np.bincount(values, minlength=n), np.ones(n))


@settings(max_examples=60, deadline=None)
@given(n=st.sampled_from([5, 1000, 2**16, 2**16 + 1, 200_000, 10**10]), data=st.data())
def test_any_position_gives_the_same_item_as_the_whole(n, data):
    shuffle = Bijection(n, 42)
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, min(n, start + 60_000)))
    middle = data.draw(st.integers(start, stop))
    whole = shuffle.block(start, stop)
    parts = [shuffle.block(start, middle), Bijection(n, 42).block(middle, stop)]
    assert np.array_equal(whole, np.concatenate(parts))


def slowly(n, seed, number, position):
    """The docstring of Bijection once more, in Python's integers."""
    bits = (n.bit_length() - 1) // 2
    b = -(-n // 2**bits)
    keys = [int(key) for key in philox(seed, number).random_raw(ROUNDS)]

    def mix(value, key):
        mixed = (value + key) * 0x9E3779B97F4A7C15 % 2**64
        return (mixed ^ mixed >> 32) * 0xBF58476D1CE4E5B9 % 2**64

    value = position
    while True:
        left, right = value % 2**bits, value // 2**bits
        for even, odd in zip(keys[::2], keys[1::2], strict=True):
            right = (right + ((mix(left, even) >> 32) * b >> 32)) % b
            left ^= mix(right, odd) >> (64 - bits)
        value = right * 2**bits + left
        if value < n:
            return value


@pytest.mark.parametrize(
    "n", [2**16 + 1, 99_991, 2**20 + 1, 10**10, 2**40 + 1, 2**62 + 1, 2**63 - 1]
)
def test_the_vectorised_network_is_the_one_described(n):
    shuffle = Bijection(n, 5, number=3)
    for start in (0, n // 3, n - 200):
        expected = [slowly(n, 5, 3, position) for position in range(start, start + 200)]
        assert shuffle.block(start, start + 200).tolist() == expected


def test_positions_that_leave_the_range_walk_on():
    """With 2^16 + 1 items 255 of 65,792 values lie outside: some walk twice."""
    n = 2**16 + 1
    for seed in range(20):
        assert order(n, seed).max() == n - 1


def test_a_block_is_the_callers_own():
    for n in (100, 10**6):
        shuffle = Bijection(n, 1)
        first = shuffle.block(0, 50)
        kept = first.copy()
        shuffle.block(50, 100)
        assert np.array_equal(first, kept)
        first[:] = -1
        assert np.array_equal(shuffle.block(0, 50), kept)


@pytest.mark.parametrize("n", [0, -1, 2**63])
def test_a_size_that_cannot_be_is_refused(n):
    with pytest.raises(OptionError, match=f"from 1 to .* items, got n={n}"):
        Bijection(n, 0)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 11)])
def test_positions_outside_are_refused(start, stop):
    with pytest.raises(IndexError, match=r"outside \[0, 10\]"):
        Bijection(10, 0).block(start, stop)


# --- it shuffles ------------------------------------------------------------------------------


def z_of_chi_square(statistic, freedom):
    """The cube-root approximation of Wilson and Hilferty (1931)."""
    spread = 2 / (9 * freedom)
    return ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


def z_of_counts(counts):
    """Equally likely cells."""
    counts = np.asarray(counts, dtype=float).ravel()
    expected = counts.sum() / counts.size
    return z_of_chi_square(((counts - expected) ** 2).sum() / expected, counts.size - 1)


def z_of_table(rows, columns, shape):
    """Independence of two classifications of the same things."""
    table = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape)
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    statistic = ((table - expected) ** 2 / expected).sum()
    return z_of_chi_square(statistic, (shape[0] - 1) * (shape[1] - 1))


def buckets(values, n, count):
    return values * count // n


def z_scores(make, n):
    """The statistics of eight shuffles with consecutive seeds, pooled where that says more."""
    orders = [make(n, seed) for seed in range(8)]
    positions = np.tile(np.arange(n), len(orders))
    values = np.concatenate(orders)
    yield "place", z_of_table(buckets(positions, n, 24), buckets(values, n, 24), (24, 24))
    for modulus in (2, 3, 16, 256):
        if n > 100 * modulus**2 // len(orders):
            z = z_of_table(positions % modulus, values % modulus, (modulus, modulus))
            yield f"mod {modulus}", z
            z = z_of_table(buckets(positions, n, 16), values % modulus, (16, modulus))
            yield f"mod {modulus} by place", z
    half = 2 ** ((n.bit_length() - 1) // 2)
    for distance in (1, 2, 3, half, half + 1, 2 * half, n // 2):
        pairs = [(o[:-distance], o[distance:]) for o in orders]
        first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
        z = z_of_table(buckets(first, n, 16), buckets(second, n, 16), (16, 16))
        yield f"pairs at {distance}", z
        steps = np.bincount(buckets((second - first) % n, n, 50), minlength=50)
        yield f"steps at {distance}", z_of_counts(steps)
        near = np.count_nonzero(np.abs(second - first) <= 20)
        expected = 40 * len(first) / n
        yield f"neighbours at {distance}", (near - expected) / math.sqrt(expected)
    ascents = sum(int((np.diff(o) > 0).sum()) for o in orders)
    spread = math.sqrt(len(orders) * (n + 1) / 12)
    yield "ascents", (ascents - len(orders) * (n - 1) / 2) / spread
    for one, other in itertools.pairwise(orders):
        z = z_of_table(buckets(one, n, 16), buckets(other, n, 16), (16, 16))
        yield "the next seed", z


@pytest.mark.parametrize("n", SIZES)
def test_no_structure_is_seen_in_places_pairs_bits_or_consecutive_seeds(n):
    for name, z in z_scores(order, n):
        assert abs(z) < Z, (name, z)


@pytest.mark.parametrize("n", [500, 2**16 + 1, 2**17])
def test_fixed_points_and_agreements_of_seeds_are_as_rare_as_chance(n):
    """Both are Poisson with mean 1 a shuffle."""
    orders = [order(n, seed) for seed in range(300)]
    fixed = [np.count_nonzero(o == np.arange(n)) for o in orders]
    agreeing = [np.count_nonzero(a == b) for a, b in itertools.pairwise(orders)]
    for counts in (fixed, agreeing):
        assert abs(sum(counts) - len(counts)) < Z * math.sqrt(len(counts))
        none = sum(count == 0 for count in counts)
        share = math.exp(-1)
        assert abs(none - len(counts) * share) < Z * math.sqrt(len(counts) * share * (1 - share))


@pytest.mark.parametrize("n", [7, 1000, 2**16 + 1, 2**20 + 1, 10**10])
def test_one_position_over_consecutive_seeds_is_uniform(n):
    count = 3000
    cells = min(n, 30)
    first_two = np.array([Bijection(n, seed).block(0, 2) for seed in range(count)])
    expected_cells = buckets(first_two, n, cells)
    for column in expected_cells.T:
        width = np.diff([-(-n * c // cells) for c in range(cells + 1)]) / n * count
        got = np.bincount(column, minlength=cells)
        assert abs(z_of_chi_square(((got - width) ** 2 / width).sum(), cells - 1)) < Z
    serial = buckets(first_two[:, 0], n, 7)
    if n > 7:
        assert abs(z_of_table(serial[:-1], serial[1:], (7, 7))) < Z
        assert abs(z_of_table(*buckets(first_two, n, 7).T, (7, 7))) < Z


def test_all_orders_of_four_items_are_equally_likely():
    orders = [tuple(order(4, seed).tolist()) for seed in range(4800)]
    counts = [orders.count(one) for one in set(orders)]
    assert len(counts) == 24
    assert abs(z_of_counts(counts)) < Z


@pytest.mark.parametrize("start", [0, 5 * 10**9, 10**10 - 200_000])
def test_a_window_of_ten_thousand_million_is_a_sample_of_all(start):
    n = 10**10
    values = Bijection(n, 1).block(start, start + 200_000)
    assert abs(z_of_counts(np.bincount(buckets(values, n, 500), minlength=500))) < Z
    for modulus in (2, 256, 1000):
        assert abs(z_of_counts(np.bincount(values % modulus, minlength=modulus))) < Z
    first, second = values[:-1], values[1:]
    assert abs(z_of_table(buckets(first, n, 20), buckets(second, n, 20), (20, 20))) < Z
    other = Bijection(n, 2).block(start, start + 200_000)
    assert abs(z_of_table(buckets(values, n, 20), buckets(other, n, 20), (20, 20))) < Z


@pytest.mark.parametrize("n", [2**17, 2**17 + 1])
def test_the_statistics_see_a_flaw(n, monkeypatch):
    def affine(n, seed):
        return (np.arange(n) * 60_013 + 7919 * seed) % n

    def random_but_for_the_lowest_bit(n, seed):
        rng = np.random.default_rng(seed)
        places = np.arange(n)
        for parity in (0, 1):
            places[parity::2] = rng.permutation(places[parity::2])
        return places

    def two_rounds(n, seed):
        with monkeypatch.context() as patch:
            patch.setattr(bijection, "ROUNDS", 2)
            return order(n, seed)

    for flawed in (affine, random_but_for_the_lowest_bit, two_rounds):
        assert max(abs(z) for _, z in z_scores(flawed, n)) > 2 * Z, flawed.__name__


# --- draws with replacement -------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 2**32 - 1, 2**32, 2**32 + 1, 10**10, 2**63 - 1])
def test_draws_are_philox_words_scaled_exactly(n):
    words = philox(8, 0).random_raw(1000).tolist()
    assert draws(n, 8, 0, 1000).tolist() == [word * n >> 64 for word in words]
    for start in (1, 2, 3, 4, 5, 998):
        assert draws(n, 8, start, 1000).tolist() == [word * n >> 64 for word in words[start:]]


@pytest.mark.parametrize("n", [30, 10**6, 10**10])
def test_draws_are_uniform_and_independent(n):
    for seed in range(4):
        cells = buckets(draws(n, seed, 0, 100_000), n, 30)
        assert abs(z_of_counts(np.bincount(cells, minlength=30))) < Z
        assert abs(z_of_table(cells[:-1], cells[1:], (30, 30))) < Z
        other = buckets(draws(n, seed + 1, 0, 100_000), n, 30)
        assert abs(z_of_table(cells, other, (30, 30))) < Z
