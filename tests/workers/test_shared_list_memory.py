"""What an epoch over a long list costs the workers in memory of their own."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import Dataset

from headrace import DataLoader, SharedList

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc/<pid>/smaps_rollup"
)


class Lengths(Dataset[int]):
    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> int:
        return len(self.texts[index])


def private_bytes(pid: int) -> int:
    """What this process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    fields = [line.split() for line in lines if line.startswith("Private_")]
    return sum(int(kilobytes) * 1024 for _, kilobytes, _ in fields)


def growth_of_workers(texts: Sequence[str], workers: int) -> int:
    """Bytes by which the private memory of all workers grows from the first batch to the last."""
    loader: DataLoader[Any] = DataLoader(
        Lengths(texts), batch_size=2_500, shuffle=True, num_workers=workers, prefetch_factor=1
    )
    batches = iter(loader)
    pids = [worker.pid for worker in batches._workers]
    for _ in range(workers):
        next(batches)
    before = sum(map(private_bytes, pids))
    for _ in range(len(loader) - workers):
        next(batches)
    grown = sum(map(private_bytes, pids)) - before
    assert next(batches, None) is None
    return grown


def texts_of(count: int) -> list[str]:
    return [
        f"/data/images/train/class_{i % 997:04d}/{i:09d}.jpg".rjust(120, "_") for i in range(count)
    ]


def size_of(texts: list[str]) -> int:
    return sys.getsizeof(texts) + sum(map(sys.getsizeof, texts))


def test_a_shared_list_is_not_copied_into_workers() -> None:
    texts = texts_of(200_000)
    shared = SharedList(texts)
    size = size_of(texts)
    # The list itself shows that what is measured is what it is about.
    assert growth_of_workers(texts, 2) > 0.5 * size
    assert growth_of_workers(shared, 2) < 0.1 * shared.size_bytes


@pytest.mark.stress
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.timeout(1_800)
def test_eight_workers_and_two_million_texts(capsys: pytest.CaptureFixture[str]) -> None:
    texts = texts_of(2_000_000)
    size = size_of(texts)
    shared = SharedList(texts)
    plain = growth_of_workers(texts, 8)
    del texts
    ours = growth_of_workers(shared, 8)
    with capsys.disabled():
        print(
            f"\n2,000,000 texts, 8 workers, private growth over an epoch: a list of "
            f"{size / 2**20:.0f} MiB {plain / 2**20:.0f} MiB ({plain / size:.2f} x), a SharedList "
            f"of {shared.size_bytes / 2**20:.0f} MiB {ours / 2**20:.1f} MiB "
            f"({ours / shared.size_bytes:.1%})"
        )
    assert plain > 2 * size
    assert ours < 0.1 * shared.size_bytes
