"""Lines of text files in their order, compressed or not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, Self

from torch.utils.data import get_worker_info

from headrace.data.compose import StreamSource
from headrace.data.files import PathLike, Stamp
from headrace.data.text.compressed import open_at
from headrace.data.text.reading import (
    BadLineError,
    check_alone,
    codec_of,
    compression_of,
    is_blank,
    path_list,
    to_text,
    to_value,
)
from headrace.errors import SourceChangedError, SourceError, StateError

_STATE = ("file", "line", "offset", "number", "size_bytes")


class StreamedTextLines(StreamSource):
    r"""The lines of text files in their order, each a string; gzip and zstd are decompressed.

    Args:
        paths: one file, or several, read one behind the other. What a file is compressed with is
            seen from its first bytes; zstd needs ``pip install "headrace[text]"``.
        encoding: of the text; any in which a newline is the byte 10.
        errors: what becomes of bytes that the encoding does not have: "strict" is an error,
            "replace" and others are those of :meth:`bytes.decode`.

    Lines end as those of :class:`TextLines` do. Workers share the lines out: with at least as many
    files as workers they take whole files in turn, otherwise lines in turn, each worker
    decompressing all of it. ``DataLoader(shard=)`` does the same for ranks.

    A stream resumes exactly: ``loader.state_dict()`` holds each worker's file, line and byte. What
    is before it in a compressed file is decompressed again.

    Raises:
        SourceError: an empty, cut or damaged file, an encoding that is none; when a line is read,
            text that is not of the encoding. The message names file and line.
        SourceChangedError: a file changed while it was read, or since the state was taken.
        MissingExtraError: a zstd file without the library.
        OSError: a file that cannot be opened.
    """

    _skip_blank = False
    _alone: Callable[[str, bytes], None] | None = None

    def __init__(
        self,
        paths: PathLike | Sequence[PathLike],
        encoding: str = "utf-8",
        *,
        errors: str = "strict",
    ) -> None:
        self._codec = codec_of(encoding, errors)
        self.paths = path_list(paths)
        self.encoding = encoding
        self.errors = errors
        self._part = (0, 1)
        for path in self.paths:
            compression_of(path)

    def shard(self, index: int, count: int) -> Self:
        """Return part ``index`` of ``count``: whole files in turn, or lines if there are fewer."""
        if not 0 <= index < count:
            raise ValueError(f"a part is 0 <= index < count, got shard({index}, {count}).")
        part = copy.copy(self)
        mine, parts = self._part
        if parts == 1 and count <= len(self.paths):
            part.paths = self.paths[index::count]
        else:
            part._part = (mine + parts * index, parts * count)
        return part

    def __iter__(self) -> LineIterator:
        """Begin at the first line; in a worker, at the first one of its part."""
        info = get_worker_info()
        mine = self if info is None else self.shard(info.id, info.num_workers)
        return LineIterator(mine.paths, mine._part, mine._sample, mine._skip_blank, mine._alone)

    def _sample(self, raw: bytes, first: bool) -> Any:
        return to_text(raw, self._codec, self.errors, first=first)


class StreamedJSONLines(StreamedTextLines):
    """The values of JSON lines files in their order; gzip and zstd are decompressed.

    As :class:`StreamedTextLines`, with what :func:`json.loads` makes of each line. Lines with
    nothing but spaces are left out; they count in the line numbers of messages.
    """

    _skip_blank = True
    _alone = staticmethod(check_alone)

    def _sample(self, raw: bytes, first: bool) -> Any:
        return to_value(super()._sample(raw, first))


class LineIterator:
    """Goes through lines, and says behind each one where it stands.

    Args:
        paths: the files.
        part: lines whose number over all files leaves ``part[0]`` when divided by ``part[1]``.
        sample: makes a sample of a line, and of whether it is the first one of its file.
        skip_blank: leave out lines with nothing but spaces.
        alone: called with path and line where a file has no more than that.
    """

    _opened: tuple[BinaryIO, Stamp] | None = None

    def __init__(
        self,
        paths: Sequence[str],
        part: tuple[int, int],
        sample: Callable[[bytes, bool], Any],
        skip_blank: bool,
        alone: Callable[[str, bytes], None] | None = None,
    ) -> None:
        self._paths = paths
        self._part = part
        self._sample = sample
        self._skip_blank = skip_blank
        self._alone = alone
        self._file = 0  # which one is read
        self._line = 0  # lines of it that have been read
        self._offset = 0  # bytes of its content that have been read
        self._number = 0  # lines of all files that have been read
        self._size_bytes: int | None = None  # of the file that a state was taken in

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        mine, parts = self._part
        while raw := self._next_line():
            self._offset += len(raw)
            self._line += 1
            self._number += 1
            if self._alone is not None and self._line == 1 and self._is_last():
                self._alone(self._paths[self._file], raw)
            if (self._number - 1) % parts != mine or (self._skip_blank and is_blank(raw)):
                continue
            try:
                return self._sample(raw, self._line == 1)
            except BadLineError as problem:
                raise SourceError(
                    f"{self._paths[self._file]}, line {self._line}: {problem}"
                ) from None
        raise StopIteration

    def _is_last(self) -> bool:
        """Say whether nothing but blank space follows in the file."""
        file: Any = None if self._opened is None else self._opened[0]
        return file is not None and not file.peek(1).strip()

    def _next_line(self) -> bytes:
        try:
            return self._readline()
        except Exception:
            self.close()
            self._file = len(self._paths)  # what is behind a damaged place cannot be told apart
            raise

    def _readline(self) -> bytes:
        """Return the next line of any part; nothing behind the last one."""
        while self._file < len(self._paths):
            path = self._paths[self._file]
            file, stamp = self._opened = self._opened or self._open(path)
            raw = file.readline()
            if raw:
                return raw
            file.close()
            stamp.check(path)
            if not self._offset:
                raise SourceError(f"{path} holds no lines. Leave it out of the paths.")
            self._opened = None
            self._file, self._line, self._offset = self._file + 1, 0, 0
        return b""

    def _open(self, path: str) -> tuple[BinaryIO, Stamp]:
        stamp = Stamp.of(path)
        if self._size_bytes not in (None, stamp.size_bytes):
            raise SourceChangedError(
                f"{path} had {self._size_bytes:,} bytes when the state was taken and has "
                f"{stamp.size_bytes:,} now. Put the file back, or begin the epoch anew."
            )
        self._size_bytes = None
        return open_at(path, compression_of(path), self._offset), stamp

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream stands: file, line and byte."""
        size_bytes = self._size_bytes if self._opened is None else self._opened[1].size_bytes
        values = (self._file, self._line, self._offset, self._number, size_bytes)
        return dict(zip(_STATE, values, strict=True))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken.

        Raises:
            StateError: it is not one of a stream of as many files.
        """
        values = [state.get(name) for name in _STATE] if isinstance(state, Mapping) else []
        whole = [v for v in values if type(v) is int and v >= 0]
        if len(whole) != len(_STATE) and not (len(whole) == len(_STATE) - 1 and values[-1] is None):
            raise StateError(
                f"this is no state of a stream of lines: {state!r}. Give it what state_dict() "
                f"returned."
            )
        if whole[0] > len(self._paths):
            raise StateError(
                f"the state was taken in file {whole[0]} of a stream that has {len(self._paths)} "
                f"now. Give it the same files in the same order."
            )
        self._file, self._line, self._offset, self._number = whole[:4]
        self._size_bytes = values[-1]
        self.close()

    def close(self) -> None:
        """Close the file that is being read."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened[0].close()

    def __del__(self) -> None:
        self.close()
