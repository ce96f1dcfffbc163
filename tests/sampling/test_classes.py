"""Classes in proportion, or equally often: exact counts in each epoch, chance in the rest.

Statistical tests have fixed seeds, and would fail for one seed in 10,000.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from headrace.sampling.balanced import ClassBalancedSampler
from headrace.sampling.order import index_chunks
from headrace.sampling.stratified import StratifiedBatchSampler

ERROR_RATE = 1e-4


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


LABELS = st.lists(st.sampled_from([0, 0, 0, 0, 1, 1, 2, 7]), min_size=1, max_size=80)


@settings(deadline=None, derandomize=True)
@given(LABELS, st.one_of(st.none(), st.integers(1, 200)), st.integers(0, 9))
def test_balanced_counts_of_classes_and_of_their_samples_differ_by_one(labels, num_samples, seed):
    sampler = ClassBalancedSampler(labels, num_samples, generator(seed))
    order = list(sampler)
    assert all(type(i) is int for i in order)
    assert len(order) == len(sampler) == (num_samples or len(labels))
    labels = np.array(labels)
    classes = [np.count_nonzero(labels[order] == c) for c in np.unique(labels)]
    assert max(classes) - min(classes) <= 1
    uses = np.bincount(order, minlength=len(labels))
    for c in np.unique(labels):
        assert np.ptp(uses[labels == c]) <= 1


@settings(deadline=None, derandomize=True)
@given(LABELS, st.integers(0, 100))
def test_balanced_order_is_a_function_of_the_generator_and_starts_anywhere(labels, start):
    whole = list(ClassBalancedSampler(labels, generator=generator()))
    assert list(ClassBalancedSampler(labels, generator=generator())) == whole
    chunks = index_chunks(ClassBalancedSampler(labels, generator=generator()), start)
    assert [int(i) for c in chunks for i in c] == whole[start:]


def test_balanced_draws_from_the_global_generator_once_at_the_first_index():
    torch.manual_seed(1)
    sampler = ClassBalancedSampler([0, 0, 1])
    iterator = iter(sampler)
    before = torch.get_rng_state()
    next(iterator)
    after = torch.get_rng_state()
    assert not torch.equal(before, after)
    torch.set_rng_state(before)
    torch.empty((), dtype=torch.int64).random_()
    assert torch.equal(torch.get_rng_state(), after)


def test_balanced_a_large_class_shows_other_samples_in_each_epoch():
    labels = [0] * 1000 + [1] * 10
    sampler = ClassBalancedSampler(labels, 100, generator(1))
    seen = np.zeros(1000)
    epochs = 400
    for _ in range(epochs):
        order = np.array(list(sampler))
        seen += np.bincount(order[order < 1000], minlength=1000)
    assert seen.sum() == 50 * epochs
    # Draws without replacement vary less than chi-square allows: test both tails.
    p = stats.chisquare(seen).pvalue
    assert ERROR_RATE < p < 1 - ERROR_RATE


def test_balanced_classes_are_mixed_along_the_epoch():
    labels = np.repeat([0, 1, 2], [500, 50, 5])
    order = np.array(list(ClassBalancedSampler(labels, 9000, generator())))
    place = np.arange(len(order)) * 10 // len(order)
    table = np.array([np.bincount(place[labels[order] == c], minlength=10) for c in range(3)])
    assert stats.chi2_contingency(table).pvalue > ERROR_RATE


@settings(deadline=None, derandomize=True)
@given(LABELS, st.integers(1, 30), st.booleans(), st.integers(0, 9))
def test_stratified_every_sample_once_and_every_class_in_proportion(labels, size, drop_last, seed):
    sampler = StratifiedBatchSampler(labels, size, drop_last=drop_last, generator=generator(seed))
    batches = list(sampler)
    n = len(labels)
    assert len(batches) == len(sampler) == (n // size if drop_last else -(-n // size))
    assert all(len(b) == size for b in batches[: n // size])
    seen = sorted(i for b in batches for i in b)
    assert len(set(seen)) == len(seen)
    assert drop_last or seen == list(range(n))
    labels = np.array(labels)
    for batch in batches:
        for c in np.unique(labels):
            share = len(batch) * np.count_nonzero(labels == c)
            count = np.count_nonzero(labels[batch] == c)
            assert share // n <= count <= -(-share // n)


@settings(deadline=None, derandomize=True)
@given(LABELS, st.integers(1, 30))
def test_stratified_plan_is_what_is_iterated(labels, size):
    batches = list(StratifiedBatchSampler(labels, size, generator=generator()))
    sampler = StratifiedBatchSampler(labels, size, generator=generator())
    indices, offsets = sampler.plan(sampler.draw_seed())
    assert [b.tolist() for b in np.split(indices, offsets[1:-1])] == batches


@settings(deadline=None, derandomize=True)
@given(LABELS, st.integers(2, 9), st.booleans(), st.integers(2, 4))
def test_stratified_ranks_share_one_plan(labels, size, drop_last, ranks):
    def sampler():
        return StratifiedBatchSampler(labels, size, drop_last=drop_last, generator=generator())

    parts = [sampler().shard(rank, ranks) for rank in range(ranks)]
    batches = [list(part) for part in parts]
    assert [len(part) for part in parts] == [len(mine) for mine in batches]
    n = len(labels)
    if n >= ranks:  # below, some have nothing
        assert len({len(mine) for mine in batches}) == 1
    seen = sorted(i for mine in batches for batch in mine for i in batch)
    assert len(set(seen)) == len(seen)
    steps = n // (size * ranks)
    assert seen == list(range(n)) if not drop_last else len(seen) == steps * size * ranks
    # The steps that are full are the batches of the whole plan, in turn.
    full = max(0, steps - 1)
    whole = list(sampler())[: full * ranks]
    assert [batch for step in zip(*batches, strict=False) for batch in step][: len(whole)] == whole
    with pytest.raises(ValueError, match=f"of rank 0 of {ranks} already"):
        parts[0].shard(0, 2)


def test_stratified_the_last_batch_keeps_to_whole_shares_too():
    labels = np.repeat([0, 1, 2], [6, 1, 5])  # of the last 4: 2, 1/3 and 5/3
    rare = 0
    for seed in range(300):
        *_, last = StratifiedBatchSampler(labels, 8, generator=generator(seed))
        counts = np.bincount(labels[last], minlength=3)
        assert counts[0] == 2
        rare += counts[1]
    assert 0 < rare < 300


def test_stratified_who_meets_whom_and_where_is_chance():
    labels = np.repeat([0, 1], [60, 20])
    sampler = StratifiedBatchSampler(labels, 8, generator=generator(5))
    of_first, place = np.zeros(10), np.zeros((8, 2))
    for _ in range(2000):
        batches = np.array(list(sampler))
        of_first[np.argwhere(batches == 0)[0, 0]] += 1
        place += np.stack([(labels[batches] == c).sum(0) for c in (0, 1)], axis=1)
    assert stats.chisquare(of_first).pvalue > ERROR_RATE
    assert stats.chi2_contingency(place).pvalue > ERROR_RATE


def test_stratified_the_odd_sample_falls_to_every_batch_equally_often():
    labels = [0] * 37 + [1] * 3
    sampler = StratifiedBatchSampler(labels, 4, generator=generator(8))
    rare = np.zeros(10)
    for _ in range(2000):
        rare += [sum(i >= 37 for i in batch) for batch in sampler]
    assert stats.chisquare(rare).pvalue > ERROR_RATE


def test_labels_may_be_strings_arrays_and_tensors():
    names = ["cat", "dog", "cat", "cat"]
    assert StratifiedBatchSampler(names, 2).classes.tolist() == ["cat", "dog"]
    for labels in (names, np.array(names), torch.tensor([0, 1, 0, 0])):
        assert len(list(ClassBalancedSampler(labels))) == 4


@pytest.mark.parametrize("make", [ClassBalancedSampler, lambda x: StratifiedBatchSampler(x, 2)])
@pytest.mark.parametrize(
    ("labels", "error", "says"),
    [
        ([], ValueError, "shape \\(0,\\)"),
        ([[0, 1], [1, 0]], ValueError, "one class per sample"),
        ([0.0, float("nan")], ValueError, "sample 1 has no label"),
        (np.array([1, "a", None], object), TypeError, "all numbers or all strings"),
    ],
)
def test_bad_labels_say_what_is_wrong(make, labels, error, says):
    with pytest.raises(error, match=says):
        make(labels)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None])
def test_bad_sizes_say_what_is_wrong(size):
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        StratifiedBatchSampler([0, 1], size)
    if size is not None:
        with pytest.raises(ValueError, match="num_samples must be a positive integer"):
            ClassBalancedSampler([0, 1], size)
