"""Tables read in every way: from memory, and from Parquet files in three."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.data import ParquetDataset, TableDataset


def from_parquet(table: pa.Table, tmp: Path, **options: Any) -> Any:
    pq.write_table(table, tmp / "t.parquet", row_group_size=2)
    return ParquetDataset(tmp / "t.parquet", **options)


WAYS: dict[str, Callable[..., Any]] = {
    "table": lambda table, tmp, **options: TableDataset(table, **options),
    "in memory": from_parquet,
    "in a cache": lambda table, tmp, **options: from_parquet(
        table, tmp, cache_dir=tmp / "cache", **options
    ),
    "row groups": lambda table, tmp, **options: from_parquet(
        table, tmp, cache_dir=False, groups_in_memory=9, **options
    ),
}


@pytest.fixture(params=WAYS)
def read(request: Any, tmp_path: Path) -> Any:
    return lambda table, **options: WAYS[request.param](table, tmp_path, **options)
