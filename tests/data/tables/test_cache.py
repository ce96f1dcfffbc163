"""Converted tables on disk: made once, by one process, whole or not at all."""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.forked import FORK, exit_code_of, limit_files
from headrace.data import CSVDataset, ParquetDataset
from headrace.data.tables import cache
from headrace.errors import SourceChangedError, TruncatedFileError


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    rows = "".join(f"{i},{i / 3},{'xyz'[i % 3]}\n" for i in range(5_000))
    path.write_text("i,x,k\n" + rows, encoding="ascii")
    return path


def entries(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class TestAnEntry:
    def test_is_made_once_and_mapped(self, table: Path, tmp_path: Path, monkeypatch: Any) -> None:
        first = CSVDataset(table, target="k", cache_dir=tmp_path / "c")
        monkeypatch.setattr(cache, "_build", None)  # a second conversion would be a TypeError
        second = CSVDataset(table, target="k", cache_dir=tmp_path / "c")
        assert isinstance(second.features, np.memmap)
        np.testing.assert_array_equal(first.features, second.features)
        assert second.classes == ("x", "y", "z")
        assert len(entries(tmp_path / "c")) == 1

    def test_is_rebuilt_when_the_source_changes(self, table: Path, tmp_path: Path) -> None:
        old = CSVDataset(table, cache_dir=tmp_path / "c")
        kept = np.array(old.features)
        with table.open("a", encoding="ascii") as file:
            file.write("-1,-1,q\n")
        new = CSVDataset(table, cache_dir=tmp_path / "c")
        assert len(new) == len(old) + 1
        assert new.categories["k"] == ("q", "x", "y", "z")
        np.testing.assert_array_equal(old.features, kept)  # still mapped, still itself
        assert len(entries(tmp_path / "c")) == 1

    def test_is_rebuilt_when_only_the_time_of_change_differs(
        self, table: Path, tmp_path: Path
    ) -> None:
        CSVDataset(table, cache_dir=tmp_path / "c")
        text = table.read_text(encoding="ascii").replace("\n0,", "\n9,", 1)
        table.write_text(text, encoding="ascii")
        os.utime(table, ns=(1, 1))
        assert CSVDataset(table, cache_dir=tmp_path / "c").features[0, 0] == 9

    def test_is_another_one_for_other_options(self, table: Path, tmp_path: Path) -> None:
        CSVDataset(table, cache_dir=tmp_path / "c")
        CSVDataset(table, cache_dir=tmp_path / "c", features=["x"])
        assert len(entries(tmp_path / "c")) == 2

    @pytest.mark.parametrize("damage", ["cut", "grown", "no meta", "half a meta", "version"])
    def test_that_is_not_whole_is_made_again(
        self, table: Path, tmp_path: Path, damage: str
    ) -> None:
        expected = np.array(CSVDataset(table, cache_dir=tmp_path / "c").features)
        entry = tmp_path / "c" / entries(tmp_path / "c")[0]
        meta = entry / "meta.json"
        if damage == "cut":
            os.truncate(entry / "0.bin", 100)
        elif damage == "grown":
            with (entry / "0.bin").open("ab") as file:
                file.write(bytes(8))
        elif damage == "no meta":
            meta.unlink()
        elif damage == "half a meta":
            os.truncate(meta, 50)
        else:
            content = json.loads(meta.read_text(encoding="utf-8"))
            content["key"]["version"] = -1
            meta.write_text(json.dumps(content), encoding="utf-8")
        os.utime(entry, (1, 1))
        again = CSVDataset(table, cache_dir=tmp_path / "c")
        assert entry.stat().st_mtime != 1  # another directory
        np.testing.assert_array_equal(again.features, expected)

    def test_is_not_kept_when_the_source_changes_meanwhile(
        self, table: Path, tmp_path: Path, monkeypatch: Any
    ) -> None:
        finish = cache.check_unchanged

        def changed(key: Any) -> None:
            os.utime(table, ns=(1, 1))
            finish(key)

        monkeypatch.setattr(cache, "check_unchanged", changed)
        with pytest.raises(SourceChangedError, match=r"table.csv changed while it was read"):
            CSVDataset(table, cache_dir=tmp_path / "c")
        assert entries(tmp_path / "c") == []

    def test_of_a_small_file_is_not_made_unless_asked_for(
        self, table: Path, tmp_path: Path, monkeypatch: Any
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
        CSVDataset(table)
        assert not (tmp_path / "home").exists()

    def test_of_a_large_file_goes_to_the_users_cache(
        self, table: Path, tmp_path: Path, monkeypatch: Any
    ) -> None:
        from headrace.data.tables import cache as module

        monkeypatch.setattr(module, "SMALL_BYTES", 1_000)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
        CSVDataset(table)
        assert len(entries(tmp_path / "home" / "headrace" / "tables")) == 1
        CSVDataset(table, features=["x"], cache_dir=False)
        assert len(entries(tmp_path / "home" / "headrace" / "tables")) == 1

    def test_needs_no_polars_at_the_second_start(
        self, table: Path, tmp_path: Path, monkeypatch: Any
    ) -> None:
        CSVDataset(table, cache_dir=tmp_path / "c")
        monkeypatch.setitem(sys.modules, "polars", None)  # an import of it fails
        assert len(CSVDataset(table, cache_dir=tmp_path / "c")) == 5_000

    @pytest.mark.parametrize("kind", ["csv", "parquet"])
    def test_cut_short_while_it_is_mapped_is_an_error(
        self, table: Path, tmp_path: Path, kind: str
    ) -> None:
        """To read behind the end of a mapped file is a bus error."""
        if kind == "csv":
            data: Any = CSVDataset(table, target="k", cache_dir=tmp_path / "c")
        else:
            pq.write_table(pa.table({"x": range(5_000), "t": ["long"] * 5_000}), tmp_path / "p")
            data = ParquetDataset(tmp_path / "p", cache_dir=tmp_path / "c")

        def read() -> None:
            for path in tmp_path.glob("c/*/*.bin"):
                os.truncate(path, 100)
            with pytest.raises(TruncatedFileError, match="make the dataset again"):
                data[4_999]

        assert exit_code_of(read) == 0


def convert(sink: cache.Sink, halt: Callable[[], Any] = lambda: None) -> dict[str, Any]:
    """A conversion without polars, whose threads do not survive a fork."""
    sink.append("x", np.arange(10_000))
    halt()
    sink.append("x", np.arange(10_000, 20_000))
    return {"by": os.getpid()}


class TestProcesses:
    @pytest.fixture
    def entry(self, table: Path, tmp_path: Path) -> tuple[Path, cache.Key]:
        key = cache.describe([str(table)], {})
        return cache.entry_of(tmp_path / "c", key), key

    def test_two_at_once_convert_once(self, entry: Any) -> None:
        first = Halted(entry)
        told = FORK.SimpleQueue()
        second = FORK.Process(target=lambda: told.put(cache.converted(*entry, convert)[1]))
        second.start()
        first.go_on()
        second.join(100)
        assert (first.process.exitcode, second.exitcode) == (0, 0)
        assert told.get() == {"by": first.process.pid}  # it took what the first one made
        assert cache.converted(*entry, convert)[0]["x"].tolist() == list(range(20_000))

    def test_one_killed_in_the_middle_leaves_nothing_in_the_way(
        self, entry: Any, tmp_path: Path
    ) -> None:
        killed = Halted(entry)
        killed.process.kill()
        killed.process.join(100)
        assert [Path(name).suffix for name in entries(tmp_path / "c")] == [".lock", ".tmp"]
        arrays, extra = cache.converted(*entry, convert)
        assert arrays["x"].tolist() == list(range(20_000))
        assert extra == {"by": os.getpid()}
        assert [Path(name).suffix for name in entries(tmp_path / "c")] == [""]

    def test_a_full_disk_is_an_error_that_leaves_nothing(self, entry: Any, tmp_path: Path) -> None:
        def on_a_full_disk() -> None:
            limit_files(20_000)
            with pytest.raises(OSError, match=r"nothing is left behind.*write cache_dir="):
                cache.converted(*entry, convert)

        assert exit_code_of(on_a_full_disk) == 0
        assert entries(tmp_path / "c") == []

    def test_a_directory_that_cannot_be_made_is_an_error(self, table: Path, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OSError, match="write cache_dir="):
            CSVDataset(table, cache_dir=tmp_path / "file" / "c")


class Halted:
    """A process that stops in the middle of a conversion; it is there once this is made."""

    def __init__(self, entry: Any) -> None:
        self._middle, self._told = FORK.SimpleQueue(), FORK.SimpleQueue()
        self.process = FORK.Process(target=self._run, args=(entry,))
        self.process.start()
        self._middle.get()

    def _run(self, entry: Any) -> None:
        def halt() -> None:
            self._middle.put(None)
            self._told.get()

        cache.converted(*entry, partial(convert, halt=halt))

    def go_on(self) -> None:
        self._told.put(None)
        self.process.join(100)


def test_parquet_is_kept_in_the_same_way(tmp_path: Path, monkeypatch: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"s": ["a", "", "ccc"], "i": [1, 2, 3]}), path, row_group_size=2)
    first = [*ParquetDataset(path, cache_dir=tmp_path / "c")]
    monkeypatch.setattr(cache, "_build", None)
    assert [*ParquetDataset(path, cache_dir=tmp_path / "c")] == first
    assert first == [{"s": "a", "i": 1}, {"s": "", "i": 2}, {"s": "ccc", "i": 3}]
