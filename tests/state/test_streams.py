"""Iterable datasets: each worker goes on in its own stream."""

import json
import os
import signal
import warnings

import pytest
from torch.utils.data import IterableDataset, Sampler, get_worker_info

from headrace import DataLoader
from headrace.data.compose import MappedStream
from headrace.engine.order.streams import said_of
from headrace.errors import StateError
from state.loaders import StatefulStream, Stream, plain

REPLAYED = "ignore:.*has no state"


def make(dataset, workers=0, batch_size=3, **options):
    return DataLoader(dataset, batch_size=batch_size, num_workers=workers, seed=4, **options)


def states_on_the_way(loader):
    batches, states = [], [json.dumps(loader.state_dict())]
    for batch in loader:
        batches.append(plain(batch))
        states.append(json.dumps(loader.state_dict()))
    return batches, states, json.dumps(loader.state_dict())


def after(loader, state):
    loader.load_state_dict(json.loads(state))
    assert loader.state_dict() == json.loads(state)
    return loader


@pytest.mark.filterwarnings(REPLAYED)
@pytest.mark.parametrize("batch_size", [3, 4, None])
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("kind", [Stream, StatefulStream])
def test_the_rest_and_the_next_epoch_are_the_same(kind, workers, batch_size):
    n = 11 if batch_size is None else 26
    loader = make(kind(n), workers, batch_size)
    batches, states, finished = states_on_the_way(loader)
    following = [plain(batch) for batch in loader]
    for step, state in list(enumerate(states))[:: 1 if workers < 2 else 3]:
        again = after(make(kind(n), workers, batch_size), state)
        assert [plain(batch) for batch in again] == batches[step:], step
        if step % 4 == 0:
            assert [plain(batch) for batch in again] == following, step
    again = after(make(kind(n), workers, batch_size), finished)
    assert [plain(batch) for batch in again] == following


def test_zero_and_one_worker_have_the_same_stream():
    loader = make(StatefulStream(20), 0)
    batches, states, _ = states_on_the_way(loader)
    again = after(make(StatefulStream(20), 1), states[3])
    assert [plain(batch) for batch in again] == batches[3:]


class Unequal(Stream):
    """The first worker's stream is much shorter than the second one's."""

    def __iter__(self):
        for sample in super().__iter__():
            if int(sample["number"]) % 2 or int(sample["number"]) < 6:
                yield sample


@pytest.mark.filterwarnings(REPLAYED)
def test_a_worker_that_was_done_stays_done():
    loader = make(Unequal(40), 2)
    batches, states, _ = states_on_the_way(loader)
    for step in range(2, len(states), 2):
        again = after(make(Unequal(40), 2), states[step])
        assert [plain(batch) for batch in again] == batches[step:], step


class IteratorWithState(IterableDataset):
    """The iterator says where it stands, not the dataset."""

    def __init__(self, n):
        self.n = n

    def __iter__(self):
        return _Position(self.n)


class _Position:
    def __init__(self, n):
        self.n, self.position = n, 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.position == self.n:
            raise StopIteration
        self.position += 1
        return self.position - 1

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_iterator_with_a_state_is_asked_too(workers):
    loader = make(IteratorWithState(20), workers)
    batches, states, _ = states_on_the_way(loader)
    assert json.loads(states[2])["streams"][0]["dataset"]["iterator"] == {"position": 6}
    for step, state in enumerate(states):
        again = after(make(IteratorWithState(20), workers), state)
        assert [plain(batch) for batch in again] == batches[step:]


def test_a_dataset_with_state_reads_nothing_to_get_there():
    loader = make(StatefulStream(30))
    _, states, _ = states_on_the_way(loader)
    dataset = StatefulStream(30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        next(iter(after(make(dataset), states[6])))
    assert dataset.read == 3


def test_one_without_is_read_again_with_one_warning_that_says_so():
    loader = make(Stream(30))
    batches, states, _ = states_on_the_way(loader)
    again = after(make(Stream(30)), states[4])
    with pytest.warns(UserWarning, match="Stream has no state, so the 4 batches") as caught:
        rest = [plain(batch) for batch in again]
    assert rest == batches[4:]
    assert len(caught) == 1
    assert "state_dict() and load_state_dict(state)" in str(caught[0].message)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(("saved", "other"), [(2, 0), (2, 1), (0, 2), (2, 3)])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_another_number_of_workers_is_refused_with_both_counts(saved, other):
    loader = make(StatefulStream(30), saved)
    iterator = iter(loader)
    next(iterator)
    with pytest.raises(StateError) as caught:
        make(StatefulStream(30), other).load_state_dict(loader.state_dict())
    assert f"{max(1, saved)} workers" in str(caught.value)
    assert f"has {max(1, other)}" in str(caught.value)
    assert f"num_workers={saved or '0 or 1'}" in str(caught.value)


class Divided(StatefulStream):
    def shard(self, index, count):
        part = Divided(self.n)
        part.index, part.count = index, count
        return part

    def __iter__(self):
        for sample in super().__iter__():
            if int(sample["number"]) % self.count == self.index:
                yield sample


def test_another_rank_or_number_of_ranks_is_refused():
    loader = make(Divided(30), shard=(0, 2))
    next(iter(loader))
    state = loader.state_dict()
    with pytest.raises(StateError, match=r"rank 0 of 2.*rank 1 of 2"):
        make(Divided(30), shard=(1, 2)).load_state_dict(state)
    with pytest.raises(StateError, match=r"rank 0 of 2.*rank 0 of 4"):
        make(Divided(30), batch_size=3, shard=(0, 4)).load_state_dict(state)


class DiesOnce(Stream):
    """Its first worker to make a sample it was not asked for before is killed."""

    def __init__(self, n, flag):
        super().__init__(n)
        self.flag = flag

    def __iter__(self):
        for sample in super().__iter__():
            self.die_where_it_goes_on(int(sample["number"]))
            yield sample

    def die_where_it_goes_on(self, number):
        if number > 30 and self.flag.exists() and get_worker_info().id == 0:
            self.flag.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


class DiesOnceStateful(DiesOnce, StatefulStream):
    def __init__(self, n, flag):
        StatefulStream.__init__(self, n)
        self.flag = flag


@pytest.mark.filterwarnings(REPLAYED)
@pytest.mark.parametrize("kind", [DiesOnce, DiesOnceStateful])
def test_a_worker_killed_before_its_first_batch_after_resuming_loses_nothing(kind, tmp_path):
    flag = tmp_path / "die"
    batches, states, _ = states_on_the_way(make(kind(80, flag), 2))
    step = next(k for k, batch in enumerate(batches) if max(batch["number"]) > 30)
    flag.touch()
    again = after(make(kind(80, flag), 2), states[step])
    assert [plain(batch) for batch in again] == batches[step:]
    assert not flag.exists()
    assert again.statistics().restarts == 1


def test_workers_that_persist_begin_the_next_epoch_at_its_start():
    options = {"num_workers": 2, "persistent_workers": True}
    loader = DataLoader(StatefulStream(24), batch_size=3, **options)
    iterator = iter(loader)
    next(iterator)
    state = json.dumps(loader.state_dict())
    again = DataLoader(StatefulStream(24), batch_size=3, **options)
    again.load_state_dict(json.loads(state))
    rest = [int(i) for batch in again for i in batch["number"]]
    whole = [int(i) for batch in again for i in batch["number"]]
    assert len(rest) == 21
    assert sorted(whole) == list(range(24))


class AnotherProtocol(Stream):
    """Has methods of these names for a loader of its own, as Mosaic's StreamingDataset has."""

    def state_dict(self, num_samples, from_beginning):
        raise AssertionError("it was asked with what it does not know")

    def load_state_dict(self, obj, strict):
        raise AssertionError("it was given a state of ours")


class Attributes(Stream):
    """Has attributes of these names that cannot be called."""

    state_dict = load_state_dict = None


@pytest.mark.filterwarnings(REPLAYED)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", [AnotherProtocol, Attributes])
def test_methods_with_other_arguments_are_for_somebody_else(kind, wrapped, workers):
    def of(length):
        return MappedStream(kind(length), plain) if wrapped else kind(length)

    batches, states, _ = states_on_the_way(make(of(12), workers))
    again = after(make(of(12), workers), states[2])
    assert [plain(batch) for batch in again] == batches[2:]


def test_a_sampler_s_methods_with_other_arguments_are_for_somebody_else():
    class Backwards(Sampler):
        def __iter__(self):
            return iter(range(11, -1, -1))

        def __len__(self):
            return 12

        def state_dict(self, step):
            raise AssertionError(step)

        def load_state_dict(self, state):
            raise AssertionError(state)

    def loader():
        return make(range(12), sampler=Backwards())

    batches, states, _ = states_on_the_way(loader())
    assert [plain(batch) for batch in after(loader(), states[1])] == batches[1:]


@pytest.mark.filterwarnings(REPLAYED)
def test_a_wrapper_s_answer_is_not_taken_for_another_s():
    """What one mapped stream can do says nothing of the next, though they are of one class."""
    for kind in (Stream, StatefulStream, AnotherProtocol, StatefulStream):
        said = said_of(MappedStream(kind(5), plain))
        assert (said is not None) == (kind is StatefulStream)
