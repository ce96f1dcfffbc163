"""Real ranks over gloo: one order, each sample once, and other numbers of ranks go on."""

import json

import pytest
from torch.utils.data.distributed import DistributedSampler

from headrace import DataLoader
from headrace.errors import OptionError, StateError
from state import ranks


def indices(answers, epoch=0):
    return [i for seen, _ in answers for batch in seen[epoch] for i in batch]


def by_step(answers, epoch=0):
    """The samples of each step over all ranks."""
    most = max(len(seen[epoch]) for seen, _ in answers)
    return [
        sorted(i for seen, _ in answers for i in (seen[epoch][step : step + 1] or [[]])[0])
        for step in range(most)
    ]


SHUFFLED = {"shuffle": True}


@pytest.mark.parametrize("options", [SHUFFLED, {"shuffle": True, "num_workers": 1}, {"custom": 1}])
@pytest.mark.parametrize(("world_size", "n"), [(2, 23), (4, 37)])
def test_ranks_seeded_differently_share_one_order(fresh, world_size, n, options):
    answers = fresh(ranks.together, world_size, ranks.epochs, n, options, None, None, 2)
    for epoch in (0, 1):
        assert sorted(indices(answers, epoch)) == list(range(n))
        steps = {len(seen[epoch]) for seen, _ in answers}
        assert len(steps) == 1
    assert indices(answers, 0) != indices(answers, 1)


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("saved_by", [0, 3])
@pytest.mark.parametrize("options", [SHUFFLED, {"custom": 1}])
def test_four_ranks_then_two_then_three_see_each_sample_once(fresh, options, saved_by, stop):
    n, options = 101, {**options, "batch_size": 3}  # a global batch of 12
    whole = fresh(ranks.together, 4, ranks.epochs, n, options, None, None, 1)
    four = fresh(ranks.together, 4, ranks.epochs, n, options, None, stop, 1)
    two = fresh(ranks.together, 2, ranks.epochs, n, options, four[saved_by][1], 2, 1)
    three = fresh(ranks.together, 3, ranks.epochs, n, options, two[0][1], None, 2)
    assert sorted(indices(four) + indices(two) + indices(three)) == list(range(n))
    assert sorted(indices(three, 1)) == list(range(n))
    assert by_step(four) + by_step(two) + by_step(three) == by_step(whole)
    assert len({len(seen[0]) for seen, _ in three}) == 1


def test_stopping_where_the_last_two_batches_are_uneven_loses_nothing(fresh):
    # 4 ranks of 2: 9 samples are dealt out as 5 and 4, so that each rank has a second batch.
    whole = fresh(ranks.together, 4, ranks.epochs, 9, SHUFFLED, None, None, 1)
    four = fresh(ranks.together, 4, ranks.epochs, 9, SHUFFLED, None, 1, 1)
    two = fresh(ranks.together, 2, ranks.epochs, 9, SHUFFLED, four[1][1], None, 1)
    assert sorted(indices(four) + indices(two)) == list(range(9))
    assert by_step(four) + by_step(two) == by_step(whole)


def test_each_rank_may_load_its_own_state(fresh):
    whole = fresh(ranks.together, 2, ranks.epochs, 30, SHUFFLED, None, None, 2)
    first = fresh(ranks.together, 2, ranks.epochs, 30, SHUFFLED, None, 3, 1)
    states = [state for _, state in first]
    rest = fresh(ranks.together, 2, ranks.epochs, 30, SHUFFLED, states, None, 2)
    for rank in (0, 1):
        assert rest[rank][0][0] == whole[rank][0][0][3:]
        assert rest[rank][0][1] == whole[rank][0][1]


def test_a_number_of_ranks_that_does_not_divide_the_global_batch_is_refused(fresh):
    four = fresh(ranks.together, 4, ranks.epochs, 40, SHUFFLED, None, 2, 1)
    answers = fresh(ranks.together, 3, ranks.epochs, 40, SHUFFLED, four[0][1], None, 1)
    for answer in answers:
        assert answer.startswith("StateError")
        assert "global batch of 8 samples" in answer
        assert "3 ranks" in answer
        assert "1, 2, 4, 8" in answer


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"shuffle": True, "length": [20, 21]}, "the length of the dataset is [20, 21]"),
        ({"shuffle": True, "batch_size": [2, 4]}, "the global batch is [4, 8]"),
        ({"shuffle": [True, False]}, "the kind of sampler"),
        ({"shuffle": True, "seed": [None, 3]}, "seed= (-1 for none) is [-1, 3]"),
        ({"shuffle": True, "seed": [4, 3]}, "seed= (-1 for none) is [4, 3]"),
        ({"shuffle": True, "uneven": ["exact", "pad"]}, "uneven="),
        ({"shuffle": True, "drop_last": [False, True]}, "drop_last is [0, 1]"),
    ],
)
def test_loaders_that_differ_are_refused_on_all_ranks(fresh, options, name):
    answers = fresh(ranks.together, 2, ranks.epochs, 20, options, None, None, 1)
    for answer in answers:
        assert answer.startswith("OptionError: the ranks' loaders differ")
        assert name in answer


@pytest.mark.parametrize("name", ["floats", "integers", "types", "subsets"])
def test_other_data_of_the_same_length_is_refused_on_all_ranks(fresh, name):
    for answer in fresh(ranks.together, 2, ranks.steps_of, name):
        assert answer.startswith("OptionError: the ranks' loaders differ")
        assert "dataset" in answer.splitlines()[0]


@pytest.mark.parametrize("name", ["last bits", "no numbers", "lists"])
def test_data_that_each_machine_computed_for_itself_is_the_same(fresh, name):
    assert fresh(ranks.together, 2, ranks.steps_of, name) == [5, 5]


def test_a_state_on_one_rank_only_is_refused_on_all(fresh):
    first = fresh(ranks.together, 2, ranks.epochs, 20, SHUFFLED, None, 2, 1)
    fresh_state = json.dumps(DataLoader(range(20), batch_size=2, shuffle=True).state_dict())
    states = [first[0][1], fresh_state]
    for answer in fresh(ranks.together, 2, ranks.epochs, 20, SHUFFLED, states, None, 1):
        assert "the position in the epoch is [8, 0]" in answer


@pytest.mark.parametrize("uneven", ["pad", "drop"])
def test_padding_and_dropping_make_all_batches_equal(fresh, uneven):
    options = {"shuffle": True, "uneven": uneven, "batch_size": 3}
    answers = fresh(ranks.together, 4, ranks.epochs, 26, options, None, None, 1)
    sizes = [[len(batch) for batch in seen[0]] for seen, _ in answers]
    assert sizes == [sizes[0]] * 4
    seen = indices(answers)
    assert len(set(seen)) == (26 if uneven == "pad" else 24)
    assert len(seen) == (28 if uneven == "pad" else 24)


def test_fewer_samples_than_ranks(fresh):
    answers = fresh(ranks.together, 4, ranks.epochs, 2, SHUFFLED, None, None, 2)
    assert sorted(indices(answers)) == [0, 1]
    assert [len(seen[0]) for seen, _ in answers] == [1, 1, 0, 0]


@pytest.mark.parametrize("uneven", ["exact", "pad", "drop"])
@pytest.mark.parametrize("n", [3, 9, 21])
def test_the_length_of_a_loader_is_what_it_gives(fresh, n, uneven):
    options = {"shuffle": True, "uneven": uneven}
    for length, of_iterator, given in fresh(ranks.together, 4, ranks.lengths, n, options):
        assert length == of_iterator == given


def test_ranks_draw_different_random_numbers(fresh):
    one, other = fresh(ranks.together, 2, ranks.noise, 12)
    assert one != other
    assert fresh(ranks.together, 2, ranks.noise, 12) == [one, other]


def test_streams_are_divided(fresh):
    answers = fresh(ranks.together, 2, ranks.streams, 11)
    assert sorted(i for answer in answers for batch in answer for i in batch) == list(range(11))
    for answer in fresh(ranks.together, 2, ranks.undivided, 11):
        assert "Stream cannot be divided among ranks" in answer
        assert "shard(index, count)" in answer


# What needs no process group.


def test_one_order_needs_a_process_group_or_a_seed():
    loader = DataLoader(range(20), shuffle=True, batch_size=2, shard=(1, 2))
    with pytest.raises(OptionError, match="seed=0"):
        iter(loader)
    parts = [
        list(DataLoader(range(20), shuffle=True, batch_size=2, shard=(rank, 2), seed=0))
        for rank in (0, 1)
    ]
    assert sorted(int(i) for part in parts for batch in part for i in batch) == list(range(20))


def test_the_epochs_of_a_seed_count_up_and_go_on():
    def make():
        return DataLoader(range(30), shuffle=True, batch_size=4, shard=(0, 2), seed=9)

    loader = make()
    three = [[batch.tolist() for batch in loader] for _ in range(3)]
    assert len({str(epoch) for epoch in three}) == 3
    loader = make()
    list(loader)
    iterator = iter(loader)
    next(iterator)
    state = json.loads(json.dumps(loader.state_dict()))
    again = make()
    again.load_state_dict(state)
    assert [[batch.tolist() for batch in again] for _ in range(2)] == [three[1][1:], three[2]]


def test_a_distributed_sampler_is_not_divided_again():
    sampler = DistributedSampler(range(20), num_replicas=2, rank=0)
    with pytest.raises(OptionError, match="divide it twice"):
        DataLoader(range(20), sampler=sampler, shard=(0, 2))


@pytest.mark.parametrize("shard", [3, "all", (1,), (0, 2.0), (2, 2), (-1, 2)])
def test_what_is_no_shard_is_refused(shard):
    with pytest.raises(OptionError, match="shard"):
        list(DataLoader(range(20), shard=shard, seed=0))


def test_a_shard_of_batches_of_ones_own_is_refused():
    with pytest.raises(OptionError, match="batches of a fixed size"):
        DataLoader(range(20), batch_sampler=[[1, 2], [3]], shard=(0, 2))


def test_a_state_without_shard_is_refused_with_one():
    loader = DataLoader(range(20), shuffle=True, batch_size=4)
    next(iter(loader))
    with pytest.raises(StateError, match=r"'generator'.*'ranks'"):
        DataLoader(range(20), shuffle=True, batch_size=2, shard=(0, 2)).load_state_dict(
            loader.state_dict()
        )


def test_one_process_goes_on_where_ranks_stopped():
    def make(rank, ranks, batch_size):
        options = {"shuffle": True, "seed": 1, "shard": (rank, ranks)}
        return DataLoader(range(50), batch_size=batch_size, **options)

    first = [make(rank, 4, 3) for rank in range(4)]
    seen = [int(i) for loader in first for i in next(iter(loader))]
    rest = make(0, 1, 5)
    rest.load_state_dict(first[2].state_dict())
    sizes = []
    for batch in rest:
        sizes.append(len(batch))
        seen += batch.tolist()
    assert sorted(seen) == list(range(50))
    assert sizes == [12, 12, 12, 2]
