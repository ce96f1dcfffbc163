"""loader.statistics(): what it counts, and that it counts it right."""

import dataclasses
import gc
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset

from headrace import DataLoader, Statistics
from headrace.engine.stats import in_units

WIDTH = 100


def columns(n: int) -> TensorDataset:
    return TensorDataset(torch.zeros(n, WIDTH), torch.zeros(n, dtype=torch.int64))


class Stream(IterableDataset[Any]):
    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[Any]:
        return ((torch.zeros(WIDTH), 0) for _ in range(self.n))


DATASETS = {
    "gather": columns,
    "inline": lambda n: [(torch.zeros(WIDTH), 0)] * n,
    "stream": Stream,
}
SAMPLE_BYTES = WIDTH * 4 + 8


@pytest.fixture(params=DATASETS)
def build(request: pytest.FixtureRequest) -> Any:
    return DATASETS[request.param]


def test_before_the_first_epoch_all_is_nothing() -> None:
    assert DataLoader(columns(3)).statistics() == Statistics("", 0, 0, 0, 0, 0.0, 0.0, 0, 0)


def test_are_frozen_and_a_snapshot(build: Any) -> None:
    loader = DataLoader(build(4))
    batches = iter(loader)
    next(batches)
    seen = loader.statistics()
    with pytest.raises(dataclasses.FrozenInstanceError):
        seen.batches = 7  # type: ignore[misc]
    next(batches)
    assert seen.batches == 1
    assert loader.statistics().batches == 2


def test_count_batches_samples_and_bytes_at_every_batch(build: Any) -> None:
    loader = DataLoader(build(11), batch_size=3)
    samples = 0
    for epoch in (1, 2):
        for step, (x, _) in enumerate(loader):
            samples += len(x)
            seen = loader.statistics()
            assert seen.epochs == epoch
            assert seen.batches == 4 * (epoch - 1) + step + 1
            assert seen.samples == samples
            assert seen.size_bytes == samples * SAMPLE_BYTES
    assert loader.statistics().samples == 22


def test_count_no_more_than_was_handed_out(build: Any) -> None:
    """Gathering ahead is not handing out."""
    loader = DataLoader(build(1_000), batch_size=3)
    for _ in zip(range(5), loader, strict=False):
        pass
    assert loader.statistics().samples in (15, 18)  # zip may have asked for one more
    gc.collect()
    assert loader.statistics().samples in (15, 18)


def test_add_up_over_epochs_that_run_at_once(build: Any) -> None:
    loader = DataLoader(build(11), batch_size=3)
    one = iter(loader)
    next(one)
    for _ in zip(one, iter(loader), strict=False):
        pass
    del one
    seen = loader.statistics()
    assert seen.epochs == 2
    rows = 11 + 9  # the second stopped with the first, a batch before its last
    assert (seen.samples, seen.size_bytes) == (rows, rows * SAMPLE_BYTES)


def test_say_how_batches_are_made() -> None:
    for name, path in (("gather", "gather"), ("inline", "inline"), ("stream", "inline")):
        loader = DataLoader(DATASETS[name](3))
        assert loader.statistics().path == ""
        list(loader)
        assert loader.statistics().path == path
    for options in ({"batch_size": None}, {"collate_fn": list}):
        loader = DataLoader(columns(3), **options)
        list(loader)
        assert loader.statistics().path == "inline"


def test_count_the_samples_of_other_batches() -> None:
    unbatched = DataLoader(columns(5), batch_size=None)
    list(unbatched)
    assert (unbatched.statistics().batches, unbatched.statistics().samples) == (5, 5)
    lists = DataLoader(columns(9), batch_sampler=[[0], [1, 2], [3, 4, 5]])
    list(lists)
    assert (lists.statistics().samples, lists.statistics().size_bytes) == (6, 6 * SAMPLE_BYTES)
    arrays = DataLoader([1, 2, 3], batch_size=3, collate_fn=lambda s: {"a": np.zeros(7), "n": "x"})
    list(arrays)
    assert arrays.statistics().size_bytes == 56


def test_leave_out_batches_that_failed() -> None:
    data: list[Any] = [torch.zeros(2), torch.zeros(3), torch.zeros(2), torch.zeros(2)]
    batches = iter(loader := DataLoader(data, batch_size=2))
    with pytest.raises(RuntimeError):
        next(batches)
    assert loader.statistics().batches == 0
    next(batches)
    assert (loader.statistics().batches, loader.statistics().samples) == (1, 2)


def test_measure_the_time_that_user_code_takes() -> None:
    class Slow(torch.utils.data.Dataset[int]):
        spent = 0.0

        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> int:
            started = time.perf_counter()
            while time.perf_counter() < started + 0.004:
                pass
            self.spent += time.perf_counter() - started
            return index

    data = Slow()
    started = time.perf_counter()
    loader = DataLoader(data, batch_size=2)
    list(loader)
    took = time.perf_counter() - started
    seen = loader.statistics()
    assert data.spent <= seen.fetch_s <= seen.wait_s <= took


def test_do_not_count_the_time_of_the_training(build: Any) -> None:
    loader = DataLoader(build(6), batch_size=2)
    for _ in loader:
        until = time.perf_counter() + 0.05
        while time.perf_counter() < until:
            pass
    assert loader.statistics().fetch_s > 0
    assert loader.statistics().wait_s < 0.15


def test_print_as_one_line_and_keep_their_repr() -> None:
    seen = Statistics("gather", 1, 438, 14_000, 1_258_291, 0.0120001, 0.04, 0, 0)
    assert str(seen) == (
        "438 batches, 14,000 samples, 1.2 MiB; waited 12 ms, fetched 40 ms; gathered in this "
        "process"
    )
    assert repr(seen).startswith("Statistics(path='gather', epochs=1, batches=438")
    troubled = dataclasses.replace(seen, path="process", batches=1, skipped=3, restarts=1)
    assert str(troubled).startswith("1 batch, ")
    assert str(troubled).endswith("worker processes; 3 samples skipped; 1 worker replaced")
    assert str(DataLoader([]).statistics()) == (
        "0 batches, 0 samples, 0 bytes; waited 0 ms, fetched 0 ms; nothing loaded yet"
    )


@pytest.mark.parametrize(
    ("size", "written"),
    [
        (640, "640 bytes"),
        (1000, "0.977 KiB"),
        (1536, "1.5 KiB"),
        (1000 << 10, "0.977 MiB"),
        (3 << 20, "3 MiB"),
        (1000 << 20, "0.977 GiB"),
        (1500 << 30, "1,500 GiB"),
    ],
)
def test_sizes_are_written_in_the_unit_that_fits(size: int, written: str) -> None:
    assert in_units(size) == written


def test_times_are_written_in_the_unit_that_fits() -> None:
    seen = Statistics("gather", 1, 1, 1, 1, 0.9999, 75.25, 0, 0)
    assert "waited 1 s, fetched 75.2 s" in str(seen)
