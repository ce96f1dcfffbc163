"""Parquet files: rows in any order, and a row group at a time."""

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.tables.functions import text_and_number
from headrace import DataLoader
from headrace.data import ParquetDataset, RowGroupSampler
from headrace.data.tables.row_groups import Groups
from headrace.errors import (
    MissingColumnError,
    OptionError,
    SourceChangedError,
    SourceError,
)
from headrace.testing import assert_exact_resume
from oracle import assert_programs_agree, assert_same

NUMBERS = ["f", "d", "i", "b", "pair"]


@pytest.fixture(scope="module")
def table() -> pa.Table:
    draw, n = np.random.default_rng(0), 500
    return pa.table(
        {
            "f": draw.random(n).astype(np.float32),
            "d": draw.random(n),
            "i": draw.integers(-9, 9, n).astype(np.int16),
            "b": draw.random(n) < 0.5,
            "s": [f"row {i} é" * (i % 3) for i in range(n)],
            "pair": pa.FixedSizeListArray.from_arrays(pa.array(draw.random(2 * n)), 2),
            "list": pa.array(draw.random((n, 3)).tolist()),
        }
    )


@pytest.fixture(scope="module")
def directory(table: pa.Table, tmp_path_factory: Any) -> Path:
    path: Path = tmp_path_factory.mktemp("parquet")
    pq.write_table(table.slice(0, 300), path / "a.parquet", row_group_size=60)
    (path / "deeper").mkdir()
    pq.write_table(table.slice(300), path / "deeper" / "b.parquet", row_group_size=70)
    (path / "_SUCCESS").touch()
    (path / ".hidden.parquet").touch()
    return path


WAYS: dict[str, Any] = {
    "in memory": lambda tmp: {},
    "in a cache": lambda tmp: {"cache_dir": tmp / "cache"},
    "row groups": lambda tmp: {"cache_dir": False, "groups_in_memory": 20},
}


@pytest.fixture(params=WAYS)
def way(request: Any, tmp_path: Path) -> Any:
    return WAYS[request.param](tmp_path)


class TestRows:
    def test_are_those_of_the_files_in_order(
        self, directory: Path, table: pa.Table, way: Any
    ) -> None:
        data = ParquetDataset(directory, **way)
        assert len(data) == 500
        assert data.column_names == tuple(table.column_names)
        rows = table.to_pylist()
        for place in (0, 59, 60, 299, 300, -1):
            row = data[place]
            assert row["s"] == rows[place]["s"]
            assert row["f"] == np.float32(rows[place]["f"])
            assert row["pair"].tolist() == rows[place]["pair"]
            assert row["list"].tolist() == rows[place]["list"]

    def test_collate_to_tensors_of_the_columns_types(self, directory: Path, way: Any) -> None:
        def program(loader: Any) -> Any:
            return list(loader(ParquetDataset(directory, **way), batch_size=64, shuffle=True))

        batch = assert_programs_agree(program)[0]
        types = {name: v.dtype for name, v in batch.items() if isinstance(v, torch.Tensor)}
        assert types == {
            "f": torch.float32,
            "d": torch.float64,
            "i": torch.int16,
            "b": torch.bool,
            "pair": torch.float64,
            "list": torch.float64,
        }
        assert batch["pair"].shape == (64, 2)
        assert isinstance(batch["s"][0], str)

    def test_of_numbers_are_gathered(self, directory: Path, way: Any) -> None:
        def program(loader: Any) -> Any:
            made = loader(ParquetDataset(directory, NUMBERS, **way), batch_size=64, shuffle=True)
            batches = list(made)
            assert loader is not DataLoader or made.statistics().path == "gather"
            return batches

        assert_programs_agree(program)

    def test_of_lists_of_one_length_are_gathered_once_decoded(self, directory: Path) -> None:
        loader = DataLoader(ParquetDataset(directory, ["list"]), batch_size=8)
        assert next(iter(loader))["list"].shape == (8, 3)
        assert loader.statistics().path == "gather"

    def test_of_lists_of_any_length_are_arrays(self, tmp_path: Path, way: Any) -> None:
        pq.write_table(pa.table({"x": [[1, 2], [], [3]]}), tmp_path / "t.parquet", row_group_size=1)
        data = ParquetDataset(tmp_path / "t.parquet", **way)
        assert [row["x"].tolist() for row in data] == [[1, 2], [], [3]]

    def test_have_the_columns_asked_for_in_that_order(self, directory: Path, way: Any) -> None:
        assert list(ParquetDataset(directory, ["s", "f"], **way)[3]) == ["s", "f"]

    def test_are_read_as_pandas_polars_and_datasets_read_them(self, directory: Path) -> None:
        path = directory / "a.parquet"
        batch = next(iter(DataLoader(ParquetDataset(path, ["d", "s"]), batch_size=300)))
        frame = pd.read_parquet(path)
        np.testing.assert_array_equal(batch["d"].numpy(), frame["d"])
        assert batch["s"] == frame["s"].tolist() == pl.read_parquet(path)["s"].to_list()
        theirs = datasets.Dataset(pa.Table.from_pandas(frame[["d", "s"]]))
        assert_same(batch, next(iter(torch.utils.data.DataLoader(theirs, batch_size=300))))

    def test_of_an_empty_file(self, tmp_path: Path, way: Any) -> None:
        pq.write_table(pa.table({"x": pa.array([], pa.int64())}), tmp_path / "e.parquet")
        data = ParquetDataset(tmp_path / "e.parquet", **way)
        assert len(data) == 0
        with pytest.raises(IndexError, match="no rows"):
            data[0]

    def test_without_a_value(self, tmp_path: Path, way: Any) -> None:
        path = tmp_path / "t.parquet"
        columns = {"i": [1, 2, 3, None], "s": ["a", "b", "c", None], "l": [[1], [2], [3], None]}
        pq.write_table(pa.table(columns), path, row_group_size=3)
        with pytest.raises(SourceError, match=r"t.parquet, row 3, column 'i': a value is missing"):
            ParquetDataset(path, **way)[3]
        row = ParquetDataset(path, missing=-1, **way)[3]
        assert (row["i"], row["s"], row["l"].tolist()) == (-1, "", [])

    def test_are_read_by_workers(self, directory: Path, table: pa.Table) -> None:
        data = ParquetDataset(directory, ["s", "i"], cache_dir=False).map(text_and_number)
        loader = DataLoader(data, batch_size=100, num_workers=1)
        texts = [text for batch in loader for text in batch[0]]
        assert texts == table["s"].to_pylist()

    def test_are_pickled_without_their_data(self, directory: Path, way: Any) -> None:
        data = ParquetDataset(directory, **way)
        text = pickle.dumps(data)
        assert len(text) < 2_000
        assert pickle.loads(text)[400]["s"] == data[400]["s"]


class TestRowGroups:
    @settings(max_examples=40, deadline=None)
    @given(
        sizes=st.lists(st.integers(0, 20), min_size=1, max_size=12),
        window=st.integers(1, 5),
        seed=st.integers(0, 2**31),
        start=st.integers(0, 60),
    )
    def test_shuffle_is_a_permutation_that_goes_on_anywhere(
        self, sizes: list[int], window: int, seed: int, start: int
    ) -> None:
        def order(start: int = 0) -> list[int]:
            generator = torch.Generator().manual_seed(seed)
            chunks = RowGroupSampler(sizes, window, generator).index_chunks(start)
            return [index for chunk in chunks for index in chunk.tolist()]

        whole = order()
        assert sorted(whole) == list(range(sum(sizes)))
        assert order(start) == whole[start:]
        assert list(RowGroupSampler(sizes, window, torch.Generator().manual_seed(seed))) == whole
        owners = np.repeat(np.arange(len(sizes)), sizes)[whole]
        changes = np.flatnonzero(np.diff(owners, prepend=-1))
        filled = sum(size > 0 for size in sizes)
        assert window > 1 or len(changes) == filled  # a group is left once

    def test_shuffle_differs_from_epoch_to_epoch(self) -> None:
        sampler = RowGroupSampler([50, 50], 1, torch.Generator().manual_seed(0))
        assert list(sampler) != list(sampler)

    @pytest.mark.parametrize("keep", [1, 2, 3])
    def test_are_each_read_once_in_an_epoch(
        self, directory: Path, monkeypatch: Any, keep: int
    ) -> None:
        read: list[int] = []
        monkeypatch.setattr(
            Groups, "read", lambda self, n, inner=Groups.read: read.append(n) or inner(self, n)
        )
        for columns in (NUMBERS, ["s", "d"]):
            read.clear()
            data = ParquetDataset(directory, columns, cache_dir=False, groups_in_memory=keep)
            batches = list(DataLoader(data, batch_size=7, sampler=data.sampler()))
            assert sorted(read) == list(range(8))
            found = torch.cat([batch["d"] for batch in batches])
            every = [row["d"] for row in ParquetDataset(directory, ["d"])]
            assert sorted(found.tolist()) == sorted(every)

    def test_that_are_read_again_and_again_are_warned_of(self, directory: Path) -> None:
        data = ParquetDataset(directory, ["s"], cache_dir=False)
        with pytest.warns(UserWarning, match=r"times over.*sampler=dataset.sampler\(\)"):
            list(DataLoader(data, batch_size=64, shuffle=True))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            data = ParquetDataset(directory, ["s"], cache_dir=False)
            for _ in range(4):
                list(DataLoader(data, batch_size=64))

    def test_resume_exactly(self, directory: Path) -> None:
        def make() -> Any:
            data = ParquetDataset(directory, ["d", "s"], cache_dir=False, groups_in_memory=2)
            return DataLoader(data, batch_size=90, sampler=data.sampler())

        assert_exact_resume(make)

    def test_of_a_file_that_changes_are_an_error(self, table: pa.Table, tmp_path: Path) -> None:
        path = tmp_path / "t.parquet"
        pq.write_table(table, path, row_group_size=100)
        data = ParquetDataset(path, cache_dir=False)
        data[0]
        os.utime(path, ns=(1, 1))
        with pytest.raises(SourceChangedError, match=r"t.parquet changed while it was read"):
            data[499]

    def test_of_a_file_that_is_cut_are_an_error(self, table: pa.Table, tmp_path: Path) -> None:
        path = tmp_path / "t.parquet"
        pq.write_table(table, path, row_group_size=100)
        data = ParquetDataset(path, cache_dir=False)
        os.truncate(path, 1_000)
        with pytest.raises(SourceChangedError, match=r"t.parquet changed while it was read"):
            data[499]


class TestBadFiles:
    def test_that_are_no_parquet(self, tmp_path: Path, way: Any) -> None:
        for text in (b"", b"PAR1 and then nothing", b"a,b\n1,2\n"):
            (tmp_path / "t.parquet").write_bytes(text)
            with pytest.raises(SourceError, match=r"t.parquet is no Parquet file"):
                ParquetDataset(tmp_path / "t.parquet", **way)

    def test_with_damage_inside(self, table: pa.Table, tmp_path: Path, way: Any) -> None:
        path = tmp_path / "t.parquet"
        pq.write_table(table.select(["d"]), path, use_dictionary=False, compression="zstd")
        content = bytearray(path.read_bytes())
        content[50:400] = bytes(350)
        path.write_bytes(content)
        with pytest.raises(SourceError, match=r"t.parquet, row group 0: cannot be decoded"):
            ParquetDataset(path, **way)[0]

    def test_that_are_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            ParquetDataset(tmp_path / "t.parquet")
        with pytest.raises(SourceError, match=r"has no .parquet files"):
            ParquetDataset(tmp_path)
        with pytest.raises(OptionError, match="no files"):
            ParquetDataset([])

    def test_without_a_column(self, directory: Path, way: Any) -> None:
        with pytest.raises(MissingColumnError, match=r"has no column 'z'. It has: 'f', 'd'"):
            ParquetDataset(directory, ["f", "z"], **way)

    def test_of_different_types(self, tmp_path: Path, way: Any) -> None:
        pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
        pq.write_table(pa.table({"x": [1.5]}), tmp_path / "b.parquet")
        with pytest.raises(SourceError, match=r"b.parquet, column 'x' has type double.*int64"):
            ParquetDataset(tmp_path, **way)
