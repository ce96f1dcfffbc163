"""``timeout=`` says which worker, which indices, and where the user's code stands."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace import DataLoader
from headrace.engine.backends.obituary import stack_of
from headrace.errors import WorkerTimeoutError
from workers.failure.processes import is_running, wait_until
from workers.failure.user_code import Marks, Numbers, Stream, be_deaf, indices_of


class Waits:
    """Waits at one index until it is told to go on."""

    def __init__(self, at: int) -> None:
        self.at, self.go = at, Marks(1)

    def __call__(self, index: int) -> None:
        if index == self.at:
            self.wait_for_the_tape_drive()

    def wait_for_the_tape_drive(self) -> None:
        while not self.go[0]:
            time.sleep(0.005)


@pytest.mark.parametrize("in_order", [True, False])
def test_the_error_names_worker_indices_and_the_place_in_the_users_code(in_order: bool) -> None:
    waits = Waits(at=5)
    loader = DataLoader(
        Numbers(8, waits), 2, num_workers=2, timeout=0.4, in_order=in_order, prefetch_factor=1
    )
    iterator = iter(loader)
    got: list[list[int]] = []
    with pytest.raises(WorkerTimeoutError) as caught:
        for batch in iterator:
            got += indices_of([batch])
    text = str(caught.value)
    assert "DataLoader timed out after 0.4 seconds" in text
    assert "worker 0" in text
    assert f"pid {iterator._workers[0].pid}" in text
    assert "[4, 5]" in text
    assert "wait_for_the_tape_drive" in text
    assert "test_timeout.py" in text
    assert "timeout=0.8" in text
    waits.go.add(0)  # it was slow, not stuck: nothing is lost
    assert sorted(got + indices_of(iterator)) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_it_counts_the_wait_for_one_batch_not_the_epoch() -> None:
    loader = DataLoader(Numbers(12, lambda i: time.sleep(0.04)), 2, num_workers=1, timeout=0.3)
    assert len(indices_of(loader)) == 6


def test_a_worker_that_answers_nothing_is_named_all_the_same() -> None:
    def deaf(index: int) -> None:
        be_deaf()
        time.sleep(60)

    iterator = iter(DataLoader(Numbers(8, deaf), 2, num_workers=1, timeout=0.3))
    with pytest.raises(WorkerTimeoutError, match=r"worker 0 at the indices \[0, 1\]: pid \d+"):
        next(iterator)


def test_a_worker_that_is_still_starting_is_not_ended_by_the_question() -> None:
    marks = Marks(1)

    def slow(worker: int) -> None:
        while not marks[0]:
            time.sleep(0.005)

    iterator = iter(
        DataLoader(
            Numbers(8), 2, num_workers=1, timeout=0.2, worker_init_fn=slow, worker_restarts=0
        )
    )
    for _ in range(2):
        with pytest.raises(WorkerTimeoutError):
            next(iterator)
    marks.add(0)
    assert indices_of(iterator) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_a_process_that_does_not_listen_for_the_question_is_not_asked() -> None:
    process = subprocess.Popen(["sleep", "60"])  # a spawned worker that still imports is like it
    wait_until(lambda: "sleep" in _command_of(process.pid), "it runs")
    stack_file = os.memfd_create("stack")
    assert "still starting" in stack_of(process.pid, stack_file)
    assert is_running(process.pid)
    os.close(stack_file)
    process.kill()
    process.wait()


def _command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text()


def test_an_iterable_dataset_times_out_too() -> None:
    waits = Waits(at=4)
    iterator: Any = iter(DataLoader(Stream(8, waits), 2, num_workers=1, timeout=0.3))
    with pytest.raises(WorkerTimeoutError, match="wait_for_the_tape_drive"):
        list(iterator)
    waits.go.add(0)
    assert indices_of(iterator)[-1] == [6, 7]


def test_a_program_that_is_away_for_longer_is_not_timed_out() -> None:
    iterator = iter(DataLoader(Numbers(8), 2, num_workers=1, timeout=0.2))
    first = next(iterator)
    torch.ones(300, 300) @ torch.ones(300, 300)
    time.sleep(0.3)  # the program's own work, longer than the timeout
    assert indices_of([first, *iterator]) == [[0, 1], [2, 3], [4, 5], [6, 7]]
