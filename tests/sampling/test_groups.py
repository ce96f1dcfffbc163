"""Groups shuffled, and mixed within a window: each sample once, at any position, on any ranks."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, Subset, random_split

from headrace import DataLoader, GroupSampler
from headrace.data.compose import FilteredDataset, MappedDataset
from headrace.errors import OptionError, StateError
from headrace.testing import assert_exact_resume

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(sum)


class Shards:
    """A dataset of a user's own whose samples lie in groups."""

    def __init__(self, sizes, window):
        self.sizes, self.window = sizes, window

    def __len__(self):
        return sum(self.sizes)

    def __getitem__(self, index):
        assert type(index) is int
        return index

    def __shuffle__(self, generator):
        return GroupSampler(self.sizes, self.window, generator)


def sampler(sizes, window, seed=0):
    return GroupSampler(sizes, window, torch.Generator().manual_seed(seed))


def group_of(sizes, indices):
    return np.searchsorted(np.cumsum(sizes), indices, side="right")


@settings(max_examples=200, deadline=None)
@given(SIZES, st.integers(1, 35), st.integers(0, 2**40), st.data())
def test_each_sample_once_from_every_position(sizes, window, seed, draw):
    order = list(sampler(sizes, window, seed))
    assert sorted(order) == list(range(sum(sizes)))
    start = draw.draw(st.integers(0, sum(sizes) + 2))
    rest = [
        *itertools.chain(*(c.tolist() for c in sampler(sizes, window, seed).index_chunks(start)))
    ]
    assert rest == order[start:]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1), st.integers(1, 8), st.integers(0, 2**40))
def test_a_group_is_read_in_one_window_of_so_many(sizes, window, seed):
    groups = group_of(sizes, np.array(list(sampler(sizes, window, seed))))
    _check_windows(groups.tolist(), window)


@settings(max_examples=200, deadline=None)
@given(
    SIZES,
    st.integers(1, 20),
    st.sampled_from([(4, 3, 12), (4, 2, 8), (1, 3, 6), (3, 1, 9), (2, 4, 8)]),
    st.integers(0, 2**30),
    st.data(),
)
def test_ranks_share_it_and_other_numbers_of_ranks_go_on(sizes, window, ranks, seed, draw):
    before, after, together = ranks
    total = sum(sizes)

    def loaders(count):
        return [
            DataLoader(
                Shards(sizes, window),
                together // count,
                shuffle=True,
                seed=seed,
                shard=(rank, count),
            )
            for rank in range(count)
        ]

    whole = [n for loader in loaders(1) for batch in loader for n in batch.tolist()]
    assert sorted(whole) == list(range(total))
    steps = draw.draw(st.integers(0, total // together))
    seen, states = [], []
    for loader in loaders(before):
        batches = list(itertools.islice(iter(loader), steps))
        seen += [n for batch in batches for n in batch.tolist()]
        states.append(loader.state_dict())
    for loader in loaders(after):
        loader.load_state_dict(states[0])
        seen += [n for batch in loader for n in batch.tolist()]
    if steps:
        assert sorted(seen) == list(range(total))
    assert sorted(seen[: steps * together]) == sorted(whole[: steps * together])


@pytest.mark.parametrize(
    "sizes", [[1_000], [1], [5, 0, 0], [1, 1, 1], [1, 5_000, 1], [3] * 50, [0, 7]]
)
@pytest.mark.parametrize("count", [1, 3, 7])
def test_uneven_groups_one_giant_and_more_ranks_than_groups(sizes, count):
    seen = []
    for rank in range(count):
        loader = DataLoader(Shards(sizes, 2), 2, shuffle=True, seed=5, shard=(rank, count))
        seen += [n for batch in loader for n in batch.tolist()]
    assert sorted(seen) == list(range(sum(sizes)))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_takes_the_order_and_resumes_at_every_step(workers):
    sizes = [7, 3, 12, 1]

    def make():
        return DataLoader(Shards(sizes, 2), 4, shuffle=True, seed=3, num_workers=workers)

    assert type(make().sampler) is GroupSampler
    assert_exact_resume(make)


def test_epochs_differ_and_seeds_repeat():
    loader = DataLoader(Shards([10] * 6, 2), 10, shuffle=True, seed=3)
    first, second = ([b.tolist() for b in loader] for _ in range(2))
    again = DataLoader(Shards([10] * 6, 2), 10, shuffle=True, seed=3)
    assert first != second
    assert first == [b.tolist() for b in again]


def test_without_a_seed_the_order_is_drawn_where_torch_draws_its_own():
    torch.manual_seed(4)
    first = [b.tolist() for b in DataLoader(Shards([9] * 5, 2), 5, shuffle=True)]
    after = torch.rand(1)
    torch.manual_seed(4)
    plain = DataLoader(list(range(45)), 5, shuffle=True)
    assert [b.tolist() for b in plain] != first
    assert torch.equal(torch.rand(1), after)  # as many draws as torch's
    generator = torch.Generator().manual_seed(2)
    of_generator = DataLoader(Shards([9] * 5, 2), 5, shuffle=True, generator=generator)
    assert of_generator.sampler.generator is generator


def test_it_is_asked_only_for_shuffle_true_and_through_map():
    dataset = Shards([10] * 4, 1)
    assert type(DataLoader(dataset, 2).sampler) is not GroupSampler
    own = torch.utils.data.RandomSampler(dataset)
    assert DataLoader(dataset, 2, sampler=own).sampler is own
    mapped = MappedDataset(dataset, str)
    assert type(DataLoader(mapped, 2, shuffle=True).sampler) is GroupSampler
    assert type(DataLoader([1, 2], 2, shuffle=True).sampler) is torch.utils.data.RandomSampler


def _even(n):
    return n % 2 == 0


def _part(dataset, indices):
    return Subset(dataset, indices), list(indices)


def _split(dataset):
    part, _ = random_split(dataset, [0.6, 0.4], torch.Generator().manual_seed(1))
    return part, list(part.indices)


class Lenient(Shards):
    """Takes what torch's Subset hands on: NumPy's numbers, tensors, negative ones."""

    def __getitem__(self, index):
        return int(index) % len(self)


PARTS = {
    "ascending": lambda d: _part(d, range(0, len(d), 3)),
    "in any order": lambda d: _part(d, np.random.default_rng(0).permutation(len(d))[:31]),
    "negative and twice": lambda d: _part(d, [-1, 3, 3, -len(d), 20]),
    "a tensor": lambda d: _part(d, torch.tensor([5, 2, 40])),
    "a random split": _split,
    "a part of a part": lambda d: (
        Subset(Subset(d, range(40, 0, -1)), range(5, 30)),
        list(range(35, 10, -1)),
    ),
    "filtered": lambda d: (FilteredDataset(d, _even), list(range(0, len(d), 2))),
    "mapped, filtered, a part": lambda d: (
        Subset(FilteredDataset(MappedDataset(d, int), _even), range(4, 19)),
        list(range(8, 38, 2)),
    ),
    "joined": lambda d: (
        ConcatDataset([d, Subset(d, range(9, 2, -1))]),
        [*range(52), *range(9, 2, -1)],
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_a_dataset_go_through_its_groups(name):
    sizes, window = [7, 3, 12, 1, 20, 9], 2
    part, members = PARTS[name](Lenient(sizes, window))

    def make():
        return DataLoader(part, 4, shuffle=True, seed=3)

    loader = make()
    assert type(loader.sampler) is GroupSampler
    order = [n for batch in loader for n in batch.tolist()]
    assert sorted(order) == sorted(int(n) % 52 for n in members)
    assert [n for batch in loader for n in batch.tolist()] != order  # the next epoch
    if name != "joined":  # there a sample is in two groups
        _check_windows(group_of(sizes, np.array(order)).tolist(), window)
    assert_exact_resume(make)


def _check_windows(groups, window):
    """At no place is one between the first and the last sample of more groups than so many."""
    first, last = {}, {}
    for place, group in enumerate(groups):
        first.setdefault(group, place)
        last[group] = place
    for place in range(len(groups)):
        assert sum(first[group] <= place <= last[group] for group in first) <= window


def test_parts_of_an_order_of_a_subclass():
    class Same(GroupSampler):
        index_chunks = GroupSampler.index_chunks

    class Backwards(Same):
        def __iter__(self):
            return reversed(list(super().__iter__()))

    def parts_of(kind):
        class Own(Lenient):
            def __shuffle__(self, generator):
                return kind(self.sizes, self.window, generator)

        return type(DataLoader(Subset(Own([3, 4, 5], 1), range(9)), 2, shuffle=True).sampler)

    assert parts_of(Same) is GroupSampler
    assert parts_of(Backwards) is torch.utils.data.RandomSampler


def test_parts_that_have_no_groups_are_torchs():
    plain = Subset(list(range(9)), [1, 2])
    joined = ConcatDataset([Shards([3], 1), range(4)])
    for dataset in (plain, joined, Subset(Shards([3, 4], 1), [0.5])):
        loader = DataLoader(dataset, 2, shuffle=True)
        assert type(loader.sampler) is torch.utils.data.RandomSampler


def test_ahead_hears_of_each_window_and_the_next_one():
    told = []
    sizes = [4, 0, 3, 5, 2]
    ask = {"window": 2, "generator": torch.Generator().manual_seed(1), "ahead": told.append}
    order = list(GroupSampler(sizes, **ask))
    groups = list(dict.fromkeys(group_of(sizes, np.array(order)).tolist()))
    heard = [group for window in told for group in window[:2]]
    assert [g for g in heard if sizes[g]] == sorted(groups, key=heard.index)
    assert [len(window) for window in told] == [4, 3, 1]
    assert [window[2:] for window in told[:-1]] == [window[:2] for window in told[1:]]
    told.clear()
    list(GroupSampler(sizes, **ask).index_chunks(13))  # resumed in the last window
    assert [len(window) for window in told] == [1]


def test_ahead_is_asked_of_the_parts_that_are_joined():
    told = {"a": [], "b": []}

    class Named(Shards):
        def __init__(self, name, sizes):
            super().__init__(sizes, 1)
            self.name = name

        def __shuffle__(self, generator):
            return GroupSampler(self.sizes, 1, generator, ahead=told[self.name].append)

    joined = ConcatDataset([Named("a", [2, 3]), Named("b", [4])])
    assert len(list(DataLoader(joined, 3, shuffle=True, seed=1))) == 3
    assert {n for window in told["a"] for n in window} == {0, 1}
    assert {n for window in told["b"] for n in window} == {0}


def test_places_that_are_not_one_a_sample_are_refused():
    with pytest.raises(OptionError, match="places= has 2 indices, and the groups have 3"):
        GroupSampler([1, 2], places=[0, 1])


def test_a_sampler_of_another_length_is_refused():
    class Wrong(Shards):
        def __shuffle__(self, generator):
            return GroupSampler([3], 1, generator)

    with pytest.raises(OptionError, match=r"__shuffle__\(\) returned a sampler of 3"):
        DataLoader(Wrong([10], 1), 2, shuffle=True)


@pytest.mark.parametrize("other", [([7, 3, 12, 1], 3), ([7, 3, 1, 12], 2)])
def test_a_state_of_other_groups_or_another_window_is_refused(other):
    loader = DataLoader(Shards([7, 3, 12, 1], 2), 4, shuffle=True, seed=3)
    iterator = iter(loader)
    next(iterator)
    with pytest.raises(StateError, match=r"window|group_sizes"):
        DataLoader(Shards(*other), 4, shuffle=True, seed=3).load_state_dict(loader.state_dict())


@pytest.mark.parametrize(("sizes", "window"), [([3], 0), ([3], -1), ([-1, 4], 1)])
def test_windows_and_sizes_that_cannot_be(sizes, window):
    with pytest.raises(OptionError):
        GroupSampler(sizes, window)


def test_a_billion_samples_begin_in_memory_for_the_groups_only():
    import tracemalloc

    sizes = np.full(10_000, 100_000)
    tracemalloc.start()
    try:
        chunks = sampler(sizes, 16).index_chunks(999_000_000)
        first = next(chunks)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(np.unique(group_of(sizes, first))) <= 16
    assert peak < 4 << 20
