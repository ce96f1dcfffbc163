"""Files that are no lines of text: known for what they are, whichever class they are given to."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from headrace.data import JSONLines, StreamedJSONLines, StreamedTextLines, TextLines
from headrace.errors import SourceError, SourceWarning

KINDS = [TextLines, JSONLines, StreamedTextLines, StreamedJSONLines]
BODY = b'{"a": 1}\n' * 50


def buffered(write: Any) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def zipped(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, BODY)
    return file.getvalue()


TABLE = pa.table({"a": [1.5, -2.25]})
FILES = {
    "bzip2": (lambda: bz2.compress(BODY), r"compressed \(bzip2\).*Write bunzip2 "),
    "bzip2 of nothing": (lambda: bz2.compress(b""), r"compressed \(bzip2\)"),
    "xz": (lambda: lzma.compress(BODY), r"compressed \(xz\).*Write unxz "),
    "zip": (lambda: zipped("x.csv"), r"is a zip archive.*Unzip it"),
    "excel": (lambda: zipped("[Content_Types].xml"), r"is an Excel file.*Save it as CSV"),
    "parquet": (lambda: buffered(lambda f: pq.write_table(TABLE, f)), r"Parquet.*ParquetDataset"),
    "arrow": (lambda: buffered(lambda f: feather.write_feather(TABLE, f)), r"Arrow.*TableDataset"),
    "npy": (lambda: buffered(lambda f: np.save(f, np.zeros(3))), r"NumPy file.*from_npy"),
    "7z": (lambda: b"7z\xbc\xaf\x27\x1c" + bytes(30), "is a 7z archive"),
    "lz4": (lambda: b"\x04\x22\x4d\x18" + bytes(30), "compressed with lz4"),
    "png": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(30), "PNG image"),
    "utf-16": (lambda: BODY.decode().encode("utf-16"), "iconv -f utf-16 "),
    "utf-16 without a mark": (lambda: BODY.decode().encode("utf-16-le"), "iconv -f utf-16-le"),
    "utf-16, the other way": (lambda: BODY.decode().encode("utf-16-be"), "iconv -f utf-16-be"),
    "utf-32": (lambda: BODY.decode().encode("utf-32"), "iconv -f utf-32 "),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_text_is_named(tmp_path: Path, name: str, kind: Any) -> None:
    make, says = FILES[name]
    path = tmp_path / "x.txt"
    path.write_bytes(make())
    for encoding in ("utf-8", "latin-1"):  # which takes any bytes for text
        with pytest.raises(SourceError, match=says):
            kind(path, encoding)


@pytest.mark.parametrize("text", ["BZh9 is a word", "PK, Rar! and PAR", "\0a\0", "a", "7z", "é"])
def test_text_that_begins_in_a_like_way_is_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.txt").write_text(text)
    for kind in (TextLines, StreamedTextLines):
        assert next(iter(kind(tmp_path / "x.txt"))) == text


@pytest.mark.parametrize("kind", KINDS)
class TestAPathThatIsNoFile:
    def test_names_one_that_may_be_meant(self, tmp_path: Path, kind: Any) -> None:
        (tmp_path / "train.jsonl").write_bytes(BODY)
        with pytest.raises(FileNotFoundError, match=r"no such file. There is '.*/train.jsonl'"):
            kind(tmp_path / "trian.jsonl")
        with pytest.raises(FileNotFoundError, match=r"There is '.*/train.jsonl'"):
            kind(tmp_path / "train.txt")

    def test_says_from_where_it_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match=rf"no such file in {tmp_path}\. Write its"):
            kind("x")
        with pytest.raises(FileNotFoundError, match=r"no directory data \(the working directory"):
            kind("data/x")

    @pytest.mark.parametrize(
        ("path", "says"),
        [
            ("s3://bucket/x.txt", "an address.*fsspec"),
            ("data-*.txt", r"glob.glob\('data-\*.txt'\)"),
            ("~/x.txt", "os.path.expanduser"),
        ],
    )
    def test_or_what_to_write(self, kind: Any, path: str, says: str) -> None:
        with pytest.raises(FileNotFoundError, match=says):
            kind(path)

    def test_a_directory(self, tmp_path: Path, kind: Any) -> None:
        with pytest.raises(IsADirectoryError, match=r"a directory.*sorted\(glob\("):
            kind(tmp_path)


RECORDS = [{"a": 1}, {"a": 2}]


def first(kind: Any, path: Path) -> Any:
    return next(iter(kind(path)))


class TestOneValueInOneLine:
    """A whole data set in one line would be one sample, in silence."""

    @pytest.mark.parametrize("kind", [JSONLines, StreamedJSONLines])
    @pytest.mark.parametrize("compress", [bytes, gzip.compress])
    @pytest.mark.parametrize("end", ["", "\n", "\n \n\n"])
    @pytest.mark.parametrize("value", [RECORDS, [[1, 2], [3, 4]]])
    def test_that_is_an_array_of_records(
        self, tmp_path: Path, kind: Any, compress: Any, end: str, value: Any
    ) -> None:
        if kind is JSONLines and compress is gzip.compress:
            return
        path = tmp_path / "x.jsonl"
        path.write_bytes(compress((json.dumps(value) + end).encode()))
        with pytest.raises(SourceError, match=r"JSON array of records in one line.*jq -c '.\[\]'"):
            first(kind, path)

    def test_of_pandas(self, tmp_path: Path) -> None:
        path = tmp_path / "x.json"
        pd.DataFrame(RECORDS).to_json(path, orient="records")
        with pytest.raises(SourceError, match="array of records"):
            JSONLines(path)
        pd.DataFrame(RECORDS).to_json(path)
        with pytest.warns(SourceWarning, match="one line, which is one sample"):
            assert len(JSONLines(path)) == 1
        pd.DataFrame(RECORDS).to_json(path, orient="records", lines=True)
        assert list(JSONLines(path)) == RECORDS

    @pytest.mark.parametrize("kind", [JSONLines, StreamedJSONLines])
    @pytest.mark.parametrize("value", [{"data": RECORDS}, [1, 2, 3], {"a": {"0": 1}}])
    def test_that_may_be_more_is_doubted(self, tmp_path: Path, kind: Any, value: Any) -> None:
        path = tmp_path / "x.jsonl"
        path.write_text(json.dumps(value))
        with pytest.warns(SourceWarning, match="one line, which is one sample"):
            assert first(kind, path) == value

    @pytest.mark.parametrize("kind", [JSONLines, StreamedJSONLines])
    @pytest.mark.parametrize("value", [RECORDS, {"data": RECORDS}, [1, 2]])
    def test_is_one_sample_where_there_are_more(
        self, tmp_path: Path, kind: Any, value: Any
    ) -> None:
        path = tmp_path / "x.jsonl"
        path.write_text(f"{json.dumps(value)}\n{json.dumps(value)}\n")
        assert list(kind(path)) == [value, value]

    def test_a_sample_with_a_list_is_a_sample(self, tmp_path: Path) -> None:
        (tmp_path / "x.jsonl").write_text('{"a": [1, 2], "b": "c"}\n')
        assert list(JSONLines(tmp_path / "x.jsonl")) == [{"a": [1, 2], "b": "c"}]

    def test_over_several_lines_says_how_to_write_it(self, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_text(json.dumps(RECORDS, indent=1))
        with pytest.raises(SourceError, match=r"line 1: no JSON.*jq -c '\.\[\]'"):
            first(JSONLines, tmp_path / "x.json")


def test_only_the_first_line_is_looked_at_again(tmp_path: Path) -> None:
    """A stream that goes on in the middle has no first line."""
    path = tmp_path / "x.jsonl"
    path.write_text("1\n[[2, 3]]")
    stream = iter(StreamedJSONLines(path))
    assert next(stream) == 1
    state = stream.state_dict()
    again = iter(StreamedJSONLines(path))
    again.load_state_dict(state)
    assert next(again) == [[2, 3]]
