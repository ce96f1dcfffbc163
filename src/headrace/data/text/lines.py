"""Lines of text files by their number: memory maps and an index of where lines begin."""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from headrace.data.compose import Source, place_of
from headrace.data.files import PathLike, Stamp
from headrace.data.mapped import MappedFiles
from headrace.data.text.index import Starts, line_index
from headrace.data.text.reading import (
    CHECKED_BYTES,
    BadLineError,
    check_alone,
    codec_of,
    compression_of,
    path_list,
    to_text,
    to_value,
)
from headrace.errors import SourceError

_OPEN_FILES = 128  # maps held at once: each takes two file descriptors
_COUNTED_BYTES = 16 << 20


class _OpenFile(NamedTuple):
    data: mmap.mmap
    starts: Starts
    kept: MappedFiles  # where the index is


class TextLines(Source):
    r"""The lines of text files, each a string, in any order without reading those before.

    Args:
        paths: one file, or several, whose lines follow each other.
        encoding: of the text; any in which a newline is the byte 10.
        errors: what becomes of bytes that the encoding does not have: "strict" is an error,
            "replace" and others are those of :meth:`bytes.decode`.
        cache_dir: where the index of a file of 16 MiB or more is kept, so that it is built once;
            None is ``headrace`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``. It is built again when
            the file's size or time of change differs.

    A line ends with ``\n``, which is not part of it, nor is a ``\r`` before that; the last line
    needs no end. An empty line is an empty string. A byte order mark is left out.

    Files are memory-mapped, and the index takes 8 bytes a line; workers share both. Pickling the
    dataset pickles the paths.

    Raises:
        SourceError: an empty file, a compressed one, an encoding that is none; when a line is asked
            for, text that is not of the encoding. The message names file and line.
        SourceChangedError: a file changed after it was opened.
        OSError: a file that cannot be opened.
    """

    _skip_blank = False

    def __init__(
        self,
        paths: PathLike | Sequence[PathLike],
        encoding: str = "utf-8",
        *,
        errors: str = "strict",
        cache_dir: PathLike | None = None,
    ) -> None:
        self._codec = codec_of(encoding, errors)
        self.paths = path_list(paths)
        self.encoding = encoding
        self.errors = errors
        self.cache_dir = cache_dir
        self._stamps: list[Stamp] = []
        self._open: dict[int, _OpenFile] = {}
        self._ends = list(accumulate(map(self._first_look, self.paths)))

    def _first_look(self, path: str) -> int:
        """Index a file; return how many samples it has."""
        compression = compression_of(path)
        if compression is not None:
            raise SourceError(
                f"{path} is compressed ({compression}): its lines can be read in their order only. "
                f"Write Streamed{type(self).__name__}(path), or decompress the file."
            )
        starts, stamp = line_index(path, skip_blank=self._skip_blank, cache_dir=self.cache_dir)
        if len(starts) == 1:
            raise SourceError(f"{path} holds nothing but blank lines. Leave it out of the paths.")
        self._stamps.append(stamp)
        self._keep(len(self._stamps) - 1, starts)
        return len(starts) - 1

    def _keep(self, number: int, starts: Starts) -> _OpenFile:
        path = self.paths[number]
        with open(path, "rb") as file:
            self._stamps[number].check(path)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._open) >= _OPEN_FILES:
            self._open.popitem()
        opened = self._open[number] = _OpenFile(data, starts, MappedFiles([starts]))
        return opened

    def _file(self, number: int) -> _OpenFile:
        """Return a file that is what it was, opening it in a process that has not."""
        path, stamp = self.paths[number], self._stamps[number]
        # To read behind the end of a file that has become shorter is a bus error, no exception.
        stamp.check(path)
        opened = self._open.get(number)
        if opened is None:
            starts, _ = line_index(path, skip_blank=self._skip_blank, cache_dir=self.cache_dir)
            opened = self._keep(number, starts)
        opened.kept.check()
        return opened

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> Any:
        """Return one sample."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return the samples at ``indices``; each file is looked at for changes once."""
        samples = []
        files: dict[int, _OpenFile] = {}
        ends = self._ends
        length = ends[-1]
        for index in indices:
            place = index if type(index) is int and 0 <= index < length else place_of(index, length)
            number = bisect_right(ends, place)
            file = files.get(number)
            if file is None:
                file = files[number] = self._file(number)
            line = place - ends[number - 1] if number else place
            start = file.starts.item(line)
            try:
                sample = self._sample(file.data[start : file.starts.item(line + 1)], start == 0)
            except BadLineError as problem:
                where = f"{self.paths[number]}, line {_line_number(file, start)}"
                raise SourceError(f"{where}: {problem}") from None
            samples.append(sample)
        return samples

    def _sample(self, raw: bytes, first: bool) -> Any:
        return to_text(raw, self._codec, self.errors, first=first)

    def _identity(self) -> str:
        paths = [*map(os.path.abspath, self.paths)]
        return f"{paths} {self._stamps} {self.encoding} {self.errors}"

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the paths, not the lines."""
        return {**self.__dict__, "_open": {}}


class JSONLines(TextLines):
    """The values of JSON lines files, one a line, in any order without reading those before.

    Args:
        paths: one file, or several, whose lines follow each other.
        encoding: of the text; any in which a newline is the byte 10.
        errors: what becomes of bytes that the encoding does not have: "strict" is an error,
            "replace" and others are those of :meth:`bytes.decode`.
        cache_dir: where the index of a file of 16 MiB or more is kept, so that it is built once;
            None is ``headrace`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``. It is built again when
            the file's size or time of change differs.

    A sample is what :func:`json.loads` makes of the line, a dict as a rule. Lines with nothing but
    spaces are left out; they count in the line numbers of messages. A byte order mark is left out.

    Files are memory-mapped, and the index takes 8 bytes a line; workers share both. Pickling the
    dataset pickles the paths.

    Raises:
        SourceError: an empty or blank file, a compressed one, an encoding that is none; when a line
            is asked for, one that is no JSON. The message names file and line.
        SourceChangedError: a file changed after it was opened.
        OSError: a file that cannot be opened.
    """

    _skip_blank = True

    def _first_look(self, path: str) -> int:
        count = super()._first_look(path)
        if count == 1:
            data, starts, _ = self._open[len(self._stamps) - 1]
            check_alone(path, data[starts.item(0) : starts.item(0) + CHECKED_BYTES])
        return count

    def _sample(self, raw: bytes, first: bool) -> Any:
        return to_value(super()._sample(raw, first))


def _line_number(file: _OpenFile, start: int) -> int:
    """Count from 1, blank lines too: what an editor shows."""
    pieces = range(0, start, _COUNTED_BYTES)
    return 1 + sum(file.data[at : min(at + _COUNTED_BYTES, start)].count(b"\n") for at in pieces)
