"""Arrow tables, polars and pandas frames as datasets."""

import pickle
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import DataLoader
from headrace.data import TableDataset
from headrace.data.tables import as_dataset
from headrace.errors import ArrayTypeError, MissingColumnError, OptionError, SourceError
from headrace.testing import assert_exact_resume
from oracle import assert_programs_agree

MAKERS: dict[str, Any] = {
    "pyarrow": pa.table,
    "polars": pl.DataFrame,
    "pandas": pd.DataFrame,
    "pyarrow in chunks": lambda c: pa.concat_tables(
        [pa.table(c).slice(0, 3), pa.table(c).slice(3)]
    ),
    "a slice": lambda c: pa.table({k: [v[0], *v] for k, v in c.items()}).slice(1),
    "a slice of large texts": lambda c: pl.DataFrame(
        {k: [v[0], *v] for k, v in c.items()}
    ).to_arrow(compat_level=pl.CompatLevel.oldest())[1:],
    "polars in chunks": lambda c: pl.concat(
        [pl.DataFrame(c)[:3], pl.DataFrame(c)[3:]], rechunk=False
    ),
    "pandas, shuffled": lambda c: pd.DataFrame(c).sample(frac=1, random_state=0).sort_values("i"),
}


@pytest.fixture(params=MAKERS)
def make(request: Any) -> Any:
    return MAKERS[request.param]


COLUMNS: dict[str, Any] = {
    "i": [1, 2, 3, 4, 5],
    "x": [0.5, 1.5, 2.5, 3.5, 4.5],
    "b": [True, False, False, True, True],
    "s": ["a", "bé", "", "d", "e"],
}


class TestRows:
    def test_are_dicts(self, make: Any) -> None:
        data = TableDataset(make(COLUMNS))
        assert len(data) == 5
        assert [list(row.values()) for row in data] == [
            list(row) for row in zip(*COLUMNS.values(), strict=True)
        ]
        assert data.column_names == ("i", "x", "b", "s")

    def test_collate_as_the_default_collation_does(self, make: Any) -> None:
        for columns in (None, ["x", "b", "i"]):
            batch = assert_programs_agree(
                lambda loader, columns=columns: list(
                    loader(TableDataset(make(COLUMNS), columns), batch_size=2, shuffle=True)
                )
            )[0]
            assert batch["i"].dtype == torch.int64
            assert batch["x"].dtype == torch.float64
            assert batch["b"].dtype == torch.bool

    def test_of_numbers_are_gathered(self, make: Any) -> None:
        loader = DataLoader(TableDataset(make(COLUMNS), ["i", "x", "b"]), batch_size=2)
        next(iter(loader))
        assert loader.statistics().path == "gather"

    @settings(max_examples=40, deadline=None)
    @given(
        kind=st.sampled_from(["int8", "uint16", "int64", "float16", "float32", "float64", "bool"]),
        rows=st.integers(1, 40),
        batch=st.integers(1, 9),
    )
    def test_of_any_type_are_the_same_in_all_libraries(
        self, kind: str, rows: int, batch: int
    ) -> None:
        values = (np.random.default_rng(rows).random(rows) * 100).astype(kind)
        frames = (pa.table({"x": values}), pd.DataFrame({"x": values}))
        for frame in (*frames, *([] if kind == "float16" else [pl.DataFrame({"x": values})])):
            made = list(DataLoader(TableDataset(frame), batch_size=batch))
            assert torch.equal(torch.cat([b["x"] for b in made]), torch.from_numpy(values))

            def program(loader: Any, frame: Any = frame) -> Any:
                return list(loader(TableDataset(frame), batch_size=batch, shuffle=True))

            assert_programs_agree(program)

    def test_share_the_memory_of_their_table(self) -> None:
        values = np.arange(10_000.0)
        for frame in (pa.table({"x": values}), pl.DataFrame({"x": values})):
            stored = TableDataset(frame)._rows._table["x"]  # type: ignore[attr-defined]
            arrow = (
                frame["x"].to_arrow() if isinstance(frame, pl.DataFrame) else frame["x"].chunk(0)
            )
            assert stored.__array_interface__["data"][0] == arrow.buffers()[1].address
        frame = pd.DataFrame({"x": values})
        assert np.shares_memory(TableDataset(frame)._rows._table["x"], frame["x"])  # type: ignore[attr-defined]

    def test_with_categories_and_lists(self) -> None:
        frame = pl.DataFrame({"c": ["u", "v", "u"], "l": [[1, 2], [3, 4], [5, 6]]}).with_columns(
            pl.col("c").cast(pl.Categorical)
        )
        for data in (TableDataset(frame), TableDataset(frame.to_arrow())):
            assert data[1]["c"] == "v"
            assert data[1]["l"].tolist() == [3, 4]
        assert TableDataset(pd.DataFrame({"c": ["u", "v"]}, dtype="category"))[1]["c"] == "v"

    def test_with_lists_of_one_length_are_gathered(self) -> None:
        rows = [[1, 2], [3, 4], [5, 6]]
        table = pa.table({"l": pa.array(rows)})
        for frame in (table, table.slice(1), pl.DataFrame({"l": rows}), pd.DataFrame({"l": rows})):
            loader = DataLoader(TableDataset(frame), batch_size=4)
            assert next(iter(loader))["l"].tolist() == rows[-len(frame) :]
            assert loader.statistics().path == "gather"
        for other in ([[1], [2, 3], [4, 5]], [[], [], []]):
            data = TableDataset(pa.table({"l": pa.array(other, pa.list_(pa.int64()))}))
            assert [row["l"].tolist() for row in data] == other

    def test_of_pandas_keep_nan_and_lose_the_index(self) -> None:
        data = TableDataset(pd.DataFrame({"x": [1.0, float("nan")]}, index=[7, 9]))
        assert np.isnan(data[1]["x"])
        assert list(data[0]) == ["x"]

    def test_resume_exactly(self, make: Any) -> None:
        assert_exact_resume(
            lambda: DataLoader(TableDataset(make(COLUMNS)), batch_size=2, shuffle=True)
        )

    def test_can_be_pickled(self, make: Any) -> None:
        data = pickle.loads(pickle.dumps(TableDataset(make(COLUMNS))))
        assert [row["s"] for row in data] == COLUMNS["s"]


class TestBadTables:
    @pytest.mark.parametrize("kind", [pa.table, pl.DataFrame])
    def test_without_a_value(self, kind: Any) -> None:
        frame = kind({"i": [1, None], "s": ["a", None]})
        with pytest.raises(SourceError, match="row 1, column 'i': a value is missing"):
            TableDataset(frame)
        assert TableDataset(frame, missing=-1)[1] == {"i": -1, "s": ""}
        with pytest.raises(SourceError, match=r"missing=0.5 is no value of its type int64"):
            TableDataset(frame, missing=0.5)

    def test_of_pandas_without_a_value(self) -> None:
        frame = pd.DataFrame({"i": pd.array([1, None], dtype="Int64"), "s": ["a", None]})
        with pytest.raises(SourceError, match="row 1, column 'i': a value is missing"):
            TableDataset(frame)
        assert TableDataset(frame, missing=-1)[1] == {"i": -1, "s": ""}

    def test_with_lists_that_lack_a_value(self) -> None:
        frame = pa.table({"l": [[1, 2], [3, None]]})
        with pytest.raises(SourceError, match="row 1, column 'l': a value of its list is missing"):
            TableDataset(frame)
        assert TableDataset(frame, missing=0)[1]["l"].tolist() == [3, 0]

    def test_with_columns_that_make_no_tensor(self) -> None:
        interval = pa.array([(1, 2, 3)], pa.month_day_nano_interval())
        frame = pa.table({"x": [1], "span": interval})
        with pytest.raises(ArrayTypeError, match=r"column 'span':.*columns="):
            TableDataset(frame)
        assert TableDataset(frame, "x")[0] == {"x": 1}
        with pytest.raises(ArrayTypeError, match=r"column 'o': values of several types"):
            TableDataset(pd.DataFrame({"o": [1, "a"]}))

    def test_with_a_column_missing_or_twice(self) -> None:
        with pytest.raises(MissingColumnError, match=r"has no column 'z'. It has: 'x'"):
            TableDataset(pa.table({"x": [1]}), ["z"])
        twice = pa.table([pa.array([1]), pa.array([2])], names=["x", "x"])
        with pytest.raises(SourceError, match="two columns are called 'x'"):
            TableDataset(twice)

    def test_that_are_none(self) -> None:
        with pytest.raises(ArrayTypeError, match=r"dict is no pyarrow.Table"):
            TableDataset({"x": [1]})
        with pytest.raises(OptionError, match="missing="):
            TableDataset(pa.table({"x": [1]}), missing="skip")  # type: ignore[arg-type]


class TestAsDataset:
    def test_wraps_tables(self, make: Any) -> None:
        assert isinstance(as_dataset(make(COLUMNS)), TableDataset)

    @pytest.mark.parametrize("other", [[1, 2], "text", range(3), None, TableDataset])
    def test_leaves_the_rest(self, other: Any) -> None:
        assert as_dataset(other) is other
