"""Workers with too little memory: an error of one batch where Python says so, else a death."""

import os
import resource
import signal

import pytest
import torch

from headrace import DataLoader
from headrace.errors import WorkerDiedError
from workers.failure.user_code import Numbers, indices_of

MEGA = 1 << 20


def limit_memory(worker: int) -> None:
    """Leave 200 MiB of address space to this process."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 200 * MEGA,) * 2)


class Large(Numbers):
    """Sample 3 does not fit, at one place or another."""

    def __init__(self, where: str) -> None:
        super().__init__(8)
        self.where = where

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 3 and self.where == "sample":
            bytearray(400 * MEGA)
        width = 150 * MEGA // 4 if index == 3 and self.where == "batch" else 3000
        return torch.full((1,), float(index)).expand(width)


def test_a_memory_error_in_a_sample_is_raised_for_its_batch_and_iteration_goes_on() -> None:
    loader = DataLoader(Large("sample"), num_workers=2, worker_init_fn=limit_memory)
    iterator = iter(loader)
    got = indices_of([next(iterator) for _ in range(3)])
    with pytest.raises(MemoryError, match="Caught MemoryError in DataLoader worker process 1"):
        next(iterator)
    assert got + indices_of(iterator) == [[0], [1], [2], [4], [5], [6], [7]]


def test_a_batch_that_finds_no_memory_is_an_error_and_iteration_goes_on() -> None:
    loader = DataLoader(Large("batch"), 2, num_workers=2, worker_init_fn=limit_memory)
    loader.collate_fn = _of_the_larger_width
    iterator = iter(loader)
    got = indices_of([next(iterator)])
    with pytest.raises((MemoryError, RuntimeError), match=r"cannot map|can't allocate memory"):
        next(iterator)
    assert got + indices_of(iterator) == [[0, 1], [4, 5], [6, 7]]


def _of_the_larger_width(samples: list[torch.Tensor]) -> torch.Tensor:
    width = max(len(sample) for sample in samples)
    return torch.stack([sample[:1].expand(width) for sample in samples])


def test_what_the_kernel_does_when_memory_runs_out_is_explained() -> None:
    class Killed(Numbers):
        def __getitem__(self, index: int) -> torch.Tensor:
            if index == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(index)

    loader = DataLoader(Killed(8), 2, num_workers=2, worker_restarts=0)
    with pytest.raises(WorkerDiedError) as caught:
        list(loader)
    text = str(caught.value)
    assert "is killed by signal: Killed" in text
    assert "by the kernel when memory runs out" in text
    assert "MiB of memory are free now" in text
    assert "the largest worker so far had" in text
    assert "[4, 5]" in text
