"""Batch samplers that plan an epoch: over columns their batches are gathered ahead, as in torch."""

import json

import numpy as np
import pytest
import torch
import torch.utils.data as torch_data
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import (
    BucketBatchSampler,
    DataLoader,
    OptionError,
    PackedBatchSampler,
    StateError,
    StratifiedBatchSampler,
)
from headrace.engine.making.gather import BlockGather
from headrace.sampling.planned import PlannedBatchSampler

N = 60
LENGTHS = np.random.default_rng(0).integers(1, 20, N)


class InTurn(PlannedBatchSampler):
    """Batches of the given sizes, in a shuffled order."""

    def __init__(self, sizes, generator=None):
        self.sizes, self.generator = sizes, generator

    def __len__(self):
        return len(self.sizes)

    def plan(self, seed):
        offsets = np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)])
        return np.random.default_rng(seed % 2**32).permutation(int(offsets[-1])), offsets


class Later(InTurn):
    """It iterates in a way of its own."""

    def __iter__(self):
        yield from list(super().__iter__())[::-1]


KINDS = {
    "stratified": lambda g: StratifiedBatchSampler(LENGTHS % 3, 7, generator=g),
    "buckets": lambda g: BucketBatchSampler(LENGTHS, max_tokens=90, generator=g),
    "buckets, in order": lambda g: BucketBatchSampler(LENGTHS, max_tokens=90, shuffle=False),
    "packed": lambda g: PackedBatchSampler(LENGTHS, 70, generator=g),
    "one's own": lambda g: InTurn([3, 3, 3, 1, 5, 5, 2], g),
    "one that iterates its own way": lambda g: Later([3, 3, 1, 5], g),
}
KEYS = torch.arange(N), torch.arange(2.0 * N).reshape(N, 2)


def make(kind, own, workers=0, loader=DataLoader, **options):
    generator = torch.Generator().manual_seed(3) if own else None
    sampler = KINDS[kind](generator)
    dataset = torch_data.TensorDataset(*KEYS)
    return loader(
        dataset, batch_sampler=sampler, generator=generator, num_workers=workers, **options
    )


def flat(batches):
    return [[column.tolist() for column in batch] for batch in batches]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_draws_are_those_of_torchs_loader(kind, workers, own):
    seen = []
    for loader in (DataLoader, torch_data.DataLoader):
        torch.manual_seed(5)
        made = make(kind, own, workers, loader)
        first = flat(made)
        torch.rand(1)
        batches = iter(made)
        second = flat([next(batches)])
        seen.append((first, second, torch.rand(1).item(), flat(batches), torch.rand(1).item()))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_equal_batches_in_a_row_are_gathered_together(workers, monkeypatch):
    rows = []
    gathered = BlockGather._gather

    def counted(self, indices, batch_size):
        rows.append(len(indices) // batch_size)
        return gathered(self, indices, batch_size)

    monkeypatch.setattr(BlockGather, "_gather", counted)
    loader = make("one's own", True, workers)
    list(loader)
    assert rows == [3, 1, 2, 1]
    assert loader.statistics().path == ("gather-thread" if workers else "gather")


@pytest.mark.filterwarnings("ignore:generator= is not drawn from")
@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    own=st.booleans(),
    seed=st.sampled_from([None, 7]),
    workers=st.sampled_from([0, 0, 1]),
    other=st.sampled_from([0, 0, 1]),
    stop=st.integers(0, 12),
)
def test_the_rest_and_the_next_epoch_are_the_same(kind, own, seed, workers, other, stop):
    torch.manual_seed(1)
    loader = make(kind, own, workers, seed=seed)
    list(loader)
    batches = iter(loader)
    for _ in range(min(stop, len(loader))):
        next(batches)
    state = json.dumps(loader.state_dict())
    rest = flat(batches)
    following = flat(loader)
    torch.manual_seed(2)
    again = make(kind, own, other, seed=seed)
    again.load_state_dict(json.loads(state))
    assert flat(again) == rest
    assert flat(again) == following


@pytest.mark.parametrize("workers", [0, 1])
def test_a_plan_of_something_else_is_refused(workers):
    dataset = torch_data.TensorDataset(*KEYS)
    loader = DataLoader(dataset, batch_sampler=InTurn([3, 3, 2]), num_workers=workers)
    next(iter(loader))
    state = loader.state_dict()
    again = DataLoader(dataset, batch_sampler=InTurn([3, 2, 3]), num_workers=workers)
    again.load_state_dict(state)
    with pytest.raises(StateError, match="gives other indices"):
        next(iter(again))


def test_an_empty_batch_of_a_plan_is_named():
    dataset = torch_data.TensorDataset(*KEYS)
    with pytest.raises(ValueError, match="batch 1 of the plan of InTurn is empty"):
        list(DataLoader(dataset, batch_sampler=InTurn([2, 0, 2])))


RANKED = {
    "buckets": lambda: BucketBatchSampler(LENGTHS, max_tokens=60),
    "packed": lambda: PackedBatchSampler(LENGTHS, 70),
    "stratified": lambda: StratifiedBatchSampler(LENGTHS // 16, 7),
}


def of_rank(kind, rank, ranks=2, workers=0, data=KEYS, **options):
    dataset = torch_data.TensorDataset(*data)
    options = {"seed": 3, "num_workers": workers, **options}
    return DataLoader(dataset, batch_sampler=RANKED[kind](), shard=(rank, ranks), **options)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", RANKED)
def test_ranks_share_a_plan_and_each_goes_on_in_its_own(kind, workers):
    loaders = [of_rank(kind, rank, workers=workers) for rank in (0, 1)]
    rests, states = [], []
    seen = []
    for loader in loaders:
        batches = iter(loader)
        assert len(batches) == len(loader) == len(loaders[0])
        first = flat([next(batches), next(batches)])
        states.append(json.dumps(loader.state_dict()))
        rests.append(flat(batches))
        assert len(first) + len(rests[-1]) == len(loader)
        seen += [i for batch in first + rests[-1] for i in batch[0]]
    assert sorted(seen) == list(range(N))
    following = [flat(loader) for loader in loaders]
    assert following[0] != rests[0]
    for rank, saved_by in [(0, 0), (1, 1), (0, 1), (1, 0)]:
        again = of_rank(kind, rank)
        again.load_state_dict(json.loads(states[saved_by]))
        assert flat(again) == rests[rank]
        assert flat(again) == following[rank]
    with pytest.raises(StateError, match="num_replicas"):
        of_rank(kind, 0, 3).load_state_dict(json.loads(states[0]))


def test_what_cannot_be_shared_says_so():
    dataset = torch_data.TensorDataset(*KEYS)
    with pytest.raises(OptionError, match="divides batches of a fixed size"):
        DataLoader(dataset, batch_sampler=InTurn([3]), shard=(0, 2))
    with pytest.raises(OptionError, match="equally many batches"):
        of_rank("buckets", 0, uneven="pad")
