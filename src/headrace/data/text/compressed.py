"""Compressed files as streams of bytes that notice where they were cut short."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from headrace.errors import SourceError
from headrace.extras import import_extra

_READ_BYTES = 1 << 16
_BUFFER_BYTES = 1 << 20
_GZIP = 16 + zlib.MAX_WBITS  # a gzip header and checksum around the data


def open_at(path: str, compression: str | None, offset: int) -> BinaryIO:
    """Open a file at a byte of its content, decompressing what is before it.

    Raises:
        MissingExtraError: zstd, and zstandard is not installed.
        SourceError: the file ends before, or is damaged.
    """
    file = open(path, "rb")  # noqa: SIM115  (the reader's to close)
    if compression is None:
        file.seek(offset)
        return file
    reader = io.BufferedReader(_Decompressed(file, path, compression), _BUFFER_BYTES)
    while offset > 0:
        skipped = len(reader.read(min(offset, _BUFFER_BYTES)))
        if not skipped:
            raise SourceError(f"{path} ends before the place where it was to be resumed.")
        offset -= skipped
    return reader


class _Decompressed(io.RawIOBase):
    """The content of a file of one or more gzip members, bzip2 or xz streams, or zstd frames.

    Not gzip.open and zstandard.open: the second takes a file that was cut short for a whole one.
    """

    def __init__(self, file: BinaryIO, path: str, compression: str) -> None:
        self._file = file
        self._path = path
        self._compression = compression
        self._new: Callable[[], Any]
        self._error: type[Exception]
        if compression == "gzip":
            self._new, self._error = (lambda: zlib.decompressobj(_GZIP)), zlib.error
        elif compression == "bzip2":
            self._new, self._error = bz2.BZ2Decompressor, OSError
        elif compression == "xz":
            self._new, self._error = lzma.LZMADecompressor, lzma.LZMAError
        else:
            zstandard = import_extra("zstandard", "text")
            self._new = zstandard.ZstdDecompressor().decompressobj
            self._error = zstandard.ZstdError
        self._decompressor: Any = None
        self._made = b""
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._made:
            raw = self._rest or self._file.read(_READ_BYTES)
            self._rest = b""
            if not raw:
                if self._decompressor is not None:
                    raise SourceError(
                        f"{self._path} was cut short: its {self._compression} data does not come "
                        f"to an end. Copy or compress the file again."
                    )
                return 0
            self._made = self._decompress(raw)
        size = min(len(buffer), len(self._made))
        buffer[:size] = self._made[:size]
        self._made = self._made[size:]
        return size

    def _decompress(self, raw: bytes) -> bytes:
        if self._decompressor is None:
            if self._compression in ("gzip", "xz") and not (raw := raw.lstrip(b"\0")):
                return b""  # tapes, block devices and xz fill up with zeros behind the last one
            self._decompressor = self._new()
        try:
            made: bytes = self._decompressor.decompress(raw)
        except self._error as error:
            raise SourceError(
                f"{self._path} is damaged: its {self._compression} data cannot be decompressed "
                f"({error}). Copy or compress the file again."
            ) from error
        if self._decompressor.eof:
            self._rest = self._decompressor.unused_data
            self._decompressor = None
        return made

    def close(self) -> None:
        self._file.close()
        super().close()
