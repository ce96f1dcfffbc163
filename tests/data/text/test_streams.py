"""Lines as streams: decompressed, divided, resumed, and cut short."""

import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard

from headrace import DataLoader, SourceChangedError, SourceError, StateError
from headrace.data import ChainDataset, StreamedJSONLines, StreamedTextLines
from headrace.testing import assert_exact_resume

PLAIN = "".join(json.dumps({"i": i, "s": f"é{i}"}) + "\n" * (1 + (i % 5 == 0)) for i in range(60))
VALUES = list(range(60))


def in_two(compress: Any, data: bytes) -> bytes:
    """Compress in two members or frames, as tools that work in parallel do."""
    return bytes(compress(data[:700])) + bytes(compress(data[700:]))


WAYS = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "gzip in two": lambda data: in_two(gzip.compress, data) + bytes(100),
    "zstd in two": lambda data: in_two(zstandard.compress, data),
}


@pytest.fixture(params=WAYS)
def path(request: Any, tmp_path: Path) -> Path:
    path = tmp_path / "x.jsonl"
    path.write_bytes(WAYS[request.param](PLAIN.encode()))
    return path


def pieces(directory: Path, count: int) -> list[Path]:
    """Return gzip files that hold the 60 values in order."""
    paths = []
    for n in range(count):
        lines = [
            json.dumps({"i": i}) + "\n" for i in VALUES[n * 60 // count : (n + 1) * 60 // count]
        ]
        paths.append(directory / f"{n}.jsonl.gz")
        paths[-1].write_bytes(gzip.compress("".join(lines).encode()))
    return paths


def numbers(loader: Any) -> list[int]:
    return [i for batch in loader for i in batch["i"].tolist()]


class TestLines:
    def test_are_those_of_the_file(self, path: Path) -> None:
        assert [value["i"] for value in StreamedJSONLines(path)] == VALUES
        assert list(StreamedTextLines(path)) == PLAIN.split("\n")[:-1]

    def test_of_a_stream_can_be_had_again_and_twice_at_once(self, path: Path) -> None:
        stream = StreamedTextLines(path)
        both = list(zip(stream, stream, strict=True))
        assert all(a == b for a, b in both)
        assert len(both) == PLAIN.count("\n")
        assert len(list(ChainDataset([stream, stream]))) == 2 * len(both)

    def test_longer_than_any_buffer(self, tmp_path: Path) -> None:
        text = "x" * 3_000_000
        (tmp_path / "a").write_bytes(zstandard.compress(f"{text}\nend".encode()))
        assert list(StreamedTextLines(tmp_path / "a")) == [text, "end"]

    def test_resume_behind_every_batch(self, path: Path) -> None:
        def make() -> Any:
            return DataLoader(StreamedJSONLines([path, path]).map(len), batch_size=9)

        assert_exact_resume(make)

    def test_resume_in_workers(self, tmp_path: Path) -> None:
        paths = pieces(tmp_path, 2)
        assert_exact_resume(
            lambda: DataLoader(StreamedJSONLines(paths), batch_size=20, num_workers=2)
        )


class TestDivided:
    @pytest.mark.parametrize("files", [1, 2, 5])
    @pytest.mark.parametrize("workers", [1, 2])
    @pytest.mark.filterwarnings("ignore:This DataLoader will create")
    def test_every_line_once_among_workers_and_ranks(
        self, tmp_path: Path, files: int, workers: int
    ) -> None:
        paths = pieces(tmp_path, files)
        seen = []
        for rank in range(2):
            loader = DataLoader(
                StreamedJSONLines(paths), batch_size=4, num_workers=workers, shard=(rank, 2)
            )
            seen += numbers(loader)
        assert sorted(seen) == VALUES

    @pytest.mark.parametrize("files", [1, 3, 7])
    def test_parts_of_parts(self, tmp_path: Path, files: int) -> None:
        stream = StreamedJSONLines(pieces(tmp_path, files))
        parts = [stream.shard(a, 3).shard(b, 2) for a in range(3) for b in range(2)]
        assert sorted(v["i"] for part in parts for v in part) == VALUES

    @pytest.mark.parametrize("files", [1, 7])
    def test_a_part_of_a_part_is_within_it(self, tmp_path: Path, files: int) -> None:
        part = StreamedTextLines(pieces(tmp_path, files)).shard(1, 3)
        assert sorted([*part.shard(0, 2), *part.shard(1, 2)]) == sorted(part)

    def test_a_part_resumes_behind_every_line(self, tmp_path: Path) -> None:
        part = StreamedTextLines(pieces(tmp_path, 2)).shard(1, 3)
        whole = list(part)
        stream = iter(part)
        for seen in range(1, len(whole) + 1):
            next(stream)
            again = iter(part)
            again.load_state_dict(stream.state_dict())
            assert list(again) == whole[seen:]

    def test_whole_files_where_there_are_enough(self, tmp_path: Path) -> None:
        stream = StreamedTextLines(pieces(tmp_path, 5))
        assert [len(stream.shard(n, 2).paths) for n in range(2)] == [3, 2]
        assert len(stream.shard(6, 7).paths) == 5

    @pytest.mark.parametrize("part", [(2, 2), (-1, 2), (0, 0)])
    def test_into_parts_that_cannot_be(self, tmp_path: Path, part: Any) -> None:
        with pytest.raises(ValueError, match="index < count"):
            StreamedTextLines(pieces(tmp_path, 1)).shard(*part)


class TestBadInput:
    @pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
    @pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
    def test_cut_short(self, tmp_path: Path, compress: Any, part: float) -> None:
        data = bytes(compress(os.urandom(5_000).hex().encode() + b"\nend\n"))
        path = tmp_path / "cut"
        path.write_bytes(data[: int(len(data) * part)])
        stream = iter(StreamedTextLines(path))
        with pytest.raises(SourceError, match="cut was cut short"):
            list(stream)
        assert list(stream) == []

    @pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
    def test_damaged(self, tmp_path: Path, compress: Any) -> None:
        data = bytearray(compress(b"a line\n" * 2_000))
        path = tmp_path / "bad"
        for place in range(4, len(data), 3):
            bad = bytearray(data)
            bad[place] ^= 0xFF
            path.write_bytes(bad)
            try:
                lines = list(StreamedTextLines(path))
            except SourceError as error:
                assert "bad" in str(error)  # noqa: PT017
            else:  # a time stamp, say
                assert lines == ["a line"] * 2_000 or compress is zstandard.compress

    @pytest.mark.parametrize(
        "data",
        [b"", gzip.compress(b""), zstandard.compress(b"")],
        ids=["nothing", "gzip", "zstd"],  # gzip's holds the time
    )
    def test_empty(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(SourceError, match=r"empty file|holds no lines"):
            list(StreamedTextLines(tmp_path / "x"))

    def test_a_bad_line_names_file_and_line_and_costs_one_sample(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(gzip.compress(b"1\n\n{\n\xff\n5\n"))
        stream = iter(StreamedJSONLines(tmp_path / "x"))
        assert next(stream) == 1
        with pytest.raises(SourceError, match=r"x, line 3: no JSON"):
            next(stream)
        with pytest.raises(SourceError, match=r"x, line 4: byte 0xff"):
            next(stream)
        assert list(stream) == [5]

    def test_a_file_that_changes_while_it_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "x"
        path.write_bytes(b"1\n2\n")
        stream = iter(StreamedTextLines(path))
        next(stream)
        path.write_bytes(b"1\n2\n3\n")
        with pytest.raises(SourceChangedError, match="x has changed"):
            list(stream)

    def test_without_the_library(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "backports.zstd", None)
        (tmp_path / "x").write_bytes(zstandard.compress(b"a\n"))
        with pytest.raises(ImportError, match=r'pip install "headrace\[text\]"'):
            list(StreamedTextLines(tmp_path / "x"))

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            StreamedTextLines(tmp_path / "x")


class TestStates:
    def state(self, path: Path, lines: int = 2) -> Any:
        stream = iter(StreamedTextLines(path))
        for _ in range(lines):
            next(stream)
        return stream.state_dict()

    def test_are_small_json(self, path: Path) -> None:
        state = self.state(path)
        assert json.loads(json.dumps(state)) == state

    def test_of_another_file_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "x"
        path.write_bytes(b"1\n2\n3\n")
        state = self.state(path)
        path.write_bytes(b"1\n2\n3\n4\n")
        stream = iter(StreamedTextLines(path))
        stream.load_state_dict(state)
        with pytest.raises(SourceChangedError, match="6 bytes when the state was taken"):
            next(stream)

    @pytest.mark.parametrize(
        "change",
        [
            {"file": 2},
            {"file": -1},
            {"offset": "1"},
            {"line": None},
            {"line": True},
            {"size_bytes": 1.5},
        ],
    )
    def test_that_do_not_fit_are_refused(self, path: Path, change: dict[str, Any]) -> None:
        state = {**self.state(path), **change}
        with pytest.raises(StateError):
            iter(StreamedTextLines(path)).load_state_dict(state)
        with pytest.raises(StateError):
            iter(StreamedTextLines(path)).load_state_dict([])  # type: ignore[arg-type]

    def test_behind_the_end_give_nothing(self, path: Path) -> None:
        stream = iter(StreamedTextLines(path))
        list(stream)
        again = iter(StreamedTextLines(path))
        again.load_state_dict(stream.state_dict())
        assert list(again) == []

    def test_at_an_offset_that_a_shorter_file_does_not_have(self, tmp_path: Path) -> None:
        path = tmp_path / "x"
        path.write_bytes(gzip.compress(b"1\n2\n"))
        stream = iter(StreamedTextLines(path))
        stream.load_state_dict({**self.state(path), "offset": 100})
        with pytest.raises(SourceError, match="ends before"):
            next(stream)


def test_samples_collate_as_usual(path: Path) -> None:
    batch = next(iter(DataLoader(StreamedJSONLines(path), batch_size=3)))
    assert torch.equal(batch["i"], torch.tensor([0, 1, 2]))
    assert batch["s"] == ["é0", "é1", "é2"]
