"""Tasks that wait behind a slow one move to an idle worker, and batches stay what they are."""

import itertools
from typing import Any

from headrace.engine.backends.base import Backend, Finished
from headrace.engine.epoch.policy import Policy
from headrace.engine.epoch.window import Window
from headrace.engine.order.order import Tasks
from headrace.engine.stats import Counters
from headrace.engine.task import Done, Task


class Script(Backend):
    """Worker 0 is slow. While its tasks are taken back it ends the first and takes up the last."""

    workers = 2

    def __init__(self, counters: Any) -> None:
        self.counters = counters
        self.tasks: list[list[Task]] = [[], []]

    def submit(self, worker: int, task: Task) -> None:
        self.tasks[worker].append(task)

    def retract(self, worker: int) -> list[Task]:
        first, *middle, last = self.tasks[worker]
        self.tasks[worker] = [first, last]
        return middle

    def get(self, timeout_s: float | None) -> Finished | None:
        if self.tasks[1]:
            return self.result(1)
        if self.counters.now < 0.2:
            assert timeout_s is not None
            self.counters.now += timeout_s
            return None
        return self.result(0)

    def result(self, worker: int) -> Finished:
        task = self.tasks[worker].pop(0)
        return Finished(worker, Done(task.step, task.indices, 1, 0, 0.0))

    def close(self) -> None:
        pass


class Clocked(Counters):
    now = 0.0

    def clock(self) -> float:  # type: ignore[override]
        return self.now


def test_a_task_taken_up_while_others_are_taken_back_keeps_its_batch() -> None:
    counters = Clocked()
    policy = Policy(depth=8, movable=True)
    indices = iter([[n] for n in range(8)])
    window = Window(Tasks(indices, 0, 0), Script(counters), counters, policy)
    assert list(itertools.islice(window, 8)) == [[n] for n in range(8)]
    assert counters.moved > 0
