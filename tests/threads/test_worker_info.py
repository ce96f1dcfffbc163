"""What ``get_worker_info()`` and ``task_rng()`` say, in each thread and outside."""

import threading

import numpy as np
import pytest
import torch
import torch.utils.data

import headrace
from headrace import DataLoader
from headrace.rng import begin_task, end_task

get_worker_info_by_another_name = torch.utils.data.get_worker_info


class WhoAmI(headrace.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        mine = get_worker_info_by_another_name()
        ours = headrace.get_worker_info()
        assert mine == ours
        same = mine.rng.torch_generator is headrace.task_rng().torch_generator
        return mine.id, mine.num_workers, mine.seed, same, threading.current_thread().name


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_each_worker_knows_itself(backend):
    torch.manual_seed(0)
    batches = list(DataLoader(WhoAmI(), batch_size=2, num_workers=2, backend=backend))
    ids = [batch[0].tolist() for batch in batches]
    assert ids == [[n % 2] * 2 for n in range(6)]
    assert all(batch[1].tolist() == [2, 2] for batch in batches)
    seeds = [batch[2][0].item() for batch in batches]
    assert seeds[1] == seeds[0] + 1
    assert all(batch[3].all() for batch in batches)
    assert headrace.get_worker_info() is None
    assert get_worker_info_by_another_name() is None


def test_worker_init_fn_runs_in_each_thread():
    seen = []

    def init(worker):
        seen.append((worker, headrace.get_worker_info().id, threading.current_thread().name))

    list(DataLoader(WhoAmI(), num_workers=2, backend="thread", worker_init_fn=init))
    assert sorted(seen) == [(n, n, f"headrace-worker-{n}") for n in range(2)]


class Nested(headrace.Dataset):
    """Its samples are read with a loader of their own."""

    def __init__(self, backend):
        self.backend = backend

    def __len__(self):
        return 2

    def __getitem__(self, index):
        inner = DataLoader(WhoAmI(), 2, num_workers=3, backend=self.backend)
        numbers = {(batch[0][0].item(), batch[1][0].item()) for batch in inner}
        return index, headrace.get_worker_info().id, numbers


@pytest.mark.parametrize(
    ("outer", "inner"), [("thread", "thread"), ("thread", "process"), ("process", "thread")]
)
@pytest.mark.filterwarnings("ignore:.*worker processes in total")
def test_a_loader_within_a_worker_has_workers_of_its_own(outer, inner):
    for index, worker, numbers in DataLoader(
        Nested(inner), batch_size=None, num_workers=2, backend=outer
    ):
        assert index == worker
        assert numbers == {(0, 3), (1, 3), (2, 3)}


def test_a_worker_init_fn_that_seeds_what_all_share_is_told_so():
    def recipe(worker):
        np.random.seed(torch.initial_seed() % 2**32)

    def draws(worker):
        np.random.rand(700)

    options = {"num_workers": 2, "backend": "thread"}
    np.random.rand()  # whoever seeded it to the same before: its numbers begin anew
    with pytest.warns(UserWarning, match="seeded NumPy in threads, which share that"):
        list(DataLoader(WhoAmI(), worker_init_fn=recipe, **options))
    list(DataLoader(WhoAmI(), worker_init_fn=draws, **options))


@pytest.mark.parametrize("drawn", [1, 700, 5000])
def test_a_worker_init_fn_that_seeds_to_what_the_program_did_is_told_so(drawn):
    options = {"num_workers": 2, "backend": "thread"}
    torch.manual_seed(42)
    torch.rand(drawn)
    with pytest.warns(UserWarning, match="seeded torch in threads, which share that"):
        list(DataLoader(WhoAmI(), worker_init_fn=lambda _: torch.manual_seed(42), **options))
    torch.rand(drawn)
    list(DataLoader(WhoAmI(), worker_init_fn=lambda _: torch.rand(drawn), **options))


def test_more_threads_than_cores_are_no_reason_to_warn():
    DataLoader(WhoAmI(), num_workers=1000, backend="thread")


def test_the_dataset_is_shared():
    class Counting(headrace.Dataset):
        def __init__(self):
            self.asked = []

        def __len__(self):
            return 10

        def __getitem__(self, index):
            self.asked.append(index)
            return index

    dataset = Counting()
    list(DataLoader(dataset, batch_size=2, num_workers=2, backend="thread"))
    assert sorted(dataset.asked) == list(range(10))


class TestTaskRng:
    def test_a_kept_generator_is_seeded_for_each_task(self):
        kept = headrace.task_rng().torch_generator
        numbers = []
        for seed in (1, 2, 1):
            before = begin_task(seed)
            numbers.append(torch.rand((), generator=kept).item())
            end_task(before)
        assert numbers[0] == numbers[2] != numbers[1]

    def test_a_task_inside_a_task_leaves_the_outer_one_as_it_was(self):
        def outer(inner):
            before = begin_task(7)
            rng = headrace.task_rng()
            first = rng.numpy_generator.random()
            if inner:
                inside = begin_task(8)
                headrace.task_rng().numpy_generator.random()
                end_task(inside)
            second = rng.numpy_generator.random()
            end_task(before)
            return first, second

        assert outer(inner=True) == outer(inner=False)

    def test_outside_a_loader_it_follows_torchs_seed(self):
        def draw():
            return headrace.task_rng().random_generator.random()

        torch.manual_seed(5)
        first = [draw(), draw()]
        torch.manual_seed(5)
        assert [draw(), draw()] == first
        assert first[0] != first[1]
