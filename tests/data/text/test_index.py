"""Where lines begin: the same as Python's own splitting, wherever the chunks are cut."""

import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.forked import FORK, exit_code_of, limit_files
from headrace.data import TextLines
from headrace.data.text import index
from headrace.data.text.index import line_index, line_starts
from headrace.errors import SourceChangedError, TruncatedFileError

# Newlines and spaces as likely as everything else together.
LINES = st.lists(st.sampled_from([b"\n", b"\r", b" ", b"\t", b"a", b"\x00", b"\xff", b"\x0b\x85"]))


def chunked(data: bytes, sizes: list[int]) -> Any:
    place = 0
    while place < len(data):
        size = sizes[place % len(sizes)]
        yield data[place : place + size]
        place += size


def starts_of(data: bytes, sizes: list[int], skip_blank: bool) -> list[int]:
    parts = list(line_starts(chunked(data, sizes), skip_blank=skip_blank))
    return [start for part in parts for start in part.tolist()]


def splits(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    return lines if lines[-1] else lines[:-1]


@settings(max_examples=150, deadline=None)
@given(LINES, st.lists(st.integers(1, 9), min_size=1, max_size=4))
@example([], [1])
@example([b"\n"], [1])
@example([b"a", b"\n", b"\n", b"a"], [2])
def test_lines_are_those_of_split(parts: list[bytes], sizes: list[int]) -> None:
    data = b"".join(parts)
    starts = [*starts_of(data, sizes, skip_blank=False), len(data)]
    assert [data[a:b].removesuffix(b"\n") for a, b in pairwise(starts)] == splits(data)


@settings(max_examples=150, deadline=None)
@given(LINES, st.lists(st.integers(1, 9), min_size=1, max_size=4))
@example([b" ", b"\n", b"a"], [1])
@example([b"\n", b" ", b"\r", b"\n", b" ", b"a"], [3])
def test_blank_lines_belong_to_the_line_before(parts: list[bytes], sizes: list[int]) -> None:
    data = b"".join(parts)
    starts = [*starts_of(data, sizes, skip_blank=True), len(data)]
    solid = [line for line in splits(data) if line.strip(b" \t\r")]
    assert [re.split(b"\n", data[a:b])[0] for a, b in pairwise(starts)] == solid


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file whose index is kept, although it is small."""
    monkeypatch.setattr(index, "CACHED_FROM_BYTES", 1)
    path = tmp_path / "lines.txt"
    path.write_bytes(b"one\ntwo\n\nfour")
    return path


def indexed(path: Path, cache: Path, skip_blank: bool = False) -> list[int]:
    starts, _ = line_index(path, skip_blank=skip_blank, cache_dir=cache)
    return starts.tolist()


def kept(cache: Path) -> list[Path]:
    return sorted(cache.iterdir())


class TestCache:
    def test_is_used_the_second_time(
        self, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert indexed(lines, tmp_path / "c") == [0, 4, 8, 9, 13]
        monkeypatch.setattr(index, "line_starts", None)  # no second search
        assert indexed(lines, tmp_path / "c") == [0, 4, 8, 9, 13]
        assert [p.stat().st_size for p in kept(tmp_path / "c")] == [8 * (4 + 5)]

    def test_keeps_lines_and_records_apart(self, lines: Path, tmp_path: Path) -> None:
        for _ in range(2):
            assert indexed(lines, tmp_path / "c") == [0, 4, 8, 9, 13]
            assert indexed(lines, tmp_path / "c", skip_blank=True) == [0, 4, 9, 13]

    def test_is_built_again_when_the_file_changed(self, lines: Path, tmp_path: Path) -> None:
        indexed(lines, tmp_path / "c")
        lines.write_bytes(b"one two\nthree")
        assert indexed(lines, tmp_path / "c") == [0, 8, 13]
        lines.write_bytes(b"three\none two")  # of the same size, at another time
        os.utime(lines, ns=(0, 12345))
        assert indexed(lines, tmp_path / "c") == [0, 6, 13]
        assert len(kept(tmp_path / "c")) == 1

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: b"",
            lambda data: data[:7],
            lambda data: data[:-8],
            lambda data: b"x" + data[1:],
            lambda data: bytes(len(data)),
            lambda data: b"\xff" * len(data),
        ],
    )
    def test_that_is_half_written_is_built_again(
        self, lines: Path, tmp_path: Path, damage: Any
    ) -> None:
        indexed(lines, tmp_path / "c")
        [path] = kept(tmp_path / "c")
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        assert indexed(lines, tmp_path / "c") == [0, 4, 8, 9, 13]
        assert path.read_bytes() == whole

    def test_where_it_cannot_be_kept_it_is_in_memory(self, lines: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.warns(RuntimeWarning, match=r"could not be kept in .*cache_dir="):
            assert indexed(lines, tmp_path / "file" / "c") == [0, 4, 8, 9, 13]

    def test_on_a_disk_that_is_full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "lines.txt"
        path.write_bytes(b"line\n" * 10_000)

        def index_it() -> None:
            limit_files(20_000)
            with pytest.warns(RuntimeWarning, match="could not be kept.*File too large"):
                assert indexed(path, tmp_path / "c") == list(range(0, 50_001, 5))

        monkeypatch.setattr(index, "CACHED_FROM_BYTES", 1)
        assert exit_code_of(index_it) == 0
        assert kept(tmp_path / "c") == []

    def test_cut_short_while_it_is_mapped_is_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """To read behind the end of a mapped file is a bus error."""
        path = tmp_path / "lines.txt"
        path.write_bytes(b"line\n" * 10_000)
        monkeypatch.setattr(index, "CACHED_FROM_BYTES", 1)
        data = TextLines(path, cache_dir=tmp_path / "c")

        def read() -> None:
            os.truncate(*kept(tmp_path / "c"), 100)
            with pytest.raises(TruncatedFileError):
                data[9_999]

        assert exit_code_of(read) == 0

    def test_several_processes_at_once(self, lines: Path, tmp_path: Path) -> None:
        lines.write_bytes(b"line\n" * 50_000)
        with FORK.Pool(4) as pool:
            found = pool.starmap(indexed, [(lines, tmp_path / "c")] * 8)
        assert all(starts == list(range(0, 250_001, 5)) for starts in found)
        assert len(kept(tmp_path / "c")) == 1

    def test_takes_8_bytes_a_line_and_is_mapped(self, lines: Path, tmp_path: Path) -> None:
        starts, _ = line_index(lines, skip_blank=False, cache_dir=tmp_path / "c")
        assert starts.itemsize == 8
        assert isinstance(starts.base, np.memmap)

    def test_a_small_file_leaves_nothing_behind(self, tmp_path: Path) -> None:
        (tmp_path / "small").write_bytes(b"a\nb\n")
        assert indexed(tmp_path / "small", tmp_path / "c") == [0, 2, 4]
        assert not (tmp_path / "c").exists()

    def test_a_file_that_changes_while_it_is_indexed(
        self, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        search = line_starts

        def growing(chunks: Any, skip_blank: bool) -> Any:
            yield from search(chunks, skip_blank=skip_blank)
            with lines.open("ab") as file:
                file.write(b"more\n")

        monkeypatch.setattr(index, "line_starts", growing)
        with pytest.raises(SourceChangedError, match=r"lines.txt has changed"):
            indexed(lines, tmp_path / "c")
        assert kept(tmp_path / "c") == []
