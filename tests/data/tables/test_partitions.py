"""Directories that hold columns, and files that are read together."""

import pickle
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data.tables.plain import plain
from headrace import DataLoader
from headrace.data import ParquetDataset
from headrace.errors import SourceError, SourceWarning


class TestPartitions:
    @pytest.fixture
    def table(self) -> pa.Table:
        return pa.table(
            {"v": range(6), "year": [2020, 2021] * 3, "town": ["Bern", "São Paulo", "a/b"] * 2}
        )

    @pytest.fixture(params=["in memory", "in a cache", "row groups"])
    def options(self, request: Any, tmp_path: Path) -> dict[str, Any]:
        known: dict[str, dict[str, Any]] = {
            "in a cache": {"cache_dir": tmp_path / "cache"},
            "row groups": {"cache_dir": False, "groups_in_memory": 9},
        }
        return known.get(request.param, {})

    def test_are_columns(self, table: pa.Table, options: Any, tmp_path: Path) -> None:
        pq.write_to_dataset(table, tmp_path / "t", partition_cols=["year", "town"])
        data = ParquetDataset(tmp_path / "t", **options)
        assert data.column_names == ("v", "year", "town")
        found = sorted((plain(row) for row in data), key=lambda row: row["v"])
        assert found == table.to_pylist()
        batch = next(iter(DataLoader(data, 6)))
        assert batch["year"].dtype == torch.int64
        only = ParquetDataset(tmp_path / "t", ["year"], **options)
        loader = DataLoader(only, 6)
        assert sorted(next(iter(loader))["year"].tolist()) == [2020] * 3 + [2021] * 3
        assert loader.statistics().path == "gather"
        assert pickle.loads(pickle.dumps(data))[5] == data[5]

    def test_without_a_value_are_missing(self, options: Any, tmp_path: Path) -> None:
        table = pa.table({"v": [1, 2], "k": [None, 7]})
        pq.write_to_dataset(table, tmp_path / "t", partition_cols=["k"])
        with pytest.raises(SourceError, match="column 'k': a value is missing"):
            _ = list(ParquetDataset(tmp_path / "t", **options))
        data = ParquetDataset(tmp_path / "t", missing=-1, **options)
        assert sorted(int(row["k"]) for row in data) == [-1, 7]

    @pytest.mark.parametrize(
        ("values", "kind"),
        [(["01", "12"], int), (["1", "x"], str), (["1.5", "2"], str), (["2024-01-01"], str)],
    )
    def test_are_numbers_where_all_are(self, values: list[str], kind: type, tmp_path: Path) -> None:
        for value in values:
            (tmp_path / f"k={value}").mkdir()
            pq.write_table(pa.table({"v": [1]}), tmp_path / f"k={value}" / "a.parquet")
        found = [plain(row["k"]) for row in ParquetDataset(tmp_path)]
        assert found == [kind(value) for value in sorted(values)]

    def test_that_differ_are_an_error(self, tmp_path: Path) -> None:
        for name in ("k=1", "other"):
            (tmp_path / name).mkdir()
            pq.write_table(pa.table({"v": [1]}), tmp_path / name / "a.parquet")
        with pytest.raises(SourceError, match=r"hold the columns none, those of .* 'k'"):
            ParquetDataset(tmp_path)

    def test_that_the_files_have_too_are_an_error(self, tmp_path: Path) -> None:
        (tmp_path / "v=1").mkdir()
        path = tmp_path / "v=1" / "a.parquet"
        pq.write_table(pa.table({"v": [3]}), path)
        with pytest.raises(SourceError, match=r"has a column 'v', and so have.*as a list"):
            ParquetDataset(tmp_path)
        assert ParquetDataset([path])[0] == {"v": 3}


def test_the_index_that_pandas_writes_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"v": [1, 2]}, index=[5, 6]).to_parquet(path)
    with pytest.warns(SourceWarning, match=r"'__index_level_0__' is the index.*columns=\['v'\]"):
        assert ParquetDataset(path)[0] == {"v": 1, "__index_level_0__": 5}
    assert ParquetDataset(path, ["v"])[0] == {"v": 1}
    pd.DataFrame({"v": [1, 2]}, index=[5, 6]).to_parquet(path, index=False)
    assert ParquetDataset(path)[0] == {"v": 1}
