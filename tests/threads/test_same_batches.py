"""The same batches in this thread, in threads and in processes, from the task's generators."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import headrace
from headrace import DataLoader, IterableDataset
from headrace.testing import assert_exact_resume

pytestmark = pytest.mark.filterwarnings("ignore:the epoch gave no batch")
WAYS: list[dict[str, Any]] = [
    {},
    {"num_workers": 1, "backend": "thread"},
    {"num_workers": 3, "backend": "thread"},
    {"num_workers": 2, "backend": "thread", "persistent_workers": True},
    {"num_workers": 2, "backend": "process"},
]


class Noisy(headrace.Dataset):
    """Draws from all three of the task's generators."""

    def __init__(self, length=23):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        rng = headrace.task_rng()
        return {
            "index": index,
            "torch": torch.rand(2, generator=rng.torch_generator),
            "numpy": rng.numpy_generator.standard_normal(2),
            "python": rng.random_generator.random(),
        }


class Numbers(IterableDataset):
    """Divided by its own method among threads, and by the worker's number in processes."""

    def __init__(self, length, start=0, step=1):
        self.length, self.start, self.step = length, start, step

    def shard(self, index, count):
        return Numbers(self.length, self.start + index * self.step, self.step * count)

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        mine = self if info is None else self.shard(info.id, info.num_workers)
        for number in range(mine.start, mine.length, mine.step):
            noise = torch.rand((), generator=headrace.task_rng().torch_generator)
            yield number, noise


def epochs(dataset, options, count=2, **others):
    torch.manual_seed(3)
    loader = DataLoader(dataset, batch_size=4, **options, **others)
    return [list(loader) for _ in range(count)]


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return len(one) == len(other) and all(map(same, one, other))


@pytest.mark.parametrize("options", WAYS[1:], ids=str)
@pytest.mark.filterwarnings("ignore:.*worker processes in total")
def test_drawn_from_the_tasks_generators(options):
    persistent = {"persistent_workers": True} if "persistent_workers" in options else {}
    inline = epochs(Noisy(), {}, shuffle=True)
    made = epochs(Noisy(), options, shuffle=True)
    assert same(made[0], inline[0])
    if not persistent:  # else the base seed is drawn once, as in torch
        assert same(made[1], inline[1])
    assert not same(made[0], made[1])


@pytest.mark.parametrize("options", WAYS[1:], ids=str)
@pytest.mark.filterwarnings("ignore:.*worker processes in total")
def test_the_generators_of_the_process_are_left_alone(options):
    if options["backend"] == "thread":
        torch.manual_seed(0)
        iterator = iter(DataLoader(Noisy(), batch_size=4, **options))
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        list(iterator)
        after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    length=st.integers(0, 40),
    batch_size=st.integers(1, 9),
    workers=st.integers(1, 4),
    drop_last=st.booleans(),
    prefetch_factor=st.integers(1, 4),
)
def test_any_number_of_threads_gives_the_batches_of_none(
    length, batch_size, workers, drop_last, prefetch_factor
):
    torch.manual_seed(1)
    options = {"batch_size": batch_size, "drop_last": drop_last}
    inline = list(DataLoader(Noisy(length), **options))
    torch.manual_seed(1)
    threads = DataLoader(
        Noisy(length),
        **options,
        num_workers=min(workers, 2),
        backend="thread",
        prefetch_factor=prefetch_factor,
    )
    assert same(list(threads), inline)


@pytest.mark.parametrize("workers", [1, 2])
def test_streams_are_the_same_as_in_processes(workers):
    in_threads = epochs(Numbers(30), {"num_workers": workers, "backend": "thread"})
    in_processes = epochs(Numbers(30), {"num_workers": workers, "backend": "process"})
    assert same(in_threads, in_processes)
    numbers = sorted(n for batch in in_threads[0] for n in batch[0].tolist())
    assert numbers == list(range(30))


def test_a_stream_without_shard_is_refused_with_the_line_to_write():
    class Plain(IterableDataset):
        def __iter__(self):
            return iter(range(10))

    with pytest.raises(headrace.OptionError, match=r"no shard\(index, count\) method"):
        DataLoader(Plain(), num_workers=2, backend="thread")
    alone = DataLoader(Plain(), batch_size=5, num_workers=1, backend="thread")
    assert [batch.tolist() for batch in alone] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_hugging_faces_order_of_arguments_is_understood():
    class Theirs(Numbers):
        def shard(self, num_shards, index, contiguous=True):
            return Numbers(self.length, index, num_shards)

        def __iter__(self):
            return iter(range(self.start, self.length, self.step))

    loader = DataLoader(Theirs(12), batch_size=3, num_workers=2, backend="thread")
    assert sorted(n for batch in loader for n in batch[0].tolist()) == list(range(12))


def test_columns_are_gathered_whatever_the_backend():
    x = torch.arange(100.0)
    loader = DataLoader(headrace.TensorDataset(x), batch_size=10, num_workers=2, backend="thread")
    assert torch.equal(torch.cat([batch for (batch,) in loader]), x)
    assert loader.statistics().path == "gather-thread"


def test_resumes_exactly():
    def make_loader():
        return DataLoader(
            Noisy(40), batch_size=4, shuffle=True, num_workers=2, backend="thread", seed=5
        )

    assert_exact_resume(make_loader)


def test_a_stream_resumes_exactly_in_threads():
    def make_loader():
        return DataLoader(Numbers(40), batch_size=4, num_workers=2, backend="thread", seed=5)

    with pytest.warns(UserWarning, match="has no state"):
        assert_exact_resume(make_loader)


def test_a_state_goes_from_threads_to_processes():
    def loader(**options):
        return DataLoader(Noisy(40), batch_size=4, shuffle=True, seed=5, **options)

    whole = list(loader())
    threads = loader(num_workers=2, backend="thread")
    iterator = iter(threads)
    for _ in range(3):
        next(iterator)
    processes = loader(num_workers=2)
    processes.load_state_dict(threads.state_dict())
    assert same(list(processes), whole[3:])
