"""``num_workers="auto"``: what is chosen for which cost, and that measuring leaves no trace."""

import multiprocessing
import random

import numpy as np
import pytest
import torch

import headrace
from headrace import DataLoader
from headrace.engine.backends.context import is_forked
from headrace.engine.epoch.auto import Cost, choose, decide, trial_batches
from headrace.wiring import options_of

MS = 1e-3


def cost(batch, cpu=None, lock=None, draws=False):
    """The cost of a batch, in milliseconds; all of it computing under the lock by default."""
    cpu = batch if cpu is None else cpu
    return Cost(batch * MS, cpu * MS, (cpu if lock is None else lock) * MS, 1000, draws)


class TestDecision:
    @pytest.mark.parametrize(
        ("measured", "chosen"),
        [
            (cost(0.05), ("auto", 0)),  # light: no worker pays
            (cost(10), ("process", 2)),  # Python: the lock would make threads queue
            (cost(10, lock=0.1), ("process", 2)),  # as good in threads, which share the dataset
            (cost(10, cpu=0.1), ("process", 2)),
        ],
    )
    def test_of_a_long_epoch(self, measured, chosen):
        assert decide(measured, 2, 10_000, "auto")[:2] == chosen

    def test_a_short_epoch_is_no_time_to_start_processes(self):
        assert decide(cost(5, lock=0.1), 2, 20, "auto")[:2] == ("thread", 2)
        assert decide(cost(5), 2, 10, "auto")[:2] == ("auto", 0)

    def test_processes_that_import_torch_first_have_to_be_worth_it(self):
        measured = cost(5)
        assert decide(measured, 2, 600, "auto")[:2] == ("process", 2)
        assert decide(measured, 2, 600, "auto", forked=False)[:2] == ("auto", 0)

    def test_threads_are_out_where_random_numbers_are_drawn_from_the_process(self):
        measured = cost(5, lock=0.1, draws=True)
        choice = decide(measured, 2, 20, "auto")
        assert choice.backend != "thread"
        assert "threads are out" in choice.why
        assert decide(measured, 2, 20, "thread")[:2] == ("thread", 2)

    def test_the_backend_that_was_asked_for_is_kept(self):
        assert decide(cost(10, lock=0.1), 2, 1000, "process")[:2] == ("process", 2)
        assert decide(cost(10), 2, 1000, "thread")[0] != "process"

    def test_one_core_has_no_room_for_workers_that_compute(self):
        assert decide(cost(10), 1, 1000, "auto")[:2] == ("auto", 0)

    def test_says_why(self):
        assert "takes 10 ms, 100 % of it computing" in decide(cost(10), 2, 1000, "auto").why


class Drawing(headrace.Dataset):
    def __init__(self):
        self.asked = 0

    def __len__(self):
        return 30

    def __getitem__(self, index):
        self.asked += 1
        return index + torch.rand(()) + random.random() + np.random.rand()


def test_order_and_random_numbers_are_those_of_a_fixed_number():
    torch.manual_seed(0)
    wanted = list(DataLoader(Drawing(), batch_size=4, shuffle=True))
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    before = random.getstate(), np.random.get_state()[1].tolist()
    loader = DataLoader(Drawing(), batch_size=4, shuffle=True, num_workers="auto")
    assert (loader.num_workers, loader.dataset.asked) == (0, 0)  # nothing is run before iter()
    made = list(loader)
    assert all(map(torch.equal, made, wanted))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert loader.backend != "thread"
    assert "takes" in loader.statistics().why


def test_is_decided_once():
    loader = DataLoader(Drawing(), num_workers="auto")
    list(loader)
    why = loader.statistics().why
    list(loader)
    assert loader.statistics().why == why


def test_columns_are_gathered_here():
    loader = DataLoader(headrace.TensorDataset(torch.rand(9)), num_workers="auto")
    list(loader)
    assert loader.statistics().path == "gather"
    assert "columns are gathered" in loader.statistics().why


def test_a_dataset_that_raises_raises_in_the_loop():
    class Broken(Drawing):
        def __getitem__(self, index):
            raise OSError("no such file")

    loader = DataLoader(Broken(), num_workers="auto")
    iterator = iter(loader)
    assert "could not be made to be timed (OSError: no such file)" in loader.statistics().why
    with pytest.raises(OSError, match="no such file"):
        next(iterator)


def test_a_stream_is_measured_on_a_copy_and_gets_one_worker_at_most():
    class Stream(headrace.IterableDataset):
        def __init__(self):
            self.left = list(range(10))

        def __iter__(self):
            while self.left:
                yield self.left.pop(0)

    loader = DataLoader(Stream(), batch_size=5, num_workers="auto")
    assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert loader.num_workers <= 1


def test_worker_init_fn_gets_its_workers():
    recipe = options_of(DataLoader(Drawing())).recipe
    trial = lambda: trial_batches(Drawing(), 4)  # noqa: E731
    assert choose(recipe, trial, 10, "auto", lambda worker: None)[0] == "process"
    assert choose(recipe, trial, 10, "inline", lambda worker: None)[:2] == ("inline", 0)


def test_what_only_workers_have_may_be_given():
    loader = DataLoader(
        Drawing(), num_workers="auto", persistent_workers=True, prefetch_factor=3, timeout=60
    )
    assert len(list(loader)) == 30


def test_a_sampler_without_a_length():
    class Endless(torch.utils.data.Sampler):
        def __iter__(self):
            return iter(range(6))

    loader = DataLoader(Drawing(), 2, sampler=Endless(), num_workers="auto")
    assert len(list(loader)) == 3
    assert "an epoch would take" in loader.statistics().why


def test_how_processes_start_is_asked_without_settling_it():
    context = torch.multiprocessing.get_context
    assert is_forked(context("fork"))
    assert not is_forked(context("spawn"))
    before = multiprocessing.get_start_method(allow_none=True)
    is_forked(None)
    assert multiprocessing.get_start_method(allow_none=True) == before


def test_another_word_than_auto():
    with pytest.raises(headrace.OptionError, match="num_workers='Auto' is no count"):
        DataLoader([1], num_workers="Auto")


def test_a_small_batch_is_written_in_bytes() -> None:
    why = decide(Cost(1e-3, 1e-3, 1e-3, 640, False), 2, 10, "auto").why
    assert why.startswith("a batch of 640 bytes takes 1 ms")
