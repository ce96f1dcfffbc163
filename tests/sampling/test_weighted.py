"""Weighted draws: torch's up to 2^24 weights, exact and fast beyond.

Statistical tests have fixed seeds, and would fail with the stated probability for another seed.
"""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from torch.utils.data import WeightedRandomSampler as TorchWeightedRandomSampler

from headrace.sampling import weighted
from headrace.sampling.order import index_chunks
from headrace.sampling.weighted import CutpointTable, WeightedRandomSampler, smallest_keys

# A test that is right fails for one seed in this many.
ERROR_RATE = 1e-4


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def beyond(monkeypatch):
    """Let 100 weights be more than torch takes, so that the table is used."""
    monkeypatch.setattr(weighted, "TORCH_WEIGHTS", 99)


WEIGHTS = st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0, 1e-9]), min_size=1, max_size=30).filter(
    any
)


@settings(deadline=None, derandomize=True)
@given(WEIGHTS, st.integers(1, 50), st.booleans(), st.booleans(), st.integers(0, 60))
def test_draws_are_torchs(weights, num_samples, replacement, own, start):
    if not replacement:
        num_samples = min(num_samples, int(np.count_nonzero(weights)))
    results = []
    for cls in (TorchWeightedRandomSampler, WeightedRandomSampler):
        torch.manual_seed(5)
        given = generator() if own else None
        sampler = cls(weights, num_samples, replacement, given)
        values = list(sampler)
        state = given.get_state() if own else None
        results.append((values, state, torch.get_rng_state()))
    (theirs, their_own, their_global), (ours, our_own, our_global) = results
    assert ours == theirs
    assert all(type(i) is int for i in ours)
    assert torch.equal(our_global, their_global)
    assert not own or torch.equal(our_own, their_own)
    torch.manual_seed(5)
    sampler = WeightedRandomSampler(weights, num_samples, replacement, generator() if own else None)
    assert [int(i) for c in index_chunks(sampler, start) for i in c] == theirs[start:]


def test_nothing_is_drawn_before_the_first_index():
    g = generator()
    before = g.get_state()
    iterator = iter(WeightedRandomSampler([1.0, 2.0], 4, generator=g))
    assert torch.equal(g.get_state(), before)
    next(iterator)
    assert not torch.equal(g.get_state(), before)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    hnp.arrays(
        np.float64,
        st.integers(1, 300),
        elements=st.one_of(st.just(0.0), st.floats(1e-300, 1e300), st.floats(0.1, 10)),
    ).filter(np.any)
)
def test_table_finds_what_a_search_of_the_sums_finds(weights):
    table = CutpointTable(weights)
    sums = table._sums
    numbers = np.concatenate([sums, sums - np.minimum(sums, np.uint64(1)), sums // np.uint64(3)])
    numbers = np.append(numbers[numbers < sums[-1]], np.uint64(0))
    numbers = np.append(numbers, table.numbers(np.random.PCG64(1), 500))
    found = table.find(numbers)
    assert np.array_equal(found, np.searchsorted(sums, numbers, side="right"))
    assert np.all(weights[found] > 0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(hnp.arrays(np.float64, st.integers(1, 200), elements=st.floats(0, 1e6)).filter(np.any))
def test_table_holds_the_weights_to_rounding(weights):
    table = CutpointTable(weights)
    held = np.diff(table._sums.astype(object), prepend=0)
    total = int(table._sums[-1])
    shares = np.array([int(h) / total for h in held])
    assert np.allclose(shares, weights / weights.sum(), rtol=1e-12, atol=2.0**-62)


def test_table_draws_with_the_weights_as_probabilities():
    rng = np.random.default_rng(0)
    weights = rng.pareto(1.0, 1000)
    weights[::7] = 0
    table = CutpointTable(weights)
    found = table.find(table.numbers(np.random.PCG64(2), 1_000_000))
    counts = np.bincount(found, minlength=1000)
    expected = weights / weights.sum() * len(found)
    assert np.all(counts[weights == 0] == 0)
    enough = expected > 5
    observed = np.append(counts[enough], counts[~enough].sum())
    wanted = np.append(expected[enough], expected[~enough].sum())
    assert stats.chisquare(observed, wanted).pvalue > ERROR_RATE


def test_successive_draws_are_independent(beyond):
    weights = np.arange(1, 101.0)
    order = np.array(list(WeightedRandomSampler(weights, 500_000, generator=generator())))
    pairs = np.bincount((order[:-1] // 10) * 10 + order[1:] // 10, minlength=100).reshape(10, 10)
    assert stats.chi2_contingency(pairs).pvalue > ERROR_RATE


def test_without_replacement_the_first_has_the_weights_and_so_has_the_second():
    """P(second = j) = sum over i of p_i p_j / (1 - p_i): successive sampling."""
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    p = weights / weights.sum()
    bits = np.random.PCG64(4)
    drawn = np.array([smallest_keys(weights, 2, bits) for _ in range(20_000)])
    assert np.all(drawn[:, 0] != drawn[:, 1])
    first = np.bincount(drawn[:, 0], minlength=4)
    assert stats.chisquare(first, p * len(drawn)).pvalue > ERROR_RATE
    joint = p[:, None] * p[None, :] / (1 - p[:, None])
    np.fill_diagonal(joint, 0)
    second = np.bincount(drawn[:, 1], minlength=4)
    assert stats.chisquare(second, joint.sum(0) * len(drawn)).pvalue > ERROR_RATE


def test_without_replacement_over_many_blocks_none_repeats_and_none_of_weight_0(monkeypatch):
    monkeypatch.setattr(weighted, "BLOCK", 64)
    rng = np.random.default_rng(0)
    weights = rng.random(5000)
    weights[rng.random(5000) < 0.5] = 0
    drawn = smallest_keys(weights, 100, np.random.PCG64(1))
    assert len(set(drawn.tolist())) == 100
    assert np.all(weights[drawn] > 0)
    everything = smallest_keys(weights, int(np.count_nonzero(weights)), np.random.PCG64(1))
    assert np.array_equal(np.sort(everything), np.flatnonzero(weights))


@pytest.mark.parametrize("late", [1, 1000])
@pytest.mark.parametrize("count", [1, 100, 2000])
def test_without_replacement_blocks_decide_how_it_is_computed_not_what_is_drawn(
    monkeypatch, count, late
):
    weights = np.random.default_rng(0).random(5000)
    weights[-1000:] *= late  # 1000: what is drawn comes when much has been discarded
    drawn = []
    for block in (64, 8192):
        monkeypatch.setattr(weighted, "BLOCK", block)
        drawn.append(smallest_keys(weights, count, np.random.PCG64(1)))
    assert np.array_equal(*drawn)


@pytest.mark.parametrize("replacement", [True, False])
def test_beyond_torchs_limit_an_epoch_is_a_function_of_the_generator(beyond, replacement):
    weights = torch.rand(1000, generator=generator(9))
    orders = [
        list(WeightedRandomSampler(weights, 700, replacement, generator(s))) for s in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    sampler = WeightedRandomSampler(weights, 700, replacement, generator(1))
    assert list(sampler) == orders[0]
    assert list(sampler) != orders[0], "the second epoch is another one"


@pytest.mark.parametrize("block", [7, 64, 2**16])
@pytest.mark.parametrize("start", [0, 1, 63, 64, 500, 699, 700, 900])
def test_any_position_is_reached_without_another_draw(beyond, monkeypatch, start, block):
    weights = torch.rand(1000, generator=generator(9))
    whole = list(WeightedRandomSampler(weights, 700, generator=generator()))
    monkeypatch.setattr(weighted, "BLOCK", block)
    g = generator()
    chunks = index_chunks(WeightedRandomSampler(weights, 700, generator=g), start)
    assert [int(i) for c in chunks for i in c] == whole[start:]
    used = generator()
    list(WeightedRandomSampler(weights, 700, generator=used))
    assert torch.equal(g.get_state(), used.get_state())


def test_really_more_than_2_to_the_24():
    n = 2**24 + 1000
    weights = np.zeros(n)
    weights[::1000] = np.arange(1, -(-n // 1000) + 1)
    with pytest.raises(RuntimeError, match="2\\^24"):
        list(TorchWeightedRandomSampler(torch.from_numpy(weights), 1))
    order = np.array(list(WeightedRandomSampler(weights, 200_000, generator=generator())))
    assert np.all(order % 1000 == 0)
    halves = np.bincount(np.minimum(order * 10 // n, 9), minlength=10)
    wanted = np.add.reduceat(weights, [-(-k * n // 10) for k in range(10)])
    assert stats.chisquare(halves, wanted / wanted.sum() * len(order)).pvalue > ERROR_RATE
    some = list(WeightedRandomSampler(weights, 1000, replacement=False, generator=generator()))
    assert len(set(some)) == 1000
    assert all(i % 1000 == 0 for i in some)


def test_changed_weights_count(beyond):
    sampler = WeightedRandomSampler(torch.ones(100), 50, generator=generator())
    assert set(sampler) != {5}
    sampler.weights.zero_()
    sampler.weights[5] = 1
    assert set(sampler) == {5}
    sampler.weights = torch.eye(100)[7].double()
    assert set(sampler) == {7}


def test_pickled_it_leaves_the_table_behind(beyond):
    sampler = WeightedRandomSampler(torch.ones(100), 50)
    list(sampler)
    copy = pickle.loads(pickle.dumps(sampler))
    torch.manual_seed(1)
    expected = list(sampler)
    torch.manual_seed(1)
    assert list(copy) == expected


@pytest.mark.parametrize(
    ("weights", "options", "says"),
    [
        ([1.0, -2.0], {}, r"weights\[1\] is -2.0"),
        ([1.0, float("nan")], {}, r"weights\[1\] is nan"),
        ([float("inf")], {}, r"weights\[0\] is inf"),
        ([0.0, 0.0], {}, "all weights are 0"),
        ([], {}, "empty"),
        ([1.0, 0.0, 2.0], {"replacement": False}, "only 2 of 3 weights"),
        ([[1.0]], {}, "1d sequence"),
        ([1.0], {"num_samples": 0}, "num_samples should be a positive integer"),
        ([1.0], {"replacement": 3}, "replacement should be a boolean"),
    ],
)
def test_bad_options_say_what_is_wrong(weights, options, says):
    with pytest.raises(ValueError, match=says):
        WeightedRandomSampler(weights, **{"num_samples": 3, **options})
