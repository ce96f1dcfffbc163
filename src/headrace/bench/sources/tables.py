"""The tables' part of ``headrace bench sources``: CSV to the first batch, Parquet shuffled.

CSV: 19 normal numbers and a class. A first start is ``CSVDataset(...)`` with an empty cache and the
first batch of 256, shuffled, against ``polars.read_csv`` of the file; a second start is the same
with the cache. Importing torch and polars is not counted.

Parquet: 20 columns of float32 in row groups of 100,000, batches of 256. torch's loader has a
dataset that holds the decoded columns as arrays and returns a row as a dict. Decoding into the
cache, once, is not counted. A row-group shuffle keeps 2 groups, and its decoding is counted; its
memory is the peak that an epoch adds to a process of its own, beyond those groups.
"""

import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.data

from headrace import DataLoader
from headrace.bench.costs import added_peak
from headrace.bench.harness import (
    Row,
    Say,
    Size,
    System,
    at_least,
    at_most,
    in_turn,
    ratios,
    spread,
)
from headrace.data.tables import CSVDataset, ParquetDataset
from headrace.extras import import_extra

_OURS = "headrace"
_TORCH = "torch, per row"
_BATCH = 256
_GROUP = 100_000
_KEPT = 2


def tables(size: Size, say: Say) -> list[Row]:
    """Measure CSV and Parquet; takes about a minute and 700 MB of disk, some seconds when quick."""
    count = size.choose(1_000_000, 100_000)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        directory = Path(name)
        say(f"writing tables of {count:,} rows")
        _write(directory, count)
        say("CSV to the first shuffled batch")
        rows = _csv_rows(directory, size)
        say("Parquet, shuffled")
        rows += _parquet_rows(directory, count, size)
        say("memory of a row-group shuffle, in a process of its own")
        rows.append(_memory_row(directory, count))
    return rows


def _write(directory: Path, count: int) -> None:
    pl = import_extra("polars", "tables")
    draw = np.random.default_rng(0)
    numbers = {f"x{i}": draw.standard_normal(count) for i in range(19)}
    pl.DataFrame({**numbers, "y": draw.integers(0, 10, count)}).write_csv(directory / "table.csv")
    pa = import_extra("pyarrow", "tables")
    parquet = import_extra("pyarrow.parquet", "tables")
    columns = {f"x{i}": draw.standard_normal(count).astype(np.float32) for i in range(20)}
    parquet.write_table(pa.table(columns), directory / "table.parquet", row_group_size=_GROUP)
    few = pa.table({name: column[:_BATCH] for name, column in columns.items()})
    parquet.write_table(few, directory / "few.parquet")


def _first_batch_s(directory: Path, *, cold: bool) -> float:
    cache = directory / "cache"
    if cold:
        shutil.rmtree(cache, ignore_errors=True)
    started = time.perf_counter()
    dataset = CSVDataset(directory / "table.csv", target="y", cache_dir=cache)
    next(iter(DataLoader(dataset, batch_size=_BATCH, shuffle=True)))
    return time.perf_counter() - started


def _polars_s(directory: Path) -> float:
    pl = import_extra("polars", "tables")
    started = time.perf_counter()
    pl.read_csv(directory / "table.csv")
    return time.perf_counter() - started


def _csv_rows(directory: Path, size: Size) -> list[Row]:
    _first_batch_s(directory, cold=True)  # imports
    seconds = in_turn(
        {
            _OURS: partial(_first_batch_s, directory, cold=True),
            "polars.read_csv": partial(_polars_s, directory),
        },
        size.rounds,
    )
    warm = [1e3 * _first_batch_s(directory, cold=False) for _ in range(size.rounds)]
    systems = tuple(System(name, spread(values), "s") for name, values in seconds.items())
    again = spread(warm)
    return [
        Row(
            work="CSV, first start",
            figure="to the first shuffled batch, by polars' read",
            value=ratios(seconds[_OURS], seconds["polars.read_csv"]),
            unit="x",
            target=at_most(1.3),
            systems=systems,
        ),
        Row(
            work="CSV, second start",
            figure="to the first shuffled batch",
            value=again,
            unit="ms",
            target=at_most(100),
            systems=(System(_OURS, again, "ms"),),
        ),
    ]


class PerRow(torch.utils.data.Dataset[dict[str, Any]]):
    """A table as people write it: columns as arrays, a row as a dict."""

    def __init__(self, path: Path) -> None:
        table = import_extra("pyarrow.parquet", "tables").read_table(path)
        self.columns = {name: table.column(name).to_numpy() for name in table.column_names}
        self.length = len(table)

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one row."""
        return {name: column[index] for name, column in self.columns.items()}


def _rate(loader: Any, batches: int) -> float:
    iterator = iter(loader)
    next(iterator)  # workers, permutations and buffers are there
    started = time.perf_counter()
    seen = sum(len(batch["x0"]) for batch in islice(iterator, batches))
    return seen / (time.perf_counter() - started) / 1e3


def _parquet_rows(directory: Path, count: int, size: Size) -> list[Row]:
    path = directory / "table.parquet"
    decoded = ParquetDataset(path, cache_dir=directory / "cache")
    grouped = ParquetDataset(path, cache_dir=False, groups_in_memory=_KEPT)
    per_row = PerRow(path)
    epoch, some = count // _BATCH - 1, size.choose(200, 20)  # torch takes 10 ms a batch

    def torchs() -> float:
        loader = torch.utils.data.DataLoader(per_row, batch_size=_BATCH, shuffle=True)
        return _rate(loader, some)

    def shuffled() -> float:
        return _rate(DataLoader(decoded, batch_size=_BATCH, shuffle=True), epoch)

    def by_groups() -> float:
        return _rate(DataLoader(grouped, batch_size=_BATCH, sampler=grouped.sampler()), epoch)

    rates = in_turn({"all": shuffled, "groups": by_groups, _TORCH: torchs}, size.rounds)
    other = System(_TORCH, spread(rates[_TORCH]), "k samples/s")
    return [
        Row(
            work=work,
            figure="by torch's loader over rows",
            value=ratios(rates[name], rates[_TORCH]),
            unit="x",
            target=at_least(10),
            systems=(System(_OURS, spread(rates[name]), "k samples/s"), other),
        )
        for work, name in (("Parquet, shuffled", "all"), ("Parquet, row-group shuffle", "groups"))
    ]


def _epoch_peak(directory: Path) -> int:
    """Return the bytes that an epoch adds; runs in a process of its own."""

    def epoch(name: str) -> None:
        dataset = ParquetDataset(directory / name, cache_dir=False, groups_in_memory=_KEPT)
        for _ in DataLoader(dataset, batch_size=_BATCH, sampler=dataset.sampler()):
            pass

    epoch("few.parquet")  # modules, and the buffers that any table needs
    return added_peak(lambda: epoch("table.parquet"))


def _memory_row(directory: Path, count: int) -> Row:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        peak = fresh.submit(_epoch_peak, directory).result()
    group_bytes = min(count, _GROUP) * 20 * 4
    beyond = spread([peak / group_bytes - _KEPT])
    return Row(
        work="Parquet, row-group shuffle",
        figure="memory beyond the groups shuffled",
        value=beyond,
        unit="row groups",
        target=at_most(2),
        systems=(System(_OURS, spread([peak / 2**20]), "MiB"),),
        note=f"a row group of {group_bytes / 2**20:.1f} MiB",
    )
