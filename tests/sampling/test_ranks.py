"""Ranks divide one global order: every sample once, equal steps, elastic restarts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import RandomSampler

from headrace.errors import OptionError, StateError
from headrace.sampling.order import index_chunks, sequential_chunks
from headrace.sampling.ranks import Shard, rank_batch_size


def shards(world, batch, **options):
    return [Shard(rank, world, batch, **options) for rank in range(world)]


def run(shard, length, start=0):
    order = iter([np.arange(start, length)])
    return [batch.tolist() for batch in shard.batches(order, length, start)]


def dealt(world, batch, length, start=0, **options):
    """What each rank gets: a list of batches per rank."""
    return [run(shard, length, start) for shard in shards(world, batch, **options)]


lengths = st.integers(0, 300)
worlds = st.integers(1, 9)
batches = st.integers(1, 9)


@settings(max_examples=300, deadline=None)
@given(length=lengths, world=worlds, batch=batches)
def test_exact_gives_every_sample_once_in_equal_steps(length, world, batch):
    ranks = dealt(world, batch, length)
    seen = sorted(i for rank in ranks for b in rank for i in b)
    assert seen == list(range(length))
    assert all(1 <= len(b) <= batch for rank in ranks for b in rank)
    steps = [len(rank) for rank in ranks]
    one = Shard(0, world, batch)
    enough = length >= world and (batch > 1 or length % world == 0)
    assert one.has_equal_steps(length) == (enough or length == 0)
    if one.has_equal_steps(length):
        assert len(set(steps)) == 1
        for step in range(steps[0]):
            sizes = [len(rank[step]) for rank in ranks]
            assert max(sizes) - min(sizes) <= 1
    else:
        assert max(steps) - min(steps) == 1
        assert steps == sorted(steps, reverse=True)


@settings(max_examples=200, deadline=None)
@given(length=lengths, world=worlds, batch=batches, drop_last=st.booleans())
def test_pad_repeats_fewer_samples_than_ranks_and_drops_none(length, world, batch, drop_last):
    ranks = dealt(world, batch, length, uneven="pad", drop_last=drop_last)
    assert len({tuple(len(b) for b in rank) for rank in ranks}) == 1
    flat = [i for rank in ranks for b in rank for i in b]
    if not drop_last:
        assert set(flat) == set(range(length))
        assert len(flat) - length < world
    else:
        assert all(len(b) == batch for rank in ranks for b in rank)
        # As torch: DistributedSampler pads, then the batch sampler drops.
        assert len(ranks[0]) == -(-length // world) // batch


@settings(max_examples=200, deadline=None)
@given(length=lengths, world=worlds, batch=batches)
def test_drop_leaves_out_fewer_samples_than_ranks_and_repeats_none(length, world, batch):
    ranks = dealt(world, batch, length, uneven="drop")
    assert len({tuple(len(b) for b in rank) for rank in ranks}) == 1
    seen = sorted(i for rank in ranks for b in rank for i in b)
    assert seen == list(range(length // world * world))


@settings(max_examples=100, deadline=None)
@given(
    length=lengths, world=worlds, batch=batches, uneven=st.sampled_from(["exact", "pad", "drop"])
)
def test_drop_last_gives_full_batches_only(length, world, batch, uneven):
    ranks = dealt(world, batch, length, uneven=uneven, drop_last=True)
    assert all(len(b) == batch for rank in ranks for b in rank)
    assert len({len(rank) for rank in ranks}) == 1
    if uneven != "pad":
        assert len(ranks[0]) == length // (world * batch)


@settings(max_examples=200, deadline=None)
@given(
    length=lengths,
    world=worlds,
    batch=batches,
    uneven=st.sampled_from(["exact", "pad", "drop"]),
    drop_last=st.booleans(),
)
def test_counted_steps_are_the_steps_taken(length, world, batch, uneven, drop_last):
    for shard in shards(world, batch, uneven=uneven, drop_last=drop_last):
        taken = run(shard, length)
        assert shard.rank_steps(length) == len(taken)
        ends = [shard.bounds(length, s) for s in range(shard.steps(length))]
        assert [first for first, _ in ends[1:]] == [last for _, last in ends[:-1]]


@settings(max_examples=200, deadline=None)
@given(
    length=lengths,
    world=worlds,
    batch=batches,
    uneven=st.sampled_from(["exact", "pad", "drop"]),
    data=st.data(),
)
def test_resuming_with_the_same_ranks_goes_on_as_if_nothing_had_happened(
    length, world, batch, uneven, data
):
    for shard in shards(world, batch, uneven=uneven):
        whole = run(shard, length)
        step = data.draw(st.integers(0, shard.steps(length)))
        start = shard.bounds(length, step - 1)[1] if step else 0
        assert run(shard, length, start) == whole[step:]


@settings(max_examples=300, deadline=None)
@given(length=lengths, multiple=st.integers(1, 3), data=st.data())
def test_four_ranks_then_two_then_three_see_every_sample_once(length, multiple, data):
    global_batch = 12 * multiple
    position, seen = 0, []
    for world in (4, 2, 3, 1):
        batch = rank_batch_size(global_batch, world)
        one = Shard(0, world, batch)
        assert one.global_batch == global_batch
        steps = one.steps(length, position)
        stop = steps if world == 1 else data.draw(st.integers(0, steps))
        for rank in dealt(world, batch, length, position):
            seen += [i for b in rank[:stop] for i in b]
        position = one.bounds(length, stop - 1, position)[1] if stop else position
    assert sorted(seen) == list(range(length))
    assert position == length


def test_a_rank_count_that_does_not_divide_is_refused_with_the_numbers():
    with pytest.raises(StateError, match=r"12 samples, which 5 ranks .* 1, 2, 3, 4, 6, 12 ranks"):
        rank_batch_size(12, 5)
    with pytest.raises(StateError, match=r"\.\.\. ranks"):
        rank_batch_size(5040, 11)


def test_the_last_two_batches_as_the_docstring_says():
    # 13 samples, 4 ranks of 3: one is left over, so the full step gives up three.
    assert dealt(4, 3, 13) == [[[0, 1, 2], [9]], [[3, 4], [10]], [[5, 6], [11]], [[7, 8], [12]]]
    # 17: five are left over, enough for all.
    assert [rank[1] for rank in dealt(4, 3, 17)] == [[12, 13], [14], [15], [16]]


def test_fewer_samples_than_ranks_as_the_docstring_says():
    assert dealt(4, 2, 3) == [[[0]], [[1]], [[2]], []]
    assert dealt(4, 2, 3, uneven="pad") == [[[0]], [[1]], [[2]], [[0]]]
    assert dealt(4, 2, 1, uneven="pad") == [[[0]], [[0]], [[0]], [[0]]]
    assert dealt(4, 2, 3, uneven="drop") == [[], [], [], []]
    assert dealt(2, 1, 3) == [[[0], [2]], [[1]]]


@pytest.mark.parametrize("uneven", ["exact", "pad", "drop"])
def test_nothing_from_nothing(uneven):
    assert dealt(3, 2, 0, uneven=uneven) == [[], [], []]
    assert Shard(0, 3, 2, uneven).has_equal_steps(0)


@pytest.mark.parametrize("pieces", [1, 5, 7, 1000])
def test_any_chunking_of_the_order_gives_the_same_batches(pieces):
    shard = Shard(1, 3, 4)
    chunks = (np.arange(low, min(low + pieces, 100)) for low in range(0, 100, pieces))
    assert [b.tolist() for b in shard.batches(chunks, 100)] == run(shard, 100)


def test_an_order_shorter_than_its_length_ends_early():
    assert [b.tolist() for b in Shard(0, 2, 2).batches(iter([np.arange(5)]), 8)] == [[0, 1], [4]]


def test_the_order_is_asked_to_its_end_so_that_generators_agree():
    drawn = []
    for use in (list, lambda s: list(Shard(0, 2, 2, "drop").batches(index_chunks(s), 11))):
        generator = torch.Generator().manual_seed(1)
        use(RandomSampler(range(11), generator=generator))
        drawn.append(generator.get_state())
    assert torch.equal(*drawn)


def test_ten_thousand_million_samples_resume_at_once():
    length = 10**10 + 7
    shard = Shard(5, 8, 256)
    start = 4_000_000 * shard.global_batch
    first = next(shard.batches(sequential_chunks(start, length), length, start))
    assert first.tolist() == list(range(start + 5 * 256, start + 6 * 256))
    assert shard.steps(length) == -(-length // 2048)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (2, 2, 1),
            r"0 <= rank < world_size, got \(2, 2\): the first of 2 ranks is shard=\(0, 2\)",
        ),
        ((-1, 2, 1), "rank"),
        ((0, 0, 1), "rank"),
        ((0, 1, 0), "batch_size of a rank must be at least 1, got 0"),
        ((0, 1, 1, "even"), "'exact', 'pad' and 'drop', got 'even'"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(OptionError, match=message):
        Shard(*arguments)


def test_there_is_no_step_outside_the_epoch():
    for step in (-1, 3):
        with pytest.raises(IndexError, match=f"step {step} is outside the 3 steps of 10 samples"):
            Shard(0, 2, 2).bounds(10, step)
