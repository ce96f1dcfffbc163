"""What a worker is: who it says it is, what it is given, and which batches come to it."""

import os
import threading
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import headrace
from headrace import DataLoader, OptionError
from oracle import assert_same

from .datasets import MANY_WORKERS, Asked, Numbers, as_it_is, pid, worker_and_index

pytestmark = pytest.mark.filterwarnings(MANY_WORKERS)


def asked(ask: Any, n: int = 6, **options: Any) -> list[Any]:
    """What ``ask(index)`` returns in workers, for each index."""
    options = {"num_workers": 2, "collate_fn": as_it_is, **options}
    return [answer for batch in DataLoader(Asked(n, ask), **options) for answer in batch]


class TestPlacement:
    @pytest.mark.parametrize("persistent", [True, False])
    def test_batch_i_goes_to_worker_i_mod_n_in_every_epoch(
        self, persistent: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "headrace.engine.epoch.window.SLOW_S", 60
        )  # however busy the machine is
        loader = DataLoader(
            Asked(23, worker_and_index),
            batch_size=2,
            num_workers=3,
            collate_fn=as_it_is,
            persistent_workers=persistent,
        )
        for _ in range(3):
            for number, batch in enumerate(loader):
                assert batch[0] == (number % 3, 2 * number)
        loader._iterator = None

    @pytest.mark.parametrize("workers", [2, 4])
    def test_all_workers_run_at_once(self, workers: int) -> None:
        barrier = get_context("fork").Barrier(workers)

        def meet(index: int) -> int:
            barrier.wait(60)
            return index

        assert asked(meet, 3 * workers, num_workers=workers) == list(range(3 * workers))

    def test_a_slow_sample_does_not_keep_the_others_waiting(self) -> None:
        others = get_context("fork").Semaphore(0)

        def sample(index: int) -> tuple[int, int]:
            if index == 8:  # waits until everything that may overtake it has been made
                for _ in range(7):
                    assert others.acquire(timeout=60)
            elif index > 8:
                others.release()
            info = torch.utils.data.get_worker_info()
            assert info is not None
            return index, info.id

        loader = DataLoader(Asked(50, sample), 1, num_workers=4, collate_fn=as_it_is)
        made = [batch[0] for batch in loader]
        assert [index for index, _ in made] == list(range(50))
        assert loader.statistics().moved > 0
        away = [index for index, worker in made if worker != index % 4]
        assert away
        assert all(index % 4 == 0 for index in away), "only what waited behind it moves"

    @pytest.mark.parametrize("options", [{"worker_init_fn": int}, {"rng": "torch"}])
    def test_no_batch_moves_where_it_depends_on_its_worker(self, options: Any) -> None:
        """Worker 0 is slow; what waits behind it is made there too, when it is through."""
        idle = get_context("fork").Event()

        def sample(index: int) -> tuple[int, int]:
            if index == 0:
                idle.wait(0.5)  # longer than a movable task would wait
            return worker_and_index(index)

        loader = DataLoader(Asked(12, sample), 1, num_workers=3, collate_fn=as_it_is, **options)
        assert [batch[0] for batch in loader] == [(i % 3, i) for i in range(12)]
        assert loader.statistics().moved == 0

    def test_out_of_order_the_ready_ones_leave_first(self) -> None:
        first_may_go = get_context("fork").Event()

        def sample(index: int) -> int:
            if index == 0:
                assert first_may_go.wait(60)
            return index

        loader = DataLoader(Asked(6, sample), 1, num_workers=2, collate_fn=as_it_is, in_order=False)
        iterator = iter(loader)
        early = [next(iterator)[0] for _ in range(3)]
        assert 0 not in early
        first_may_go.set()
        assert sorted(early + [batch[0] for batch in iterator]) == list(range(6))

    @pytest.mark.parametrize("prefetch", [1, 2, 5])
    def test_as_many_batches_ahead_as_asked_for(self, prefetch: int) -> None:
        context = get_context("fork")
        begun, made = context.Semaphore(0), []

        def sample(index: int) -> int:
            begun.release()
            return index

        loader = DataLoader(Asked(40, sample), 1, num_workers=2, prefetch_factor=prefetch)
        iterator = iter(loader)
        for taken in range(4):
            for _ in range(2 * prefetch if taken == 0 else 1):
                assert begun.acquire(timeout=60)
            assert not begun.acquire(block=False), "more than prefetch_factor were begun"
            made.append(next(iterator).item())
        assert made == [0, 1, 2, 3]


class TestIdentity:
    def test_worker_info_is_torch_s_and_ours(self) -> None:
        def ask(index: int) -> Any:
            ours, theirs = headrace.get_worker_info(), torch.utils.data.get_worker_info()
            assert ours is theirs
            assert ours is not None
            dataset: Any = ours.dataset
            return ours.id, ours.num_workers, len(dataset), dataset.ask is not None

        assert asked(ask, 4) == [(0, 2, 4, True), (1, 2, 4, True)] * 2
        assert headrace.get_worker_info() is None

    def test_the_dataset_in_worker_info_is_the_one_that_is_read(self) -> None:
        batches = list(DataLoader(_Marked(4), num_workers=2, worker_init_fn=_mark))
        assert torch.cat(batches).tolist() == [100, 101, 100, 101]

    def test_none_in_the_user_s_process_while_workers_run(self) -> None:
        for _ in DataLoader(Numbers(4), num_workers=1):
            assert headrace.get_worker_info() is None

    def test_none_in_the_user_s_process_without_workers(self) -> None:
        for options in ({"num_workers": 0}, {"num_workers": 2, "backend": "inline"}):
            assert asked(lambda index: headrace.get_worker_info(), 2, **options) == [None, None]

    def test_one_torch_thread(self) -> None:
        before = torch.get_num_threads()
        assert asked(lambda index: torch.get_num_threads()) == [1] * 6
        assert torch.get_num_threads() == before

    def test_no_thread_is_started(self) -> None:
        before = threading.active_count()
        loader = DataLoader(Asked(6, lambda index: threading.active_count()), num_workers=2)
        for batch in loader:
            assert threading.active_count() == before
            assert batch.item() == 1

    def test_what_a_dataset_changes_never_reaches_the_user(self) -> None:
        dataset = _Changing()
        first = [batch.item() for batch in DataLoader(dataset, num_workers=1)]
        again = [batch.item() for batch in DataLoader(dataset, num_workers=1)]
        assert first == again == [1, 2, 3]
        assert dataset.read == 0

    def test_workers_that_persist_keep_their_copy(self) -> None:
        dataset = _Changing()
        loader = DataLoader(dataset, num_workers=1, persistent_workers=True)
        assert [[batch.item() for batch in loader] for _ in range(2)] == [[1, 2, 3], [4, 5, 6]]
        dataset.read = 100
        assert [batch.item() for batch in loader] == [7, 8, 9]
        loader._iterator = None

    def test_an_epoch_sees_the_dataset_as_it_is_then(self) -> None:
        dataset = _Changing()
        loader = DataLoader(dataset, num_workers=1)
        assert next(iter(loader)).item() == 1
        dataset.read = 100
        assert next(iter(loader)).item() == 101


class _Marked(Dataset[Any]):
    mark = 0

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        return self.mark


def _mark(worker_id: int) -> None:
    info = headrace.get_worker_info()
    assert info is not None
    info.dataset.mark = 100 + worker_id  # type: ignore[attr-defined]


class _Changing(Dataset[Any]):
    read = 0

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> int:
        self.read += 1
        return self.read


class TestWorkerInitFn:
    def test_runs_once_in_each_worker_before_the_dataset_is_touched(self) -> None:
        calls: list[Any] = []

        class Watched(Dataset[Any]):
            def __len__(self) -> int:
                return 6

            def __getitem__(self, index: int) -> Any:
                calls.append(("sample", index))
                return list(calls)

        def init(worker_id: int) -> None:
            calls.append(("init", worker_id))

        loader = DataLoader(
            Watched(),
            num_workers=2,
            worker_init_fn=init,
            collate_fn=as_it_is,
            persistent_workers=True,
        )
        for epoch in (1, 2):
            for number, batch in enumerate(loader):
                seen = batch[0]
                assert seen[0] == ("init", number % 2)
                assert [what for what, _ in seen].count("init") == 1
                assert len(seen) == 1 + (epoch - 1) * 3 + number // 2 + 1
        assert calls == []
        loader._iterator = None

    def test_its_error_comes_with_the_first_batch(self) -> None:
        def init(worker_id: int) -> None:
            raise KeyError(f"no shard for {worker_id}")

        iterator = iter(DataLoader(Numbers(4), num_workers=1, worker_init_fn=init))
        with pytest.raises(KeyError, match="no shard for 0"):
            next(iterator)

    def test_runs_for_a_dataset_of_columns_too(self) -> None:
        def init(worker_id: int) -> None:
            headrace.get_worker_info().dataset.tensors[0].fill_(7)  # type: ignore[union-attr]

        dataset = TensorDataset(torch.zeros(4))
        loader = DataLoader(dataset, num_workers=1, worker_init_fn=init)
        assert [batch[0].item() for batch in loader] == [7] * 4
        assert dataset.tensors[0].tolist() == [0] * 4
        assert loader.statistics().path == "process"


class TestProcesses:
    def test_are_shown_with_what_tools_read(self) -> None:
        iterator = iter(DataLoader(Asked(8, pid), num_workers=3))
        assert len(iterator._workers) == 3
        assert all(worker.is_alive() and worker.exitcode is None for worker in iterator._workers)
        seen = {batch.item() for batch in iterator}
        assert seen == {worker.pid for worker in iterator._workers}
        assert os.getpid() not in seen

    @pytest.mark.usefixtures("patient")
    def test_leave_with_code_0_when_the_epoch_is_over(self) -> None:
        iterator = iter(DataLoader(Numbers(6), num_workers=2))
        list(iterator)
        for worker in iterator._workers:
            worker.join(10)
            assert not worker.is_alive()
            assert worker.exitcode == 0

    @pytest.mark.usefixtures("patient")
    def test_stay_where_they_persist(self) -> None:
        loader = DataLoader(Asked(6, pid), num_workers=2, persistent_workers=True)
        epochs = [{batch.item() for batch in loader} for _ in range(3)]
        assert epochs[0] == epochs[1] == epochs[2]
        assert all(worker.is_alive() for worker in loader._iterator._workers)
        workers = loader._iterator._workers
        loader._iterator = None
        for worker in workers:
            worker.join(10)
            assert worker.exitcode == 0

    def test_can_be_terminated(self) -> None:
        iterator = iter(DataLoader(Numbers(60), num_workers=1, worker_restarts=0))
        next(iterator)
        (worker,) = iterator._workers
        worker.terminate()
        worker.join(10)
        assert not worker.is_alive()

    def test_a_new_epoch_in_the_middle_of_one(self) -> None:
        loader = DataLoader(Numbers(20), 2, num_workers=2, persistent_workers=True)
        for taken in (0, 1, 3, 9):
            iterator = iter(loader)
            for _ in range(taken):
                next(iterator)
        assert [batch["index"][0].item() for batch in loader] == list(range(0, 20, 2))
        loader._iterator = None


class TestBackend:
    def test_inline_ignores_the_number_of_workers(self) -> None:
        loader = DataLoader(Asked(3, pid), num_workers=4, backend="inline")
        iterator = iter(loader)
        assert iterator._workers == []
        assert {batch.item() for batch in iterator} == {os.getpid()}
        assert loader.statistics().path == "inline"

    def test_process_gathers_columns_in_workers(self) -> None:
        dataset = TensorDataset(torch.arange(40_000.0).reshape(100, 400))
        torch.manual_seed(0)
        loader = DataLoader(dataset, 16, shuffle=True, num_workers=2, backend="process")
        batches = list(loader)
        assert loader.statistics().path == "process"
        torch.manual_seed(0)
        assert_same(batches, list(torch.utils.data.DataLoader(dataset, 16, True, num_workers=1)))

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"backend": "threads"}, "backend='threads' is not one of"),
            ({"backend": "process"}, "needs worker processes, but num_workers is 0"),
            ({"rng": "numpy"}, "rng='numpy' is not one of"),
            ({"worker_restarts": -1}, "worker_restarts=-1 is no count"),
            ({"worker_restarts": True}, "worker_restarts=True is no count"),
            ({"worker_restarts": 1.5}, "worker_restarts=1.5 is no count"),
        ],
    )
    def test_wrong_values_are_errors_with_the_line_to_write(self, options: Any, text: str) -> None:
        with pytest.raises(OptionError, match=f"{text}.*Write DataLoader"):
            DataLoader(Numbers(3), **options)

    def test_timeout_is_for_workers(self) -> None:
        loader = DataLoader(Numbers(6), num_workers=2, timeout=60)
        assert len(list(loader)) == 6


def test_statistics() -> None:
    loader = DataLoader(Numbers(10, large=1000), 4, num_workers=2)
    assert loader.statistics().path == ""
    for epoch in (1, 2):
        list(loader)
        said = loader.statistics()
        assert (said.path, said.epochs) == ("process", epoch)
        assert (said.batches, said.samples) == (3 * epoch, 10 * epoch)
        assert said.size_bytes == epoch * 10 * (8 + 2 * 8 + 4000)
        assert said.fetch_s > 0
        assert said.wait_s > 0
        assert (said.restarts, said.moved) == (0, 0)
