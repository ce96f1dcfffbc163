"""Splits: parts that are complete, disjoint, in proportion or in order, and do not leak."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Subset
from torch.utils.data import random_split as torch_random_split

from headrace.data.split import LeakWarning, chronological_split, random_split, stratified_split
from headrace.data.windows import SlidingWindows

LABELS = st.lists(st.sampled_from([0, 0, 0, 0, 1, 1, 2, 7]), min_size=4, max_size=80)


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, derandomize=True)
@given(LABELS, st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 9))
def test_stratified_split_is_complete_and_in_proportion(labels, shares, seed):
    fractions = [s / sum(shares) for s in shares]
    parts = stratified_split(
        range(len(labels)), fractions, labels=labels, generator=generator(seed)
    )
    assert sorted(i for p in parts for i in p.indices) == list(range(len(labels)))
    if sum(fractions) <= 1:  # torch refuses a sum of 1 + 1e-16
        assert [len(p) for p in parts] == torch_random_split_lengths(len(labels), fractions)
    labels = np.array(labels)
    for part in parts:
        for c in np.unique(labels):
            share = len(part) * np.count_nonzero(labels == c) / len(labels)
            count = np.count_nonzero(labels[np.array(part.indices, int)] == c)
            assert abs(count - share) < max(1, len(parts) - 1) + 1e-9


def torch_random_split_lengths(n, fractions):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of empty parts
        return [len(p) for p in torch_random_split(range(n), fractions)]


def test_stratified_split_takes_sizes_and_is_a_function_of_the_generator():
    labels = [0, 1] * 50
    one = stratified_split(range(100), [70, 30], labels=labels, generator=generator())
    other = stratified_split(range(100), [70, 30], labels=labels, generator=generator())
    assert [p.indices for p in one] == [p.indices for p in other]
    assert [len(p) for p in one] == [70, 30]
    assert isinstance(one[0], Subset)
    assert one[0].indices != sorted(one[0].indices)
    assert sum(labels[i] for i in one[1].indices) == 15


@pytest.mark.parametrize(
    ("lengths", "labels", "says"),
    [
        ([0.5, 0.4], [0] * 10, "add up to 0.9"),
        ([5, 4], [0] * 10, "add up to 9"),
        ([-1, 11], [0] * 10, "sizes from 0 to 10"),
        ([0.5, 0.5], [0] * 9, "9 labels for 10 samples"),
    ],
)
def test_stratified_split_says_what_is_wrong(lengths, labels, says):
    with pytest.raises(ValueError, match=says):
        stratified_split(range(10), lengths, labels=labels)


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 300), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 10))
def test_chronological_split_keeps_order_and_gap(n, shares, gap):
    fractions = [s / sum(shares) for s in shares]
    left = n - gap * (len(shares) - 1)
    try:
        parts = chronological_split(n, fractions, gap=gap)
    except ValueError as error:
        impossible = left < 1 or min(left * f for f in fractions) < 1
        if "too few" in str(error) and impossible:
            return
        raise
    assert parts[0].start == 0
    assert parts[-1].stop == n
    for earlier, later in pairwise(parts):
        assert later.start - earlier.stop == gap
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part) - left * fraction) <= 1


@pytest.mark.parametrize(("length", "stride", "horizon"), [(10, 1, 0), (10, 3, 2), (5, 5, 0)])
def test_chronological_split_of_windows_shares_no_step(length, stride, horizon):
    windows = SlidingWindows(np.arange(500), length, stride, horizon)
    train, test = chronological_split(windows, [0.8, 0.2])
    steps = [
        {int(t) for w in part for t in np.concatenate(np.atleast_2d(w) if not horizon else w)}
        if horizon
        else {int(t) for w in part for t in w}
        for part in (train, test)
    ]
    assert not steps[0] & steps[1]
    if stride < length + horizon:
        # One window more in the training part would share steps.
        following = windows[train.indices[-1] + 1 + windows.gap - 1] if windows.gap else ()
        flat = np.concatenate(following) if horizon else following
        assert {int(t) for t in flat} & steps[1] or {int(t) for t in flat} & steps[0]


def test_chronological_split_warns_of_a_gap_that_is_too_small():
    windows = SlidingWindows(np.arange(100), 10)
    with pytest.warns(LeakWarning, match="gap=9"):
        chronological_split(windows, [0.8, 0.2], gap=3)
    chronological_split(windows, [0.8, 0.2], gap=9)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((10, [0.5, 0.4]), "add up to 1"),
        ((10, [1.2, -0.2]), "above 0"),
        ((10, [0.5, 0.5], -1), "gap must be 0 or more"),
        ((3, [0.5, 0.5], 5), "too few"),
    ],
)
def test_chronological_split_says_what_is_wrong(arguments, says):
    with pytest.raises(ValueError, match=says):
        chronological_split(*arguments)


def test_random_split_is_torchs():
    ours = random_split(range(50), [0.7, 0.3], generator())
    theirs = torch_random_split(range(50), [0.7, 0.3], generator())
    assert [list(p.indices) for p in ours] == [list(p.indices) for p in theirs]
    torch.manual_seed(1)
    ours = random_split(range(50), [20, 30])
    torch.manual_seed(1)
    assert [list(p.indices) for p in ours] == [
        list(p.indices) for p in torch_random_split(range(50), [20, 30])
    ]


def test_a_random_split_of_overlapping_windows_warns():
    windows = SlidingWindows(np.arange(100), length=10, stride=4)
    with pytest.warns(LeakWarning, match="by up to 6 of 10 steps.*chronological_split"):
        random_split(windows, [0.8, 0.2])
    with pytest.warns(LeakWarning):
        stratified_split(windows, [0.8, 0.2], labels=[0] * len(windows))
    part, _ = chronological_split(windows, [0.5, 0.5])
    with pytest.warns(LeakWarning):
        random_split(part, [0.8, 0.2])


def test_windows_that_do_not_overlap_may_be_split_at_random():
    random_split(SlidingWindows(np.arange(100), length=10, stride=10), [0.8, 0.2])
