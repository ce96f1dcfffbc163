"""How long it takes to drop an iterator whose workers are stuck."""

import multiprocessing
import os
import signal
import time
import warnings
from dataclasses import dataclass
from statistics import median
from typing import Any

from headrace.bench.costs import TreeMemory, tree_cpu_seconds
from headrace.bench.datasets import Stuck
from headrace.bench.harness import Row, Say, Size, System, at_most, spread
from headrace.bench.workers.work import LOADERS, OURS, TORCH

_PATIENCE_S = 60.0
_GRACE_S = 2.0


@dataclass(frozen=True)
class Closing:
    """One drop: how long it took, and how many workers lived on."""

    seconds: float
    survivors: int
    cpu_s: float
    added_mib: float


def closing_stuck(size: Size, say: Say) -> Row:
    """Measure the end of 8 workers that sleep in the dataset and ignore signals.

    torch waits some seconds for one worker after the other, so it is measured once, with one stuck
    worker unless the run is a full one, and not at all in a quick one.
    """
    with warnings.catch_warnings():
        # More workers than cores is the point here.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        return _closing_stuck(size, say)


def _closing_stuck(size: Size, say: Say) -> Row:
    count = size.choose(8, 1)
    say(f"closing {count} stuck {_workers(count)}")
    closings = [_close_stuck(OURS, count) for _ in range(size.choose(3, 1))]
    systems = [_system(f"{OURS}, {count} stuck", closings)]
    note = f"workers that live on: {OURS} {max(closing.survivors for closing in closings)}"
    if not size.quick:
        theirs, their_system = _close_theirs(8 if size.full else 1, say)
        systems.append(their_system)
        note += f", {TORCH} {theirs.survivors}; torch waits for one after the other, measured once"
        note += "" if size.full else " (with 8 in a full run: --full)"
    return Row(
        work=f"closing {count} stuck {_workers(count)}",
        figure="time until the last one is gone",
        value=spread([closing.seconds for closing in closings]),
        unit="s",
        target=at_most(1.0),
        systems=tuple(systems),
        note=note,
    )


def _close_theirs(count: int, say: Say) -> tuple[Closing, System]:
    say(f"closing {count} stuck {_workers(count)} of {TORCH}")
    closing = _close_stuck(TORCH, count)
    return closing, _system(f"{TORCH}, {count} stuck", [closing])


def _workers(count: int) -> str:
    return "worker" if count == 1 else "workers"


def _system(name: str, closings: list[Closing]) -> System:
    cpu_s = median(closing.cpu_s for closing in closings)
    seconds = spread([closing.seconds for closing in closings])
    return System(name, seconds, "s", cpu_s, max(closing.added_mib for closing in closings))


def _close_stuck(system: str, workers: int) -> Closing:
    fork = multiprocessing.get_context("fork")
    stuck = fork.Semaphore(0)
    loader = LOADERS[system](
        Stuck(workers, 4 * workers, stuck),
        batch_size=1,
        num_workers=workers,
        multiprocessing_context=fork,
    )
    cpu = tree_cpu_seconds()
    with TreeMemory() as memory:
        iterator: Any = iter(loader)
        next(iterator)
        for _ in range(workers):
            if not stuck.acquire(timeout=_PATIENCE_S):
                raise TimeoutError(f"{system}: a worker did not get to its second batch")
        memory.look()
    pids = [worker.pid for worker in iterator._workers]
    started = time.perf_counter()
    del iterator
    returned = time.perf_counter()
    gone = _wait_until_gone(pids)
    survivors = [pid for pid in pids if _lives(pid)]
    for pid in survivors:
        os.kill(pid, signal.SIGKILL)
    _wait_until_gone(survivors)
    seconds = (gone if not survivors else returned) - started
    return Closing(seconds, len(survivors), tree_cpu_seconds() - cpu, memory.added_mib)


def _wait_until_gone(pids: list[int]) -> float:
    """Wait until all are gone, or two seconds; return when that was."""
    deadline = time.perf_counter() + _GRACE_S
    while any(_lives(pid) for pid in pids) and time.perf_counter() < deadline:
        time.sleep(0.001)
    return time.perf_counter()


def _lives(pid: int) -> bool:
    import psutil

    try:
        status: str = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return False
    return status != str(psutil.STATUS_ZOMBIE)
