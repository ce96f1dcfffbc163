"""headrace's `DistributedSampler` is torch's in everything a program can see."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data.distributed import DistributedSampler as TorchDistributedSampler

from headrace.sampling.distributed import DistributedSampler
from headrace.sampling.order import index_chunks, is_exact


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 300),
    ranks=st.integers(1, 8),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_order_length_and_epochs_are_torchs(n, ranks, shuffle, drop_last, epoch, data):
    if drop_last and n < ranks and n % ranks:
        return  # torch's own arithmetic breaks down there
    rank = data.draw(st.integers(0, ranks - 1))
    start = data.draw(st.integers(0, n + 1))
    arguments = (range(n), ranks, rank, shuffle, 5, drop_last)
    ours, theirs = DistributedSampler(*arguments), TorchDistributedSampler(*arguments)
    ours.set_epoch(epoch)
    theirs.set_epoch(epoch)
    expected = list(theirs)
    assert list(ours) == expected
    assert len(ours) == len(theirs)
    assert [int(i) for chunk in index_chunks(ours, start) for i in chunk] == expected[start:]


def test_indices_are_plain_integers_and_the_sampler_is_torchs_too():
    sampler = DistributedSampler(range(20), 2, 1)
    assert {type(i) for i in sampler} == {int}
    assert isinstance(sampler, TorchDistributedSampler)
    assert list(pickle.loads(pickle.dumps(sampler))) == list(sampler)


def test_the_epoch_is_read_when_iteration_begins_not_later():
    ours, theirs = (kind(range(50), 2, 0) for kind in (DistributedSampler, TorchDistributedSampler))
    begun = iter(ours), iter(theirs)
    for sampler in (ours, theirs):
        sampler.set_epoch(1)
    assert list(begun[0]) == list(begun[1])


def test_a_dataset_that_changed_its_length_is_torchs_error():
    data = list(range(10))
    sampler = DistributedSampler(data, 3, 0)
    data.extend([0] * 7)
    assert not is_exact(sampler)
    with pytest.raises(AssertionError):
        iter(sampler)


def test_a_rank_that_cannot_be_is_torchs_error():
    with pytest.raises(ValueError, match="Invalid rank 2"):
        DistributedSampler(range(5), 2, 2)


def test_a_subclass_with_an_order_of_its_own_is_iterated():
    class Reversed(DistributedSampler):
        def __iter__(self):
            return iter([3, 2, 1])

    assert index_chunks(Reversed(range(5), 2, 0)) is None
