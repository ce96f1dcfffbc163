"""Nothing piles up: after many epochs descriptors, processes and memory are as in the first."""

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace import DataLoader
from workers.failure.processes import children_of, open_descriptors, shared_segments
from workers.failure.user_code import Numbers, Stream


def held() -> dict[str, int]:
    gc.collect()
    return {
        "descriptors": len(open_descriptors()),
        "children": len(children_of(os.getpid())),
        "segments": shared_segments(),
    }


def memory_mib() -> float:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no Rss")


@pytest.mark.parametrize(
    ("dataset", "persistent", "epochs"),
    [(Numbers(8), True, 200), (Stream(8), True, 200), (Numbers(8), False, 50)],
    ids=["persistent", "persistent iterable", "not persistent"],
)
def test_epoch_after_epoch(dataset: Any, persistent: bool, epochs: int) -> None:
    workers = 2 if persistent else 1
    loader = DataLoader(dataset, 2, num_workers=workers, persistent_workers=persistent)
    for epoch in range(epochs):
        for _ in loader:
            pass
        if epoch == 4:
            before, memory = held(), memory_mib()
    after = held()
    assert after["descriptors"] <= before["descriptors"]
    assert after["children"] <= before["children"]
    assert after["segments"] <= before["segments"] + 4
    assert memory_mib() < memory + 8


def test_epochs_left_early_with_persistent_workers() -> None:
    loader = DataLoader(Numbers(40), 2, num_workers=2, persistent_workers=True)
    for epoch in range(60):
        for step, _batch in enumerate(loader):
            if step == epoch % 7:
                break
        if epoch == 4:
            before = held()
    after = held()
    assert after["descriptors"] <= before["descriptors"]
    assert after["segments"] <= before["segments"] + 8


@pytest.mark.stress
def test_a_soak_with_kills_errors_breaks_and_kept_batches() -> None:
    def fails(index: int) -> None:
        if index % 97 == 13:
            raise ValueError("bad sample")

    loader = DataLoader(
        Numbers(400, fails), 2, num_workers=3, persistent_workers=True, worker_restarts=100
    )
    kept: list[torch.Tensor] = []
    for epoch in range(300):
        iterator = iter(loader)
        step = 0
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                break
            except ValueError:
                continue
            step += 1
            if step % 50 == epoch % 50:
                iterator._workers[epoch % 3].kill()
            if step % 40 == 0:
                kept.append(batch)
            if step == 190 - epoch % 100:
                break
        kept = kept[-20:]
        if epoch == 20:
            before, memory = held(), memory_mib()
    after = held()
    assert after["descriptors"] <= before["descriptors"] + 6
    assert after["children"] <= before["children"]
    assert memory_mib() < memory + 32
