"""Crashes in compiled code: survived where they come once, explained where they stay."""

import ctypes
import faulthandler
import os
import signal
from collections.abc import Callable

import pytest

from headrace import DataLoader
from headrace.errors import WorkerDiedError
from workers.failure.user_code import Marks, Numbers, indices_of


def segfault() -> None:
    faulthandler.disable()
    ctypes.string_at(0)


CRASHES = {
    "Segmentation fault": segfault,
    "Aborted": os.abort,
    "Bus error": lambda: os.kill(os.getpid(), signal.SIGBUS),
}


class Crashes(Numbers):
    def __init__(self, how: Callable[[], object], times: int) -> None:
        super().__init__(8)
        self.how, self.times, self.crashes = how, times, Marks(1)

    def __getitem__(self, index: int) -> object:  # type: ignore[override]
        if index == 5 and self.crashes[0] < self.times:
            self.crashes.add(0)
            faulthandler.disable()
            self.how()
        return super().__getitem__(index)


@pytest.mark.parametrize("name", CRASHES)
def test_a_crash_that_stays_is_an_error_that_names_all_there_is_to_know(name: str) -> None:
    iterator = iter(DataLoader(Crashes(CRASHES[name], 9), 2, num_workers=2, worker_restarts=1))
    pids = {w.pid for w in iterator._workers}
    with pytest.raises(WorkerDiedError) as caught:
        list(iterator)
    text = str(caught.value)
    assert "DataLoader worker (pid(s) " in text
    assert not any(f"(pid(s) {pid})" in text for pid in pids)  # it is the second one that is named
    assert "exited unexpectedly" in text
    assert f"is killed by signal: {name}" in text
    assert "a crash in compiled code" in text
    assert "It held the indices [4, 5]" in text
    assert "worker_restarts=1" in text
    assert "num_workers=0" in text


def test_a_crash_that_comes_once_is_survived() -> None:
    loader = DataLoader(Crashes(segfault, 1), 2, num_workers=2)
    assert indices_of(loader) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert loader.statistics().restarts == 1


@pytest.mark.parametrize("code", [0, 3])
def test_a_worker_that_leaves_by_itself_is_an_error_with_its_exit_code(code: int) -> None:
    loader = DataLoader(Crashes(lambda: os._exit(code), 9), 2, num_workers=2, worker_restarts=0)
    with pytest.raises(WorkerDiedError, match=f"exited unexpectedly.*left with exit code {code}"):
        list(loader)


def test_after_the_error_the_iterator_repeats_it_and_the_loader_begins_anew() -> None:
    dataset = Crashes(segfault, 1)
    loader = DataLoader(dataset, 2, num_workers=2, worker_restarts=0)
    iterator = iter(loader)
    for _ in range(3):
        with pytest.raises(WorkerDiedError, match="Segmentation fault"):
            list(iterator)
    assert indices_of(loader) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_the_long_list_of_indices_is_shortened() -> None:
    loader = DataLoader(
        Crashes(segfault, 9), num_workers=1, worker_restarts=0, batch_sampler=[[5] * 900]
    )
    with pytest.raises(WorkerDiedError, match=r"\[5, 5, 5.*900 in all\]") as caught:
        list(loader)
    assert len(str(caught.value)) < 1000
