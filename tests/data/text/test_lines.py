"""TextLines and JSONLines: lines by their number, and what is said of bad ones."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from data.forked import exit_code_of
from headrace import DataLoader, SourceChangedError, SourceError
from headrace.data import ConcatDataset, JSONLines, StreamedTextLines, TextLines, random_split
from headrace.data.text import lines as lines_module
from headrace.testing import assert_exact_resume


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Return 100 JSON lines with blank ones among them."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(100):
        text = "".join(rng.choice(list('abc éß\n"漢'), 8))
        lines.append(json.dumps({"id": i, "text": text, "x": i / 7}, ensure_ascii=i % 2 == 0))
        lines += [""] * int(rng.integers(0, 3) == 0)
    return write(tmp_path / "train.jsonl", "\n".join(lines).encode())


class TestTextLines:
    @pytest.mark.parametrize(
        ("data", "lines"),
        [
            (b"one\ntwo\n", ["one", "two"]),
            (b"one\ntwo", ["one", "two"]),
            (b"one\r\ntwo\r\n", ["one", "two"]),
            (b"\n\none\n", ["", "", "one"]),
            (b"\n", [""]),
            (b"a\rb\x0bc\xc2\x85d\xe2\x80\xa8e\r\r\n", ["a\rb\x0bc\x85d\u2028e\r"]),
            (b"\xef\xbb\xbfone\n\xef\xbb\xbftwo", ["one", "\ufefftwo"]),
            ("é漢\n".encode() * 2, ["é漢", "é漢"]),
            (b"\0\n\0", ["\0", "\0"]),
        ],
    )
    def test_are_cut_by_the_stated_rules(
        self, tmp_path: Path, data: bytes, lines: list[str]
    ) -> None:
        text = TextLines(write(tmp_path / "x.txt", data))
        assert [text[i] for i in range(len(text))] == lines

    def test_of_several_files_follow_each_other(self, tmp_path: Path) -> None:
        paths = [write(tmp_path / f"{n}.txt", b"a\nb\n" * n + b"end") for n in range(1, 4)]
        text = TextLines(paths)
        wanted = [line for path in paths for line in path.read_text().split("\n")]
        assert [text[i] for i in range(len(text))] == wanted
        assert text.__getitems__([14, 0, -1, 3]) == [wanted[14], wanted[0], wanted[-1], wanted[3]]

    def test_of_more_files_than_are_held_open(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lines_module, "_OPEN_FILES", 3)
        text = TextLines([write(tmp_path / f"{n}", b"%d" % n) for n in range(10)])
        assert len(text._open) <= 3
        assert text.__getitems__(list(range(10))) == [str(n) for n in range(10)]
        assert len(text._open) <= 3

    def test_in_other_encodings(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.txt", "é\nß".encode("latin-1"))
        assert TextLines(path, "latin-1")[1] == "ß"
        assert TextLines(path, errors="replace")[0] == "\ufffd"
        sig = write(tmp_path / "y.txt", "é\nß".encode("utf-8-sig"))
        assert TextLines(sig, "utf-8-sig")[0] == "é"

    @pytest.mark.parametrize("index", [2, -3])
    def test_out_of_range_say_how_many_there_are(self, tmp_path: Path, index: int) -> None:
        text = TextLines(write(tmp_path / "x.txt", b"a\nb"))
        with pytest.raises(IndexError, match=r"2 samples.*0 to 1"):
            text[index]

    def test_compose_with_torchs_names(self, tmp_path: Path) -> None:
        text = TextLines(write(tmp_path / "x.txt", b"a b\n\nc"))
        kept = text.filter(str.strip).map(str.split)
        assert [kept[i] for i in range(len(kept))] == [["a", "b"], ["c"]]
        assert len(ConcatDataset([text, text])) == 6
        assert sum(map(len, random_split(text, [1, 2]))) == 3


class TestJSONLines:
    def test_are_what_pandas_and_datasets_read(self, records: Path, tmp_path: Path) -> None:
        data = JSONLines(records)
        mine = [data[i] for i in range(len(data))]
        assert mine == pd.read_json(records, lines=True, precise_float=True).to_dict("records")
        theirs = datasets.load_dataset(
            "json", data_files=str(records), split="train", cache_dir=str(tmp_path / "hf")
        )
        assert mine == list(theirs)

    @pytest.mark.parametrize(
        ("data", "values"),
        [
            (b'{"a": 1}\n[2]\n"x"\nnull\n1e3', [{"a": 1}, [2], "x", None, 1000.0]),
            (b"\n \t\r\n 1 \r\n\n\n 2\n\n", [1, 2]),
            (b"\xef\xbb\xbf1\n2", [1, 2]),
            (b"NaN\n-Infinity", [float("nan"), float("-inf")]),
        ],
    )
    def test_by_the_stated_rules(self, tmp_path: Path, data: bytes, values: list[Any]) -> None:
        lines = JSONLines(write(tmp_path / "x.jsonl", data))
        assert repr([lines[i] for i in range(len(lines))]) == repr(values)

    def test_make_batches_in_workers_that_are_forked_or_spawned(self, records: Path) -> None:
        data = JSONLines(records)
        assert len(pickle.dumps(data)) < 1_000
        alone = list(DataLoader(data, batch_size=32, shuffle=True, seed=0))
        for context in ("fork", "spawn"):
            loader = DataLoader(
                data,
                batch_size=32,
                shuffle=True,
                seed=0,
                num_workers=1,
                multiprocessing_context=context,
            )
            for a, b in zip(alone, loader, strict=True):
                assert torch.equal(a["id"], b["id"])
                assert a["text"] == b["text"]

    def test_resume(self, records: Path) -> None:
        assert_exact_resume(
            lambda: DataLoader(JSONLines(records), batch_size=30, shuffle=True, seed=0)
        )


BAD = b'{"a": 1}\n\n{"a": 2,}\n\xff\n{"a"\n' + b"[" * 100_000


class TestBadInput:
    @pytest.mark.parametrize(
        ("index", "says"),
        [
            (1, r"bad\.jsonl, line 3: no JSON \(.*column [89]\): '\{\"a\": 2,\}'"),
            (2, r"bad\.jsonl, line 4: byte 0xff at position 0 is not utf-8.*encoding='latin-1'"),
            (3, r"bad\.jsonl, line 5: no JSON"),
            (4, r"bad\.jsonl, line 6: JSON that cannot be read"),
        ],
    )
    def test_a_bad_line_names_file_and_line(self, tmp_path: Path, index: int, says: str) -> None:
        data = JSONLines(write(tmp_path / "bad.jsonl", BAD))
        assert data[0] == {"a": 1}
        with pytest.raises(SourceError, match=says):
            data[index]
        with pytest.raises(ValueError, match=says):
            list(DataLoader(data.map(str), batch_size=1, sampler=[index], num_workers=1))

    def test_bad_text_names_file_and_line(self, tmp_path: Path) -> None:
        text = TextLines([write(tmp_path / "a", b"x\ny\n"), write(tmp_path / "b", b"ok\nno\xff\n")])
        with pytest.raises(SourceError, match=r"b, line 2: byte 0xff at position 2"):
            text[3]

    @pytest.mark.parametrize(
        ("name", "data", "says"),
        [
            ("x.txt", b"", "x.txt is an empty file"),
            ("x.gz", b"\x1f\x8b\x08\x00", r"compressed \(gzip\).*StreamedJSONLines\(path\)"),
            ("x", b"\x28\xb5\x2f\xfd", r"compressed \(zstd\)"),
            ("x.txt", b"\n \n", "nothing but blank lines"),
        ],
    )
    def test_a_file_without_lines(self, tmp_path: Path, name: str, data: bytes, says: str) -> None:
        with pytest.raises(SourceError, match=says):
            JSONLines(write(tmp_path / name, data))

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-32-le", "base64", "klingon", "cp037"])
    def test_an_encoding_that_will_not_do(self, tmp_path: Path, encoding: str) -> None:
        with pytest.raises(SourceError, match="encoding"):
            TextLines(write(tmp_path / "x", b"a"), encoding)

    def test_an_errors_that_is_none(self, tmp_path: Path) -> None:
        for kind in (TextLines, StreamedTextLines):
            with pytest.raises(SourceError, match="Write errors='strict'"):
                kind(write(tmp_path / "x", b"a"), errors="skip")

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            TextLines(tmp_path / "x")
        with pytest.raises(IsADirectoryError):
            TextLines(tmp_path)
        with pytest.raises(SourceError, match="no files"):
            TextLines([])


class TestAFileThatChanges:
    @pytest.mark.parametrize("data", [b"a\nb", b"a\nb\nc\nd\n", b""])
    def test_is_an_error(self, tmp_path: Path, data: bytes) -> None:
        path = write(tmp_path / "x.txt", b"a\nb\nc\n")
        text = TextLines(path)
        assert text[2] == "c"
        path.write_bytes(data)
        with pytest.raises(SourceChangedError, match=r"x\.txt has changed.*6 bytes"):
            text[0]

    def test_at_another_time_and_of_the_same_size(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.txt", b"a\nb\nc\n")
        text = TextLines(path)
        path.write_bytes(b"\na\nbc\n")
        os.utime(path, ns=(0, 12345))
        with pytest.raises(SourceChangedError, match=r"x\.txt has changed"):
            text[0]

    def test_or_is_gone(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.txt", b"a\nb\nc\n")
        text = TextLines(path)
        path.unlink()
        with pytest.raises(SourceChangedError, match="cannot be found"):
            text[0]

    def test_before_a_worker_opens_it(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.txt", b"a\nb\nc\n")
        pickled = pickle.dumps(TextLines(path))
        path.write_bytes(b"a\nbb\nc\n")
        with pytest.raises(SourceChangedError):
            pickle.loads(pickled)[0]

    def test_cut_short_never_ends_the_interpreter(self, tmp_path: Path) -> None:
        """To read behind the end of a mapped file is a bus error."""
        path = write(tmp_path / "x.txt", b"line\n" * 100_000)

        def read() -> None:
            text = TextLines(path)
            os.truncate(path, 4096)
            for index in (0, 99_999):
                with pytest.raises(SourceChangedError):
                    text[index]

        assert exit_code_of(read) == 0
