"""``prefetch_bytes=``: what is made before it is asked for stays within a bound and one batch."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import headrace
from headrace import DataLoader
from headrace.engine.backends.base import Backend, Finished
from headrace.engine.epoch.policy import Policy
from headrace.engine.epoch.window import Window
from headrace.engine.order.order import Tasks
from headrace.engine.stats import Counters
from headrace.engine.task import Done


class Scales(Backend):
    """Makes batches of given sizes in a given order, and weighs what was made ahead."""

    def __init__(self, sizes, workers, choices):
        self.workers = workers
        self.sizes, self.choices = sizes, choices
        self.queues = [[] for _ in range(workers)]
        self.made = 0
        self.heaviest = 0

    def submit(self, worker, task):
        self.queues[worker].append(task)

    def get(self, timeout_s):
        busy = [w for w, tasks in enumerate(self.queues) if tasks]
        worker = busy[next(self.choices) % len(busy)]
        task = self.queues[worker].pop(0)
        size = self.sizes[task.step]
        self.made += size
        return Finished(worker, Done(task.step, task.step, 1, size, 0.0))

    def close(self):
        pass


def endless(data):
    while True:
        yield data.draw(st.integers(0, 10))


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(),
    size=st.integers(1, 50),
    count=st.integers(1, 40),
    workers=st.integers(1, 4),
    depth=st.integers(1, 16),
    limit=st.integers(1, 400),
    in_order=st.booleans(),
)
def test_never_more_than_the_bound_and_one_batch(
    data, size, count, workers, depth, limit, in_order
):
    backend = Scales([size] * count, workers, endless(data))
    policy = Policy(depth=depth, in_order=in_order, ahead_bytes=limit)
    window = Window(Tasks(iter([[n] for n in range(count)]), 0, 0), backend, Counters(), policy)
    handed_out = []
    for step in window:
        handed_out.append(step)
        assert backend.made - size * len(handed_out) <= limit + size
    assert sorted(handed_out) == list(range(count))
    assert handed_out == list(range(count)) or not in_order


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    workers=st.integers(1, 4),
    limit=st.integers(1, 400),
)
def test_batches_of_any_size_all_come(data, sizes, workers, limit):
    backend = Scales(sizes, workers, endless(data))
    policy = Policy(depth=8, ahead_bytes=limit)
    tasks = Tasks(iter([[n] for n in range(len(sizes))]), 0, 0)
    assert list(Window(tasks, backend, Counters(), policy)) == list(range(len(sizes)))


class Counting(headrace.Dataset):
    """Counts the samples that were asked for."""

    def __init__(self):
        self.asked = 0
        self.lock = threading.Lock()

    def __len__(self):
        return 64

    def __getitem__(self, index):
        with self.lock:
            self.asked += 1
        return torch.zeros(1000)  # 4,000 bytes


@pytest.mark.parametrize(("limit", "most"), [(1, 1), (8_000, 2), (10_000, 3), (None, 16)])
def test_threads_stop_at_the_bound(limit, most):
    dataset = Counting()
    loader = DataLoader(
        dataset, num_workers=2, backend="thread", prefetch_factor=8, prefetch_bytes=limit
    )
    for taken, _ in enumerate(loader, 1):
        assert dataset.asked - taken <= most


def test_batches_that_weigh_nothing_are_made_side_by_side():
    meet = threading.Barrier(2, timeout=20)

    class Texts(headrace.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            if index in {2, 3}:
                meet.wait()  # until both threads are here
            return str(index)

    loader = DataLoader(Texts(), num_workers=2, backend="thread", prefetch_bytes=1000)
    assert [text for [text] in loader] == list("01234567")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("limit", [1, 5_000, 100_000])
def test_columns_come_whole_and_in_blocks_of_that_size(workers, limit):
    x = torch.arange(3000.0)
    loader = DataLoader(
        headrace.TensorDataset(x), batch_size=50, num_workers=workers, prefetch_bytes=limit
    )
    assert torch.equal(torch.cat([batch for (batch,) in loader]), x)


def test_a_bound_that_is_none_is_said():
    with pytest.raises(headrace.OptionError, match="prefetch_bytes=-1 is no count"):
        DataLoader([1], prefetch_bytes=-1)
