"""From a file, compressed and encoded in any way, to records for Python and pieces for polars.

A piece is UTF-8 text of whole rows, without a header, comments and empty lines, in which quotes
stand where they should. As a rule a piece is a stretch of the file as it is. From the first one
on that is something else (an empty line, a comment, a quote within a field), rows are read by
Python's csv and written anew: slower, and the same for every reader.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, BinaryIO, Self

import numpy as np

from headrace.data.tables.csv.form import Form
from headrace.data.text.compressed import open_at
from headrace.data.text.known import check_text, first_bytes, wide_encoding
from headrace.errors import SourceError

READABLE = ("gzip", "zstd", "bzip2", "xz")
PIECE_BYTES = 1 << 23
_REWRITTEN_ROWS = 32_768
_SPARE_BYTES = 1 << 16
_QUOTE, _NEWLINE, _RETURN = b'"\n\r'


def shown(path: str) -> str:
    """Return how a file is called in errors: lines of a compressed one are those of its content."""
    compression = check_text(path, first_bytes(path), READABLE)
    return path if compression is None else f"{path} (decompressed)"


def opened(path: str, form: Form) -> BinaryIO:
    """Open a file as UTF-8 without a byte order mark.

    Raises:
        SourceError: it is empty, or no text at all.
        OSError: it cannot be opened.
    """
    compression = check_text(path, first_bytes(path), READABLE)
    file: Any = open_at(path, compression, 0)
    beginning = bytes(file.peek(64)[:64])
    encoding = form.encoding
    if beginning.startswith(codecs.BOM_UTF8):
        encoding = "utf-8"
    elif encoding == "utf-8" or beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = wide_encoding(beginning) or encoding
    if encoding != "utf-8":
        return io.BufferedReader(_Recoded(file, path, encoding), _SPARE_BYTES)
    if beginning.startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
    opened_file: BinaryIO = file
    return opened_file


class _Recoded(io.RawIOBase):
    """A file of another encoding as UTF-8."""

    def __init__(self, file: BinaryIO, path: str, encoding: str) -> None:
        self._file = file
        self._path = path
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._made = b""
        self._lines = 1
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._made and not self._ended:
            raw = self._file.read(_SPARE_BYTES)
            self._ended = not raw
            try:
                text = self._decoder.decode(raw, self._ended)
            except UnicodeError as error:
                raise SourceError(
                    f"{shown(self._path)}, about line {self._lines:,}: not {self._encoding} "
                    f"({getattr(error, 'reason', error)}). Write encoding= with that of the file."
                ) from None
            self._lines += text.count("\n")
            self._made = text.removeprefix("\ufeff").encode()
        size = min(len(buffer), len(self._made))
        buffer[:size] = self._made[:size]
        self._made = self._made[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


class Records:
    """The records of an opened CSV file, each with the number of its first line.

    Comments are left out; an empty line is an empty record.

    Raises:
        SourceError: a line is not UTF-8, or quotes are not closed.
    """

    def __init__(self, path: str, form: Form, source: Iterable[bytes], lines: int = 0) -> None:
        self.lines = lines  # that were read
        self._path = path
        self._source = source
        self._comment = None if form.comment is None else form.comment.encode()
        self._first: int | None = None  # line of the record that is read
        self._reader = csv.reader(
            self._decoded(),
            delimiter=form.mark,
            strict=True,
            skipinitialspace=form.skipinitialspace,
        )

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[int, list[str]]:
        self._first = None
        try:
            record = next(self._reader)
        except csv.Error as error:
            raise SourceError(
                f"{shown(self._path)}, line {self._first or self.lines:,}: {error}. Each row is a "
                f"line that ends in a line feed; a field with quotes in it stands in quotes, and "
                f"those within are doubled."
            ) from None
        return self._first or self.lines, record

    def _decoded(self) -> Iterator[str]:
        for raw in self._source:
            self.lines += 1
            if self._first is None:
                if self._comment is not None and raw.startswith(self._comment):
                    continue
                self._first = self.lines
            try:
                yield raw.decode()
            except UnicodeDecodeError as error:
                raise _no_utf8(self._path, self.lines, raw, error) from None


def _no_utf8(path: str, line: int, raw: bytes, error: UnicodeDecodeError) -> SourceError:
    text = raw[max(0, error.start - 20) : error.end + 20].decode("cp1252", "replace").strip()
    return SourceError(
        f"{shown(path)}, line {line:,}, byte {error.start}: not UTF-8 ({error.reason}). Write "
        f"encoding='cp1252' if this is how it should read: {text!r}; otherwise encoding= with "
        f"that of the file, as 'cp1251' or 'gb18030'."
    )


def records(path: str, form: Form) -> Iterator[tuple[int, list[str]]]:
    """Yield the records of a file, the header among them, with the numbers of their lines."""
    with opened(path, form) as file:
        yield from Records(path, form, file)


def is_blank(record: Sequence[str]) -> bool:
    """Say whether a record is a line with nothing on it."""
    return not record or (len(record) == 1 and not record[0].strip())


def first_record(source: Iterator[tuple[int, list[str]]]) -> tuple[int, list[str]] | None:
    """Return the first record that is no empty line, None if there is none."""
    return next((found for found in source if not is_blank(found[1])), None)


def rows(source: Iterator[tuple[int, list[str]]], width: int) -> Iterator[tuple[int, list[str]]]:
    """Yield records without empty lines: they are no rows.

    In a table of one column an empty line is a missing value, but for those at its end.
    """
    waiting: list[tuple[int, list[str]]] = []
    for line, record in source:
        if not is_blank(record):
            yield from waiting
            waiting = []
            yield line, record
        elif width == 1:
            waiting.append((line, [""]))


def width_problem(record: Sequence[str], width: int, form: Form) -> str | None:
    """Say what is wrong with the number of a row's fields; None if nothing is."""
    if len(record) == width:
        return None
    said = (
        f" has {len(record)} fields, but there are {width} columns. Give each row as many, and "
        f"put a field with a {form.separator!r} in it into quotes."
    )
    if len(record) > width and not any(record[width:]):
        return f"{said} It ends in {form.separator!r}: so must the names, or no row."
    if any(field[:1] == " " and field[1:2] == '"' for field in record):
        return f"{said} Quotes behind spaces count with skipinitialspace=True."
    return said


def pieces(path: str, form: Form, width: int) -> Iterator[bytes]:
    """Yield the rows of a file in pieces that polars reads as Python's csv would.

    Raises:
        SourceError: a record that is none.
    """
    with opened(path, form) as file:
        head = Records(path, form, iter(file.readline, b""))
        if form.is_named:
            first_record(head)
        lines = head.lines
        rest = b""
        while True:
            block = file.read(PIECE_BYTES)
            data = rest + block
            piece = data[: _cut(data, at_end=not block)].rstrip(b"\r\n")
            stuck = not piece and len(data) > 2 * PIECE_BYTES  # a quote that stays open
            if stuck or not _is_regular(piece, form):
                data += file.readline()
                again = Records(path, form, chain(io.BytesIO(data), file), lines)
                yield from _rewritten(path, form, width, again)
                return
            rest = data[len(piece) :]
            if piece:
                yield piece + b"\n"
                lines += piece.count(b"\n") + 1
                rest = rest.removeprefix(b"\r").removeprefix(b"\n")
            if not block:
                return


def _cut(data: bytes, *, at_end: bool) -> int:
    """Return where the last whole row ends: at a line feed behind an even number of quotes."""
    if at_end:
        return len(data)
    if b'"' not in data:
        return data.rfind(b"\n") + 1
    view = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(view == _NEWLINE)
    before = np.searchsorted(np.flatnonzero(view == _QUOTE), ends)
    outside = ends[before % 2 == 0]
    return int(outside[-1]) + 1 if len(outside) else 0


def _is_regular(piece: bytes, form: Form) -> bool:
    """Say whether polars reads a piece as Python's csv does."""
    if b"\r" in piece and piece.count(b"\r") != piece.count(b"\r\n"):
        return False
    spaces = b" \t".replace(form.mark.encode(), b"")
    blank = rb"[%b]*\r?" % spaces
    first, last = re.match(blank + rb"\n", piece), piece[piece.rfind(b"\n") + 1 :].strip(spaces)
    if piece and (first or not last or re.search(rb"\n" + blank + rb"\n", piece)):
        return False
    if form.comment is not None:
        mark = form.comment.encode()
        if piece.startswith(mark) or b"\n" + mark in piece:
            return False
    if form.skipinitialspace and (
        piece.startswith(b" ") or b"\n " in piece or form.mark.encode() + b" " in piece
    ):
        return False
    return b'"' not in piece or _quotes_are_regular(piece, form.mark)


def _quotes_are_regular(piece: bytes, separator: str) -> bool:
    """Say whether each quote opens a field, closes one, or is doubled within one."""
    view = np.frombuffer(piece, np.uint8)
    quotes = np.flatnonzero(view == _QUOTE)
    if len(quotes) % 2:
        return False
    opening, closing = quotes[0::2], quotes[1::2]
    before = view[opening[opening > 0] - 1]
    after = view[closing[closing < len(view) - 1] + 1]
    mark = ord(separator)
    return bool(
        np.isin(before, (mark, _NEWLINE, _QUOTE)).all()
        and np.isin(after, (mark, _NEWLINE, _RETURN, _QUOTE)).all()
    )


def _rewritten(path: str, form: Form, width: int, source: Records) -> Iterator[bytes]:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=form.mark)
    for count, (line, record) in enumerate(rows(source, width), 1):
        problem = width_problem(record, width, form)
        if problem is not None:
            raise SourceError(f"{shown(path)}, line {line:,}{problem}")
        writer.writerow(record)
        if count % _REWRITTEN_ROWS == 0:
            yield text.getvalue().encode()
            text.seek(0)
            text.truncate()
    if text.tell():
        yield text.getvalue().encode()
