"""Workers that are killed are replaced, and their batches are made again: the same ones."""

import os
import random
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from headrace import DataLoader
from headrace.errors import WorkerDiedError
from workers.failure.processes import (
    children_of,
    descendants_of,
    is_running,
    open_descriptors,
    wait_until,
    wait_until_gone,
)
from workers.failure.user_code import Dies, Marks, Numbers, Stream, indices_of

LENGTH = 24
WHOLE = [[i, i + 1] for i in range(0, LENGTH, 2)]


def loader_of(dataset: Any, workers: int = 2, **options: Any) -> DataLoader[torch.Tensor]:
    options = {"batch_size": 2, "num_workers": workers, "backend": "process", **options}
    return DataLoader(dataset, **options)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until_gone([pid])


def spare_of(iterator: Any) -> int:
    """The process that forks replacements: our child that is no worker."""
    (pid,) = children_of(os.getpid()) - _elsewhere - {w.pid for w in iterator._workers}
    return pid


_elsewhere: set[int] = set()


@pytest.fixture(autouse=True)
def _children_before() -> None:
    _elsewhere.clear()
    _elsewhere.update(children_of(os.getpid()))


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_batches_are_the_same_whichever_worker_is_killed(victim: int, in_order: bool) -> None:
    loader = loader_of(Numbers(LENGTH), 3, in_order=in_order)
    iterator = iter(loader)
    got = indices_of([next(iterator) for _ in range(victim)])
    kill(iterator._workers[victim].pid)
    got += indices_of(iterator)
    assert (got if in_order else sorted(got)) == WHOLE


@pytest.mark.parametrize("seed", range(4))
def test_random_workers_are_killed_at_random_steps(seed: int) -> None:
    dice = random.Random(seed)
    loader = loader_of(Numbers(80), 2, shuffle=True, worker_restarts=8, prefetch_factor=3)
    torch.manual_seed(seed)
    wanted = indices_of(DataLoader(Numbers(80), batch_size=2, shuffle=True))
    torch.manual_seed(seed)
    iterator = iter(loader)
    kills = sorted(dice.sample(range(1, 39), 8))
    got = []
    for step, batch in enumerate(iterator):
        got += indices_of([batch])
        if step in kills:
            dice.choice(iterator._workers).kill()
    assert got == wanted


class Noisy(Numbers):
    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.randn(4096) + super().__getitem__(index)[0] * 0


def test_random_numbers_of_a_batch_made_again_are_the_same() -> None:
    def run(kills: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        iterator = iter(loader_of(Noisy(LENGTH), 2))
        got = []
        for step, batch in enumerate(iterator):
            got.append(batch)
            if kills and step in (1, 4):
                kill(iterator._workers[step % 2].pid)
        return got

    for again, wanted in zip(run(kills=True), run(kills=False), strict=True):
        assert torch.equal(again, wanted)


def test_what_was_handed_out_stays_as_it_was_when_its_worker_is_killed() -> None:
    iterator = iter(loader_of(Numbers(LENGTH), 1, worker_restarts=20))
    held = []
    for batch in iterator:
        held.append(batch)
        if len(held) % 3 == 0:
            kill(iterator._workers[0].pid)
    assert indices_of(held) == WHOLE


def test_a_worker_is_killed_while_it_waits_for_work() -> None:
    dataset = Numbers(LENGTH)
    iterator = iter(loader_of(dataset, 2, prefetch_factor=1))
    wait_until(lambda: dataset.made.total() == 4, "both workers have made what they were given")
    kill(iterator._workers[1].pid)
    assert indices_of(iterator) == WHOLE


class Small(Numbers):
    """30 KB a batch, all of it in the message."""

    def __getitem__(self, index: int) -> torch.Tensor:
        super().__getitem__(index)
        return torch.full((3750,), float(index))


def test_a_worker_is_killed_while_it_blocks_in_sending() -> None:
    dataset = Small(200)
    iterator = iter(loader_of(dataset, 1, batch_size=1, prefetch_factor=100))
    pid = iterator._workers[0].pid

    def blocks() -> bool:
        with open(f"/proc/{pid}/wchan") as place:
            return "alloc_send" in place.read() or "wait_for_wmem" in place.read()

    wait_until(lambda: blocks() or dataset.made.total() >= 100, "the socket is full")
    assert dataset.made.total() < 100
    kill(pid)
    assert [i for (i,) in indices_of(iterator)] == list(range(200))


def test_all_workers_are_killed_at_once() -> None:
    iterator = iter(loader_of(Numbers(LENGTH), 3))
    got = indices_of([next(iterator)])
    for worker in iterator._workers:
        worker.kill()
    assert got + indices_of(iterator) == WHOLE


def test_all_workers_and_the_spare_are_killed_at_once() -> None:
    iterator = iter(loader_of(Numbers(LENGTH), 3))
    got = indices_of([next(iterator)])
    for pid in [spare_of(iterator), *(w.pid for w in iterator._workers)]:
        os.kill(pid, signal.SIGKILL)
    assert got + indices_of(iterator) == WHOLE


def test_the_spare_is_killed_with_workers_that_it_has_forked() -> None:
    iterator = iter(loader_of(Numbers(LENGTH), 2))
    got = indices_of([next(iterator)])
    kill(iterator._workers[0].pid)
    got += indices_of([next(iterator) for _ in range(6)])
    adopted = iterator._workers[0].pid
    assert adopted in descendants_of(spare_of(iterator))
    kill(spare_of(iterator))
    wait_until_gone([adopted])  # it does not outlive the process it depends on
    assert got + indices_of(iterator) == WHOLE


def test_the_spare_alone_is_killed() -> None:
    iterator = iter(loader_of(Numbers(LENGTH), 2))
    got = indices_of([next(iterator)])
    kill(spare_of(iterator))
    assert got + indices_of(iterator) == WHOLE


def test_a_death_after_the_last_batch_is_no_error() -> None:
    iterator = iter(loader_of(Numbers(4), 2, worker_restarts=0))
    got = indices_of([next(iterator), next(iterator)])
    for worker in iterator._workers:
        kill(worker.pid)
    assert got + indices_of(iterator) == [[0, 1], [2, 3]]


def test_an_idle_worker_with_nothing_to_come_may_die() -> None:
    dataset = Numbers(12)
    iterator = iter(loader_of(dataset, 2, worker_restarts=0, prefetch_factor=8))
    wait_until(lambda: dataset.made.total() == 12, "all batches are made")
    got = indices_of([next(iterator)])  # the others have at least left their workers by now
    wait_until(lambda: _is_idle(iterator._workers[0].pid), "the worker waits for work")
    kill(iterator._workers[0].pid)
    assert got + indices_of(iterator) == WHOLE[:6]


def _is_idle(pid: int) -> bool:
    with open(f"/proc/{pid}/wchan") as place:
        return "skb_wait_for_more" in place.read() or is_running(pid) is False


def test_a_death_at_the_end_of_an_epoch_does_not_show_in_the_next() -> None:
    loader = loader_of(Numbers(8), 2, worker_restarts=1)
    for _ in range(4):
        iterator = iter(loader)
        got = indices_of([next(iterator) for _ in range(4)])
        kill(iterator._workers[1].pid)
        assert got + indices_of(iterator) == WHOLE[:4]


@pytest.mark.parametrize("dataset", [Numbers(8), Stream(8)], ids=["map", "iterable"])
def test_persistent_workers_killed_between_epochs_are_replaced(dataset: Any) -> None:
    loader = loader_of(dataset, 2, persistent_workers=True, worker_restarts=2)
    wanted = indices_of(loader)
    for victims in ([0], [1], [0, 1], []):
        for victim in victims:
            kill(loader._iterator._workers[victim].pid)
        assert indices_of(loader) == wanted


def test_persistent_workers_killed_at_the_last_batch_are_replaced() -> None:
    loader = loader_of(Numbers(8), 2, persistent_workers=True, worker_restarts=2)
    for _ in range(3):
        iterator = iter(loader)
        got = indices_of([next(iterator) for _ in range(4)])
        for worker in iterator._workers:
            kill(worker.pid)
        with pytest.raises(StopIteration):
            next(iterator)
        assert got == WHOLE[:4]


def test_a_persistent_worker_that_died_idle_is_missed_in_the_next_epoch() -> None:
    marks = Marks(1)

    class Last(Numbers):
        def __getitem__(self, index: int) -> torch.Tensor:
            if index == 2 and not marks[0]:
                marks.add(0)
                siblings = children_of(os.getppid())
                wait_until(lambda: siblings - children_of(os.getppid()), "one was reaped")
            return super().__getitem__(index)

    loader = loader_of(Last(4), 2, persistent_workers=True, worker_restarts=1)
    iterator = iter(loader)
    got = indices_of([next(iterator)])
    wait_until(lambda: marks[0], "the other worker waits for the death of this one")
    os.kill(iterator._workers[0].pid, signal.SIGKILL)
    assert got + indices_of(iterator) == WHOLE[:2]
    assert loader.statistics().restarts == 0
    for _ in range(2):
        assert indices_of(loader) == WHOLE[:2]
    assert loader.statistics().restarts == 1


def test_persistent_workers_killed_in_an_epoch_that_was_left_early() -> None:
    loader = loader_of(Numbers(LENGTH), 2, persistent_workers=True, worker_restarts=2)
    for _ in range(3):
        iterator = iter(loader)
        next(iterator)
        for worker in iterator._workers:
            kill(worker.pid)
    assert indices_of(loader) == WHOLE


@pytest.mark.parametrize("in_order", [True, False])
def test_an_iterable_dataset_goes_on_where_it_was(in_order: bool) -> None:
    loader = loader_of(Stream(LENGTH), 2, in_order=in_order)
    wanted = indices_of(loader)
    iterator = iter(loader)
    got = indices_of([next(iterator) for _ in range(3)])
    kill(iterator._workers[0].pid)
    got += indices_of([next(iterator) for _ in range(3)])
    kill(iterator._workers[1].pid)
    got += indices_of(iterator)
    assert sorted(got) == sorted(wanted)
    assert not in_order or got == wanted


def test_an_iterable_dataset_whose_worker_has_ended_its_share_may_lose_it() -> None:
    class Uneven(Stream):
        def __iter__(self) -> Iterator[torch.Tensor]:
            info = torch.utils.data.get_worker_info()
            assert info is not None
            self.length = 2 if info.id == 0 else 16
            return super().__iter__()

    iterator = iter(loader_of(Uneven(0), 2, batch_size=1, worker_restarts=0))
    got = [i for (i,) in indices_of([next(iterator) for _ in range(5)])]
    kill(iterator._workers[0].pid)  # its share, one sample, was over long ago
    got += [i for (i,) in indices_of(iterator)]
    assert sorted(got) == [0, 1, 3, 5, 7, 9, 11, 13, 15]


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_as_many_deaths_as_allowed_are_survived(allowed: int) -> None:
    loader = loader_of(Numbers(LENGTH, Dies(at=9, times=allowed)), 2, worker_restarts=allowed)
    assert indices_of(loader) == WHOLE


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_one_death_more_than_allowed_is_an_error(allowed: int) -> None:
    dies = Dies(at=9)
    loader = loader_of(Numbers(LENGTH, dies), 2, worker_restarts=allowed)
    iterator = iter(loader)
    got = []
    with pytest.raises(WorkerDiedError) as caught:
        got += indices_of([next(iterator) for _ in range(len(WHOLE))])
    assert dies.deaths[0] == allowed + 1
    assert f"worker_restarts={allowed}" in str(caught.value)


def test_the_restarts_are_counted_anew_in_each_epoch() -> None:
    dies = Dies(at=9, times=1)
    dataset = Numbers(LENGTH, dies)
    loader = loader_of(dataset, 2, worker_restarts=1, persistent_workers=True)
    for _ in range(3):
        dies.times = dies.deaths[0] + 1
        assert indices_of(loader) == WHOLE


def test_the_iterator_shows_the_worker_that_took_over() -> None:
    loader = loader_of(Numbers(LENGTH), 2)
    iterator = iter(loader)
    next(iterator)
    dead = iterator._workers[0].pid
    kill(dead)
    for _ in range(6):
        next(iterator)
    new = iterator._workers[0]
    assert new.pid != dead
    assert new.is_alive()
    assert new.exitcode is None
    new.join(0)
    assert new.is_alive()
    new.terminate()
    new.join()
    assert new.exitcode == -signal.SIGTERM
    assert not new.is_alive()


def test_the_exit_code_of_a_worker_that_took_over_is_known_without_join() -> None:
    iterator = iter(loader_of(Numbers(LENGTH), 2))
    next(iterator)
    kill(iterator._workers[0].pid)
    for _ in range(6):
        next(iterator)
    new = iterator._workers[0]
    kill(new.pid)
    wait_until(lambda: new.exitcode == -signal.SIGKILL, "the exit code is known")


def test_a_worker_is_replaced_while_the_program_has_threads() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    iterator = iter(loader_of(Numbers(LENGTH), 2))
    got = indices_of([next(iterator)])
    thread.start()
    kill(iterator._workers[0].pid)
    got += indices_of([next(iterator) for _ in range(6)])
    assert iterator._workers[0].pid in descendants_of(spare_of(iterator))  # not forked from here
    done.set()
    thread.join()
    assert got + indices_of(iterator) == WHOLE


def test_workers_are_replaced_in_a_program_with_more_than_1024_open_files() -> None:
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        iterator = iter(loader_of(Numbers(LENGTH), 2))
        got = indices_of([next(iterator)])
        for _ in range(2):
            kill(iterator._workers[0].pid)
            got += indices_of([next(iterator) for _ in range(5)])
        assert got + indices_of(iterator) == WHOLE
    finally:
        for file in files:
            os.close(file)


def test_worker_init_fn_runs_again_in_a_replacement() -> None:
    marks = Marks(2)
    iterator = iter(loader_of(Numbers(LENGTH), 2, worker_init_fn=marks.add))
    next(iterator)
    wait_until(lambda: marks[1] == 1, "the second worker has begun")
    kill(iterator._workers[1].pid)
    list(iterator)
    assert [marks[0], marks[1]] == [1, 2]


def test_killed_again_and_again_leaves_no_descriptor_behind() -> None:
    iterator = iter(loader_of(Numbers(80), 2, worker_restarts=12))
    counts = []
    for step, _batch in enumerate(iterator):
        if step % 4 == 3:
            counts.append(len(open_descriptors()))
            iterator._workers[0].kill()
    assert max(counts[1:]) <= counts[1] + 1


class Plain(Numbers):
    """One that can be pickled."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        del self.made

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((3000,), float(index))


@pytest.mark.parametrize("method", ["forkserver", pytest.param("spawn", marks=pytest.mark.stress)])
def test_workers_of_the_other_start_methods_are_replaced(program: Any, method: str) -> None:
    running = program(
        f"""
        from workers.failure.test_kill import Plain
        if __name__ == "__main__":
            loader = headrace.DataLoader(
                Plain(24), batch_size=2, num_workers=1, backend="process",
                multiprocessing_context={method!r},
            )
            iterator = iter(loader)
            got = indices_of([next(iterator) for _ in range(3)])
            os.kill(iterator._workers[0].pid, signal.SIGKILL)
            say(got=got + indices_of(iterator))
        """
    )
    assert running.hear(60)["got"] == WHOLE
    assert running.wait() == 0


@pytest.mark.stress
@pytest.mark.parametrize("in_order", [True, False])
def test_fifty_kills_an_epoch(in_order: bool) -> None:
    dice = random.Random(0)
    for _ in range(4):
        loader = loader_of(Numbers(1000), 4, worker_restarts=1000, in_order=in_order)
        iterator = iter(loader)
        kills = set(dice.sample(range(500), 50))
        got = []
        for step, batch in enumerate(iterator):
            got += indices_of([batch])
            if step in kills:
                for worker in dice.sample(iterator._workers, dice.choice([1, 1, 1, 4])):
                    worker.kill()
        assert (got if in_order else sorted(got)) == [[i, i + 1] for i in range(0, 1000, 2)]
