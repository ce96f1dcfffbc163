"""Where the lines of a file begin: found once, kept in a cache, 8 bytes a line.

A cached index is a file of little-endian 64-bit integers: the version of this layout, the kind
of lines, the size and the time of the file that was indexed, then the starts, then the end of the
last line. It is memory-mapped, so that all workers share it.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from headrace.data.files import PathLike, Stamp, cache_path
from headrace.data.progress import Progress
from headrace.data.text.reading import SPACES
from headrace.written import written_whole

Starts: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

CHUNK_BYTES = 1 << 20
CACHED_FROM_BYTES = 16 << 20  # an index of less is built in some hundredths of a second

_VERSION = 1
_HEADER = 4
_NEWLINE = ord("\n")
_IS_SPACE = np.zeros(256, np.bool_)
_IS_SPACE[list(SPACES)] = True


def line_index(
    path: PathLike, *, skip_blank: bool, cache_dir: PathLike | None
) -> tuple[Starts, Stamp]:
    """Return the starts of a file's lines and the end of the last one, and the file's stamp.

    Args:
        path: the file.
        skip_blank: lines of nothing but spaces are none. They then belong to the line before.
        cache_dir: where the index of a large file is kept; None is the default place.

    Raises:
        SourceChangedError: the file changed while it was indexed.

    Warns:
        RuntimeWarning: the index could not be kept, and will have to be built again.
    """
    stamp = Stamp.of(path)
    if stamp.size_bytes < CACHED_FROM_BYTES:
        return _built(path, stamp, skip_blank), stamp
    kept = cache_path(path, "records" if skip_blank else "lines", cache_dir)
    header = np.array([_VERSION, skip_blank, stamp.size_bytes, stamp.mtime_ns], "<i8")
    starts = _load(kept, header)
    if starts is not None:
        return starts, stamp
    try:
        with written_whole(kept) as file:
            file.write(header.data)
            for part in _parts(path, stamp, skip_blank):
                file.write(part.astype("<i8", copy=False).data)  # not tofile: it hides the reason
        starts = _load(kept, header)
    except OSError as error:
        if error.filename is not None and os.fspath(error.filename) == os.fspath(path):
            raise
        warnings.warn(
            f"the index of {os.fspath(path)} could not be kept in {kept.parent} ({error}), and is "
            f"built again by each process that needs it. Write cache_dir= with a directory that "
            f"has room and can be written to.",
            RuntimeWarning,
            stacklevel=4,
        )
    return (_built(path, stamp, skip_blank) if starts is None else starts), stamp


def _built(path: PathLike, stamp: Stamp, skip_blank: bool) -> Starts:
    return np.concatenate(list(_parts(path, stamp, skip_blank)))


def _parts(path: PathLike, stamp: Stamp, skip_blank: bool) -> Iterator[Starts]:
    """Yield the index of a file piece by piece, the end of the last line included."""
    with (
        open(path, "rb") as file,
        Progress(f"indexing {os.path.basename(path)}", stamp.size_bytes, "bytes") as progress,
    ):
        yield from line_starts(_chunks(file, progress), skip_blank=skip_blank)
    stamp.check(path)
    yield np.array([stamp.size_bytes], np.int64)


def _chunks(file: BinaryIO, progress: Progress) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
        progress.advance(len(chunk))


def line_starts(chunks: Iterator[bytes], *, skip_blank: bool) -> Iterator[Starts]:
    """Yield where the lines begin in bytes that come in chunks, cut anywhere.

    A line ends behind each newline, and at the end of what does not end with one. With
    ``skip_blank``, lines that have nothing but spaces before their newline are left out.
    """
    base = 0  # of the chunk
    start = 0  # of the line that is open at the chunk's beginning
    blank = True  # whether it has been nothing but spaces so far
    for chunk in chunks:
        view = np.frombuffer(chunk, np.uint8)
        ends = np.flatnonzero(view == _NEWLINE)
        if len(ends):
            starts = np.empty(len(ends), np.int64)
            starts[0] = start
            np.add(ends[:-1], base + 1, out=starts[1:])
            if skip_blank:
                starts = starts[_solid(chunk, view, ends, blank)]
            yield starts
            start, blank = base + int(ends[-1]) + 1, True
            rest = chunk[ends[-1] + 1 :]
        else:
            rest = chunk
        blank = blank and (not skip_blank or not rest.strip(SPACES))
        base += len(chunk)
    if start < base and not (skip_blank and blank):
        yield np.array([start], np.int64)


def _solid(chunk: bytes, view: Any, ends: Any, blank: bool) -> Any:
    """Return which of the lines that end in a chunk hold more than spaces."""
    solid = np.ones(len(ends), np.bool_)
    solid[0] = not blank or bool(chunk[: ends[0]].strip(SPACES))
    # Few lines begin with a space: only they are looked at.
    for line in np.flatnonzero(_IS_SPACE[view[ends[:-1] + 1]]) + 1:
        solid[line] = bool(chunk[ends[line - 1] + 1 : ends[line]].strip(SPACES))
    return solid


def _load(path: Path, header: Starts) -> Starts | None:
    """Return a cached index; None where there is none, or not a whole one of this very file."""
    try:
        if os.path.getsize(path) % 8 or os.path.getsize(path) <= 8 * _HEADER:
            return None
        words: Any = np.memmap(path, "<i8", "r")
    except OSError:
        return None
    if not np.array_equal(words[:_HEADER], header) or words[-1] != header[2]:
        return None
    starts: Starts = words[_HEADER:]
    return starts.view(np.ndarray) if sys.byteorder == "little" else starts.astype(np.int64)
