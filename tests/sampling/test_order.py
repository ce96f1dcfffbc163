"""Orders as arrays equal torch's, index by index, draw by draw, at the moment of drawing."""

import gc
import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from headrace.sampling.order import exact_batches, index_chunks, is_exact
from headrace.sampling.permute import permutation


def flat(chunks):
    return [int(i) for chunk in chunks for i in chunk]


def generator(seed=7):
    return torch.Generator().manual_seed(seed)


def replayed(make, start=0):
    """Run torch's sampler and ours from the same seeds; check what both leave behind."""
    results = []
    for run in (lambda s: [int(i) for i in s][start:], lambda s: flat(index_chunks(s, start))):
        torch.manual_seed(11)
        own = generator()
        values = run(make(own))
        results.append((values, own.get_state(), torch.get_rng_state()))
    (theirs, theirs_own, theirs_global), (ours, ours_own, ours_global) = results
    assert ours == theirs
    assert torch.equal(ours_own, theirs_own)
    assert torch.equal(ours_global, theirs_global)
    return ours


MAKERS = {
    "sequential": lambda n, g: SequentialSampler(range(n)),
    "random": lambda n, g: RandomSampler(range(n)),
    "random, generator": lambda n, g: RandomSampler(range(n), generator=g),
    "more than n": lambda n, g: RandomSampler(range(n), num_samples=2 * n + 3, generator=g),
    "fewer than n": lambda n, g: RandomSampler(range(n), num_samples=(n + 1) // 2, generator=g),
    "replacement": lambda n, g: RandomSampler(range(n), replacement=True),
    "replacement, generator": lambda n, g: RandomSampler(
        range(n), replacement=True, num_samples=3 * n, generator=g
    ),
    "subset list": lambda n, g: SubsetRandomSampler([3 * i for i in range(n)], generator=g),
    "subset array": lambda n, g: SubsetRandomSampler(np.arange(n, dtype=np.int16)),
    "subset tensor": lambda n, g: SubsetRandomSampler(torch.arange(n) - 5, generator=g),
    "subset range": lambda n, g: SubsetRandomSampler(range(4, 4 + 2 * n, 2)),
    "weighted": lambda n, g: WeightedRandomSampler([i + 0.5 for i in range(n)], 2 * n),
    "weighted, once each": lambda n, g: WeightedRandomSampler(
        torch.rand(n, generator=generator(2)) + 0.1, n, replacement=False, generator=g
    ),
}


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 300), start=st.integers(0, 700))
def test_every_order_and_every_generator_equals_torch(name, n, start):
    replayed(lambda g: MAKERS[name](n, g))
    replayed(lambda g: MAKERS[name](n, g), start)


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(0, 200),
    ranks=st.integers(1, 9),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    epoch=st.integers(0, 5),
    start=st.integers(0, 40),
    data=st.data(),
)
def test_the_distributed_order_equals_torch(n, ranks, shuffle, drop_last, epoch, start, data):
    rank = data.draw(st.integers(0, ranks - 1))

    def make(_):
        sampler = DistributedSampler(range(n), ranks, rank, shuffle, 3, drop_last)
        sampler.set_epoch(epoch)
        return sampler

    if drop_last and n < ranks and n % ranks:
        return  # torch's own arithmetic breaks down there
    replayed(make)
    replayed(make, start)


@pytest.mark.parametrize("n", [16_383, 16_384, 16_385, 32_769, 100_000])
@pytest.mark.parametrize("name", MAKERS)
def test_more_than_one_chunk(name, n):
    replayed(lambda g: MAKERS[name](n, g))
    replayed(lambda g: MAKERS[name](n, g), start=n // 2 + 1)


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_is_drawn_before_the_first_index(name):
    own = generator()
    torch.manual_seed(1)
    before = own.get_state(), torch.get_rng_state()
    assert is_exact(MAKERS[name](40, own))
    index_chunks(MAKERS[name](40, own))
    assert torch.equal(own.get_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("n", [1, 31, 32, 33, 64, 100])
def test_a_visible_generator_is_drawn_from_when_torch_does(name, n):
    """After each index torch yields, its generators stand as ours after that index's chunk."""
    ours_own, theirs_own = generator(), generator()
    torch.manual_seed(5)
    theirs = iter(MAKERS[name](n, theirs_own))
    states = []
    while True:
        states.append((next(theirs, None), theirs_own.get_state(), torch.get_rng_state()))
        if states[-1][0] is None:
            break
    torch.manual_seed(5)
    ours = index_chunks(MAKERS[name](n, ours_own))
    position = 0
    for chunk in ours:
        for value in chunk:
            expected, own, everyones = states[position]
            assert int(value) == int(expected)
            assert torch.equal(ours_own.get_state(), own)
            assert torch.equal(torch.get_rng_state(), everyones)
            position += 1
    assert position == len(states) - 1
    assert torch.equal(ours_own.get_state(), states[-1][1])
    assert torch.equal(torch.get_rng_state(), states[-1][2])


def test_a_dataset_that_grows_during_the_epoch_is_read_when_torch_reads_it():
    def run(read):
        data = list(range(10))
        sampler = RandomSampler(data, generator=generator())
        out = []
        for item in read(sampler):
            out.extend(np.atleast_1d(item).tolist())
            if len(data) == 10:
                data.extend([0] * 5)
        return out

    assert run(index_chunks) == run(iter)
    assert len(run(iter)) == 15


def test_arrays_are_contiguous_integers_that_do_not_overlap():
    for name, make in MAKERS.items():
        chunks = list(index_chunks(make(40_000, generator())))
        for chunk in chunks:
            assert chunk.ndim == 1, name
            assert chunk.dtype in (np.int32, np.int64), name
            assert chunk.flags.c_contiguous, name
        for one, other in itertools.pairwise(chunks):
            assert not np.shares_memory(one, other), name


class Mine(RandomSampler):
    def __iter__(self):
        return iter([4, 2])


class Declared(Sampler):
    def __iter__(self):
        return iter([1, 2, 3])

    def index_chunks(self, start=0):
        return iter([np.array([1, 2, 3])[start:]])


class Inherits(Declared):
    def __iter__(self):
        return iter([9])


@pytest.mark.parametrize(
    "sampler",
    [
        Mine(range(9)),
        Inherits(),
        [1, 2],
        SubsetRandomSampler(["a", "b"]),
        SubsetRandomSampler([0.5]),
        SubsetRandomSampler([True, False]),
        SubsetRandomSampler([2**70]),
        SubsetRandomSampler([2**63]),
        SubsetRandomSampler([[1], [1, 2]]),
        SubsetRandomSampler(torch.rand(3)),
        SubsetRandomSampler(np.zeros((2, 2), dtype=int)),
        SubsetRandomSampler({0: 5}),
        RandomSampler(range(9), generator="not one"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_known_is_left_to_its_own_iteration(sampler):
    assert index_chunks(sampler) is None
    assert not is_exact(sampler)


def test_a_class_that_defines_its_chunks_is_asked_for_them():
    assert flat(index_chunks(Declared(), 1)) == [2, 3]


def test_an_order_drawn_on_another_device_is_left_to_torch():
    try:
        torch.set_default_device("meta")
        assert not is_exact(RandomSampler(range(9)))
        assert is_exact(SequentialSampler(range(9)))
    finally:
        torch.set_default_device(None)


def test_a_distributed_sampler_that_no_longer_fits_is_left_to_torchs_error():
    data = list(range(10))
    sampler = DistributedSampler(data, 3, 0)
    data.extend([0] * 7)
    assert not is_exact(sampler)
    with pytest.raises(AssertionError):
        iter(sampler)


def test_a_negative_start_is_refused():
    with pytest.raises(ValueError, match="position in the order and must be >= 0, got -1"):
        index_chunks(SequentialSampler(range(3)), -1)


def test_errors_of_an_empty_dataset_are_torchs():
    for replacement, error in ((False, ZeroDivisionError), (True, RuntimeError)):
        sampler = RandomSampler([], replacement=replacement, num_samples=3)
        with pytest.raises(error):
            next(iter(sampler))
        with pytest.raises(error):
            next(index_chunks(sampler))


def test_exact_batches_takes_only_torchs_own_apart():
    sampler = RandomSampler(range(9))
    assert exact_batches(BatchSampler(sampler, 4, True)) == (sampler, 4, True)
    assert exact_batches(BatchSampler(Mine(range(9)), 4, True)) is None
    assert exact_batches([[0, 1]]) is None

    class Own(BatchSampler):
        pass

    assert exact_batches(Own(sampler, 4, True)) is None


def test_ten_thousand_million_in_sequence_cost_nothing():
    chunks = index_chunks(SequentialSampler(range(10**10)), start=10**10 - 20_000)
    assert sum(len(chunk) for chunk in chunks) == 20_000
    assert next(index_chunks(SequentialSampler(range(10**10))))[:2].tolist() == [0, 1]


@pytest.mark.parametrize(
    "n", [0, 1, 2, 255, 256, 257, 2**15, 2**16 - 1, 2**16, 2**16 + 1, 2**20 - 1, 2**20 + 1]
)
def test_permutations_in_32_bits_are_torchs(n):
    ours, theirs = generator(n), generator(n)
    assert np.array_equal(permutation(n, ours), torch.randperm(n, generator=theirs).numpy())
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_a_permutation_is_not_overwritten_while_a_slice_of_it_lives():
    first = permutation(400_000, generator(1))
    slices = [first[5:9], torch.from_numpy(first)[7:11]]
    expected = [part.tolist() for part in slices]
    del first
    gc.collect()
    later = [permutation(400_000, generator(seed)) for seed in range(2, 6)]
    assert [part.tolist() for part in slices] == expected
    for one, other in itertools.combinations(later, 2):
        assert not np.shares_memory(one, other)


def test_memory_of_a_dead_permutation_is_used_again():
    kept = permutation(500_000, generator(1))
    address = kept.__array_interface__["data"][0]
    del kept
    again = [permutation(500_000, generator(2)) for _ in range(3)]
    assert address in [array.__array_interface__["data"][0] for array in again]


def test_chunks_survive_pickling():
    chunk = next(index_chunks(RandomSampler(range(1000), generator=generator())))
    assert pickle.loads(pickle.dumps(chunk)).tolist() == chunk.tolist()


def test_a_million_come_as_an_array_and_not_one_by_one():
    chunk = next(index_chunks(RandomSampler(range(1_000_000))))
    assert isinstance(chunk, np.ndarray)
    assert len(chunk) == 1_000_000
