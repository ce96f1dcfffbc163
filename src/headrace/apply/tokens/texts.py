"""The texts of files, in groups that a worker takes at once, from any place on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from headrace.data.files import Stamp
from headrace.data.text.compressed import open_at
from headrace.data.text.reading import BadLineError, compression_of, to_text
from headrace.errors import SourceError
from headrace.extras import import_extra

_GROUP_BYTES = 1 << 20
_GROUP_TEXTS = 1000
_COMPRESSED = (".gz", ".zst")


class Place(NamedTuple):
    """Where in the files a group ends: what has been taken of the file, and how many texts."""

    file: int
    offset: int  # bytes of the file's content, or rows of Parquet
    text: int  # lines or rows


@dataclass(frozen=True)
class Group:
    """Texts in a row of one file, as they lie there."""

    path: str
    field: str | None  # of JSON lines
    first: int  # the line or row of the first, from 1
    texts: list[Any]  # bytes of lines with their numbers, or strings
    behind: Place

    def __repr__(self) -> str:
        return f"{self.path} from text {self.first} on"

    def read(self) -> Iterator[str]:
        """Yield the texts.

        Raises:
            SourceError: one is no text, or no JSON with the field; it names file and line.
        """
        for number, raw in enumerate(self.texts, self.first):
            if isinstance(raw, str):
                yield raw
            elif raw is None:
                raise SourceError(f"{self.path}, row {number:,}: there is no text. Leave it out.")
            elif raw.strip():
                yield self._text(raw, number)

    def _text(self, raw: bytes, number: int) -> str:
        where = f"{self.path}, line {number:,}"
        try:
            line = to_text(raw, "utf-8", "strict", first=number == 1)
            value = line if self.field is None else json.loads(line)
        except BadLineError as error:
            raise SourceError(
                f"{where}: {str(error).partition(' Give ')[0]} Convert the file to UTF-8."
            ) from None
        except ValueError as error:
            raise SourceError(f"{where} is no JSON: {error}") from error
        if self.field is None:
            return line
        if not isinstance(value, dict) or not isinstance(value.get(self.field), str):
            found = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise SourceError(
                f"{where}: there is no text {self.field!r} in it, found {found}. Name the field of "
                f"the texts: field='text' (--field text)."
            )
        text: str = value[self.field]
        return text


class Texts:
    """The texts of several files, one behind the other.

    Args:
        paths: text files, a text a line; JSON lines (``.jsonl``, ``.ndjson``), a text each in a
            field; both also ``.gz`` and ``.zst``; Parquet, a column.
        field: the field or column.

    Raises:
        SourceError: there are none, or one is empty or of no known kind.
        OSError: one cannot be opened.
    """

    def __init__(self, paths: Sequence[str], field: str) -> None:
        if not paths:
            raise SourceError("there are no files of texts. Name one at least.")
        self.paths = list(paths)
        self.field = field
        self._kinds = [_kind_of(path) for path in self.paths]
        self.stamps = [Stamp.of(path) for path in self.paths]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, as they lie on the disk."""
        return sum(stamp.size_bytes for stamp in self.stamps)

    def bytes_before(self, place: Place) -> int:
        """Return how many bytes of files lie before a place; a guess where they are compressed."""
        whole = sum(stamp.size_bytes for stamp in self.stamps[: place.file])
        size = self.stamps[place.file].size_bytes
        return whole + (min(place.offset, size) if self._kinds[place.file] != "parquet" else 0)

    def groups(self, place: Place) -> Iterator[Group]:
        """Yield the texts behind a place."""
        for number in range(place.file, len(self.paths)):
            start = place if number == place.file else Place(number, 0, 0)
            read = _rows if self._kinds[number] == "parquet" else _lines
            self.stamps[number].check(self.paths[number])
            yield from read(self.paths[number], self._field_of(number), start)
            self.stamps[number].check(self.paths[number])

    def _field_of(self, number: int) -> str | None:
        return None if self._kinds[number] == "text" else self.field


def _kind_of(path: str) -> str:
    stem, suffix = os.path.splitext(path)
    if suffix.lower() in _COMPRESSED:
        suffix = os.path.splitext(stem)[1]
    if suffix.lower() in (".parquet", ".pq"):
        return "parquet"
    if suffix.lower() in (".csv", ".tsv"):
        raise SourceError(
            f"{path} is a table, whose lines are no texts. Write its column to a Parquet file: "
            f"pandas.read_csv(path)[['text']].to_parquet('texts.parquet')."
        )
    return "json" if suffix.lower() in (".jsonl", ".ndjson", ".json") else "text"


def _lines(path: str, field: str | None, start: Place) -> Iterator[Group]:
    with open_at(path, compression_of(path), start.offset) as file:
        offset, line = start.offset, start.text
        while some := file.readlines(_GROUP_BYTES):
            for first in range(0, len(some), _GROUP_TEXTS):
                lines = some[first : first + _GROUP_TEXTS]
                offset += sum(map(len, lines))
                behind = Place(start.file, offset, line + len(lines))
                yield Group(path, field, line + 1, lines, behind)
                line += len(lines)


def _rows(path: str, field: str | None, start: Place) -> Iterator[Group]:
    parquet = import_extra("pyarrow.parquet", "tables")
    invalid = import_extra("pyarrow", "tables").ArrowInvalid
    try:
        with parquet.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                raise SourceError(
                    f"{path} has no column {field!r}; it has {', '.join(file.schema_arrow.names)}. "
                    f"Name that of the texts: field= (--field)."
                )
            sizes = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
            whole = 0  # row groups before the place
            while whole < len(sizes) and sum(sizes[: whole + 1]) <= start.text:
                whole += 1
            row = sum(sizes[:whole])
            for batch in file.iter_batches(
                _GROUP_TEXTS, row_groups=range(whole, len(sizes)), columns=[field]
            ):
                values = batch.column(0).to_pylist()
                first = max(0, start.text - row)
                if first < len(values):
                    yield _of_rows(path, values[first:], row + first, start.file)
                row += len(values)
    except invalid as error:
        raise SourceError(f"{path} cannot be read as Parquet: {error}") from error


def _of_rows(path: str, values: list[Any], row: int, file: int) -> Group:
    wrong = next((value for value in values if not isinstance(value, (str, type(None)))), None)
    if wrong is not None:
        raise SourceError(
            f"{path}, row {row + 1:,} and those behind it: texts are strings, found "
            f"{type(wrong).__name__}. Name the column of the texts: field= (--field)."
        )
    end = row + len(values)
    return Group(path, None, row + 1, values, Place(file, end, end))
