"""Frames of pandas and polars with dates, decimals and structs, and what is nearly a table."""

import datetime
import decimal
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import feather

from data.tables.plain import plain
from headrace.data import ParquetDataset, TableDataset
from headrace.errors import ArrayTypeError, SourceError


class TestFrames:
    def test_of_pandas_have_dates_and_decimals(self) -> None:
        when = pd.to_datetime(["2024-01-01", "1970-01-02"])
        frame = pd.DataFrame({"t": when, "c": pd.Categorical(["a", "b"])})
        frame["d"] = [decimal.Decimal("0.1"), decimal.Decimal("2")]
        row = TableDataset(frame)[1]
        assert row["t"] == pa.Array.from_pandas(frame["t"]).cast(pa.int64())[1].as_py()
        assert (row["c"], row["d"]) == ("b", 2.0)
        frame.loc[0, "t"] = pd.NaT
        with pytest.raises(SourceError, match="row 0, column 't': a value is missing"):
            TableDataset(frame)

    def test_of_polars_have_dates_structs_and_lists(self) -> None:
        frame = pl.DataFrame(
            {
                "day": [datetime.date(1970, 1, 3)],
                "at": [{"x": 1, "y": "z"}],
                "words": [["a", "b"]],
                "kind": pl.Series(["k"], dtype=pl.Categorical),
                "price": pl.Series([decimal.Decimal("0.1")], dtype=pl.Decimal(10, 2)),
                "pair": pl.Series([[1, 2]], dtype=pl.Array(pl.Int64, 2)),
                "long": pl.Series([datetime.timedelta(seconds=1)], dtype=pl.Duration("ms")),
            }
        )
        assert plain(TableDataset(frame)[0]) == {
            "day": 2,
            "at": {"x": 1, "y": "z"},
            "words": ["a", "b"],
            "kind": "k",
            "price": 0.1,
            "pair": [1, 2],
            "long": 1000,
        }


class TestWhatIsNoTable:
    def test_but_close_to_one_is_told_the_line(self) -> None:
        table = pa.table({"a": [1]})
        for value, line in (
            (pl.LazyFrame({"a": [1]}), "frame.collect()"),
            (table.to_batches()[0], "from_batches([batch])"),
            (table.to_reader(), "reader.read_all()"),
            (pd.Series([1]), "series.to_frame()"),
            ({"a": [1]}, "pyarrow.table(columns)"),
            (3, "pyarrow.table({'x': ...})"),
        ):
            with pytest.raises(ArrayTypeError) as caught:
                TableDataset(value)
            assert line in str(caught.value)

    def test_a_sparse_column_is_told_the_line(self) -> None:
        frame = pd.DataFrame({"a": pd.arrays.SparseArray([0, 0, 1])})
        with pytest.raises(ArrayTypeError, match=r"'a': it is sparse.*sparse.to_dense"):
            TableDataset(frame)

    def test_another_file_is_known_for_what_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "x.parquet").write_text("a,b\n1,2\n" * 9)
        with pytest.raises(SourceError, match=r"looks like text: write CSVDataset"):
            ParquetDataset(tmp_path / "x.parquet")
        feather.write_feather(pa.table({"a": [1]}), str(tmp_path / "y.parquet"))
        with pytest.raises(SourceError, match=r"Arrow file: write TableDataset"):
            ParquetDataset(tmp_path / "y.parquet")
