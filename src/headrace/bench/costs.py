"""What a loader costs: memory and CPU time, of one process or of a tree of them."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
import torch.utils.data
from torch.utils.data import TensorDataset

from headrace import DataLoader
from headrace.bench import watch

_watchers: set[int] = set()


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def tree_cpu_seconds() -> float:
    """Return the CPU time of this process and of all its descendants, ended or not.

    A forkserver's workers are not our children: their time is found with the server's. A process
    that watches the memory meanwhile is left out.
    """
    import psutil

    total = cpu_seconds()
    for process in psutil.Process().children(recursive=True):
        if process.pid in _watchers:
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def beyond_the_data(system: str, samples: int, columns: int, batch_size: int) -> int:
    """Return the bytes that one shuffled epoch adds to a process that holds the data already.

    ``system`` is "headrace" or anything else for torch's loader. A process of its own is started
    for it: memory that an earlier measurement has freed would hide what this one takes.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(_epoch_peak, system, samples, columns, batch_size).result()


def added_peak(call: Callable[[], object]) -> int:
    """Return the bytes that a call adds to this process at its most."""
    before = _reset_peak()
    call()
    return _peak_resident() - before


def _epoch_peak(system: str, samples: int, columns: int, batch_size: int) -> int:
    loader_class = DataLoader if system == "headrace" else torch.utils.data.DataLoader
    torch.set_num_threads(1)
    dataset = TensorDataset(torch.rand(samples, columns), torch.arange(samples))
    loader = loader_class(dataset, batch_size=batch_size, shuffle=True)
    # Modules and torch's own tables come in with the first use, whatever the loader: use it once
    # on data so small that no buffer worth counting stays behind.
    for _ in loader_class(TensorDataset(torch.rand(8, 1)), batch_size=2, shuffle=True):
        pass
    before = _reset_peak()
    for _ in loader:
        pass
    return _peak_resident() - before


def _reset_peak() -> int:
    """Make the kernel forget the process's peak; return the bytes resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status_bytes("VmRSS")


def _peak_resident() -> int:
    return _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


class TreeMemory:
    """The proportional set size of this process and all its descendants, within a ``with`` block.

    Memory that several processes share is counted once, shared out among them. Another process
    looks at ours whenever it can, some 10 ms for each process it looks at, which slows the work: do
    not time it. What lasts shorter has to ask for a look.
    """

    def __init__(self) -> None:
        self._before = self._peak = 0

    @property
    def added_mib(self) -> float:
        """What came on top within the block at its most, in MiB; known after the block."""
        return (self._peak - self._before) / 2**20

    def look(self) -> None:
        """Have the memory looked at before anything else happens here."""
        self._ask("look")

    def __enter__(self) -> Self:
        self._watcher = subprocess.Popen(
            [sys.executable, watch.__file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        _watchers.add(self._watcher.pid)
        self._before = int(self._answer())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._peak = int(self._ask("end"))
        self._watcher.communicate()
        _watchers.discard(self._watcher.pid)

    def _ask(self, what: str) -> str:
        print(what, file=self._watcher.stdin, flush=True)
        return self._answer()

    def _answer(self) -> str:
        assert self._watcher.stdout is not None, "asked for at its start"
        return self._watcher.stdout.readline()
