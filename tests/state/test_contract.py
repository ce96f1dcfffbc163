"""What a state is and when it may be taken and loaded, as torchdata's StatefulDataLoader has it."""

import copy
import json
import pickle

import pytest
import torch
from torch.utils.data import Dataset, RandomSampler

from headrace import DataLoader
from headrace.engine.order.state import seal
from state import loaders
from state.loaders import Augmented, Eager, Stateful, columns


def shuffled(n=20, batch_size=4, **options):
    return DataLoader(range(n), batch_size=batch_size, shuffle=True, **options)


def numbers(samples):
    return torch.tensor([sample["number"] for sample in samples])


SEEDED = {
    "shuffled": lambda: shuffled(seed=3),
    "in order": lambda: DataLoader(range(20), batch_size=4, seed=3),
    "sampler with torch's": lambda: DataLoader(
        range(20), 4, seed=3, sampler=RandomSampler(range(20), generator=torch.default_generator)
    ),
    "custom sampler": lambda: DataLoader(range(20), batch_size=4, seed=3, sampler=Eager(20)),
    "one that knows its place": lambda: DataLoader(
        range(20), batch_size=4, seed=3, sampler=Stateful(20)
    ),
    "stream": lambda: DataLoader(loaders.Stream(20), 4, seed=3, collate_fn=numbers),
}


def values(loader):
    return [batch.tolist() for batch in loader]


def through_json(loader):
    return json.loads(json.dumps(loader.state_dict()))


def stopped(loader, steps):
    """A loader's state behind so many steps."""
    iterator = iter(loader)
    for _ in range(steps):
        next(iterator)
    return through_json(loader)


class TestWhenItMayBeTaken:
    def test_before_the_first_iter(self):
        torch.manual_seed(3)
        loader = shuffled()
        state = through_json(loader)
        expected = [values(loader), values(loader)]
        torch.manual_seed(4)
        again = shuffled()
        again.load_state_dict(state)
        assert [values(again), values(again)] == expected

    @pytest.mark.parametrize("workers", [0, 2])
    def test_between_iter_and_the_first_batch(self, workers):
        loader = DataLoader(Augmented(20), batch_size=4, shuffle=True, num_workers=workers)
        iterator = iter(loader)
        state = through_json(loader)
        expected = [loaders.plain(batch) for batch in iterator]
        again = DataLoader(Augmented(20), batch_size=4, shuffle=True)
        again.load_state_dict(state)
        assert [loaders.plain(batch) for batch in again] == expected

    def test_in_the_body_of_the_last_batch_nothing_is_left(self):
        loader = shuffled()
        state = stopped(loader, 5)
        again = shuffled()
        again.load_state_dict(state)
        assert values(again) == []
        assert len(values(again)) == 5

    def test_after_the_loop_a_full_epoch_is_left(self):
        loader = shuffled()
        values(loader)
        state = through_json(loader)
        following = values(loader)
        again = shuffled()
        again.load_state_dict(state)
        assert values(again) == following
        assert len(following) == 5

    def test_right_after_loading_it_is_what_was_loaded(self):
        for steps in range(6):
            state = stopped(shuffled(), steps)
            again = shuffled()
            again.load_state_dict(state)
            assert again.state_dict() == state
        finished = shuffled()
        values(finished)
        again = shuffled()
        again.load_state_dict(finished.state_dict())
        assert again.state_dict() == finished.state_dict()

    def test_of_a_resumed_loader(self):
        loader = shuffled()
        torch.manual_seed(5)
        whole = [values(loader), values(loader)]
        torch.manual_seed(5)
        state = stopped(shuffled(), 1)
        for step in range(1, 5):  # one batch, and stop again
            again = shuffled()
            again.load_state_dict(state)
            iterator = iter(again)
            assert next(iterator).tolist() == whole[0][step]
            state = through_json(again)
        again = shuffled()
        again.load_state_dict(state)
        assert [values(again), values(again)] == [[], whole[1]]

    @pytest.mark.parametrize("order", loaders.ORDERS)
    def test_again_right_behind_the_iter_that_resumed(self, order):
        loaders.seed_all(6)
        batches, states = loaders.run_through(loaders.make("columns", 20, order, 4), 2)
        for step in (0, 1, 3):
            again = loaders.make("columns", 20, order, 4)
            again.load_state_dict(json.loads(states[0][step]))
            iter(again)
            state = json.dumps(again.state_dict())
            rest = loaders.resume(("columns", 20, order, 4), {}, state, 2)
            assert rest == [batches[0][step:], batches[1]]

    def test_it_is_that_of_the_latest_iterator(self):
        loader = shuffled()
        old = iter(loader)
        next(old)
        next(iter(loader))
        next(old)
        assert loader.state_dict()["steps"] == 1

    def test_a_failed_batch_counts_and_is_not_made_again(self):
        class Broken(Dataset):
            def __len__(self):
                return 12

            def __getitem__(self, index):
                if index == 4:
                    raise ValueError("unlucky")
                return index

        for workers in (0, 1):
            loader = DataLoader(Broken(), batch_size=3, num_workers=workers)
            iterator = iter(loader)
            next(iterator)
            with pytest.raises(ValueError, match="unlucky"):
                next(iterator)
            again = DataLoader(Broken(), batch_size=3)
            again.load_state_dict(through_json(loader))
            assert values(again) == [[6, 7, 8], [9, 10, 11]]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_sampler_that_raises_is_no_step(self, workers):
        class Sometimes(Eager):
            failed = False

            def __iter__(self):
                return self

            def __next__(self):
                if self.place == 4 and not self.failed:
                    self.failed = True
                    raise OSError("not now")
                if self.place == self.n:
                    raise StopIteration
                self.place += 1
                return self.place - 1

        sampler = Sometimes(8)
        sampler.place = 0
        loader = DataLoader(
            range(8), batch_sampler=([i] for i in sampler), num_workers=workers, backend="inline"
        )
        loader = DataLoader(range(8), batch_size=None, sampler=sampler, num_workers=workers)
        iterator = iter(loader)
        seen = []
        while len(seen) < 6:
            try:
                seen.append(int(next(iterator)))
            except OSError:
                assert loader.state_dict()["steps"] == len(seen)
        assert loader.state_dict()["steps"] == 6


class TestLoading:
    def test_acts_at_the_next_iter(self):
        loader = shuffled()
        state = stopped(shuffled(), 2)
        running = iter(loader)
        next(running)
        loader.load_state_dict(state)
        assert len(list(running)) == 4
        assert len(values(loader)) == 3
        assert len(values(loader)) == 5

    def test_the_same_state_may_be_loaded_twice_and_is_not_changed(self):
        state = stopped(shuffled(), 2)
        before = copy.deepcopy(state)
        loader = shuffled()
        loader.load_state_dict(state)
        once = values(loader)
        loader.load_state_dict(state)
        assert values(loader) == once
        assert state == before

    @pytest.mark.parametrize("workers", [1, 2])
    def test_ends_workers_that_persist(self, workers):
        options = {"num_workers": workers, "persistent_workers": True}
        loader = DataLoader(Augmented(20), batch_size=4, shuffle=True, **options)
        state = stopped(loader, 2)
        rest = [loaders.plain(batch) for batch in loader._iterator]
        following = [loaders.plain(batch) for batch in loader]
        old = list(loader._iterator._workers)
        loader.load_state_dict(state)
        assert not any(worker.is_alive() for worker in old)
        assert [loaders.plain(batch) for batch in loader] == rest
        assert [loaders.plain(batch) for batch in loader] == following

    def test_puts_the_global_generator_back(self):
        torch.manual_seed(1)
        loader = shuffled()
        iterator = iter(loader)
        next(iterator)
        state = through_json(loader)
        drawn = torch.rand(3)
        torch.manual_seed(2)
        again = shuffled()
        again.load_state_dict(state)
        iter(again)
        assert torch.equal(torch.rand(3), drawn)

    def test_leaves_the_global_generator_alone_with_one_of_its_own(self):
        state = stopped(shuffled(generator=torch.Generator()), 2)
        again = shuffled(generator=torch.Generator())
        torch.manual_seed(8)
        before = torch.get_rng_state()
        again.load_state_dict(state)
        values(again)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("order", SEEDED)
    @pytest.mark.parametrize("steps", [None, 0, 2, 5, "an epoch"])
    @pytest.mark.filterwarnings("ignore:Stream has no state")
    def test_leaves_the_global_generator_alone_with_a_seed(self, order, steps):
        """It is the program's: another loader, and a dropout, are drawing from it."""
        torch.manual_seed(7)
        loader = SEEDED[order]()
        if steps == "an epoch":
            values(loader)
        state = through_json(loader) if steps in (None, "an epoch") else stopped(loader, steps)
        whole = values(SEEDED[order]())
        torch.manual_seed(8)
        before = torch.get_rng_state()
        again = SEEDED[order]()
        again.load_state_dict(state)
        left = values(again)
        assert torch.equal(torch.get_rng_state(), before)
        if type(steps) is int:
            assert left == whole[steps:]

    def test_survives_a_fork(self):
        loader = shuffled()
        torch.manual_seed(1)
        state = stopped(loader, 3)
        rest = values(iter_of(loader, state))
        again = shuffled()
        again.load_state_dict(state)
        context = torch.multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(False)
        child = context.Process(target=lambda: theirs.send(values(again)))
        child.start()
        assert ours.recv() == rest
        child.join()
        ours.close()
        theirs.close()

    def test_a_copy_of_a_loader_begins_anew(self):
        loader = shuffled()
        state = stopped(loader, 3)
        for copied in (copy.copy(loader), pickle.loads(pickle.dumps(loader))):
            assert copied.state_dict()["status"] == "fresh"
            copied.load_state_dict(state)
            assert len(values(copied)) == 2


def iter_of(loader, state):
    again = shuffled()
    again.load_state_dict(state)
    return again


class Counting(Dataset):
    def __init__(self, n):
        self.n, self.read = n, 0

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        self.read += 1
        return index


class TestWhatItCosts:
    @pytest.mark.parametrize("sampler", [None, RandomSampler, Eager, Stateful])
    def test_no_data_is_read_to_get_there(self, sampler):
        def make():
            dataset = Counting(100)
            if sampler is None:
                return DataLoader(dataset, batch_size=5)
            inner = sampler(dataset) if sampler is RandomSampler else sampler(100)
            return DataLoader(dataset, batch_size=5, sampler=inner)

        state = stopped(make(), 17)
        again = make()
        again.load_state_dict(state)
        iterator = iter(again)
        assert again.dataset.read == 0
        next(iterator)
        assert again.dataset.read == 5

    @pytest.mark.parametrize("order", loaders.ORDERS)
    def test_a_state_is_small(self, order):
        loader = loaders.make("columns", 1000, order, 4, num_workers=0)
        iterator = iter(loader)
        for _ in range(20):
            next(iterator)
        assert len(json.dumps(loader.state_dict())) < 16 << 10

    def test_a_position_far_out_is_reached_at_once(self):
        n = 10**10
        loader = DataLoader(range(n), batch_size=16, shuffle=True, seed=1)
        iterator = iter(loader)
        first = next(iterator)
        state = through_json(loader)
        state["steps"], state["samples"] = 10**7, 16 * 10**7
        again = DataLoader(range(n), batch_size=16, shuffle=True, seed=1)
        seal(state)
        again.load_state_dict(state)
        far = next(iter(again))
        assert again.state_dict()["steps"] == 10**7 + 1
        assert not set(far.tolist()) & set(first.tolist())

    def test_it_is_the_same_for_every_number_of_workers(self):
        states = []
        for workers in (0, 1, 2):
            torch.manual_seed(1)
            loader = DataLoader(Augmented(40), batch_size=4, shuffle=True, num_workers=workers)
            states.append(stopped(loader, 3))
        assert states[0] == states[1] == states[2]


def test_random_numbers_that_no_state_brings_back_are_said_once():
    loader = DataLoader(Augmented(8), 2, rng="torch")
    with pytest.warns(UserWarning, match="with rng='torch' a state") as caught:
        loader.state_dict()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    loader.state_dict()  # warnings are errors here
    DataLoader(columns(8), 2, rng="torch").state_dict()  # nothing is drawn there
    DataLoader(range(8), 2, rng="torch").state_dict()
