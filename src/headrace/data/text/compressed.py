"""Compressed files as streams of bytes that notice where they were cut short."""

from __future__ import annotations

import bz2
import io
import lzma
import sys
import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any, BinaryIO

from headrace.errors import SourceError
from headrace.extras import import_extra

_READ_BYTES = 1 << 16
_BUFFER_BYTES = 1 << 20
_GZIP = 16 + zlib.MAX_WBITS  # a gzip header and checksum around the data


def open_at(path: str, compression: str | None, offset: int) -> BinaryIO:
    """Open a file at a byte of its content, decompressing what is before it.

    Raises:
        MissingExtraError: zstd, and backports.zstd is not installed.
        SourceError: the file ends before, or is damaged.
    """
    file = open(path, "rb")  # noqa: SIM115  (the reader's to close)
    if compression is None:
        file.seek(offset)
        return file
    reader = decompressed(file, path, compression)
    while offset > 0:
        skipped = len(reader.read(min(offset, _BUFFER_BYTES)))
        if not skipped:
            raise SourceError(f"{path} ends before the place where it was to be resumed.")
        offset -= skipped
    return reader


def decompressed(file: BinaryIO, name: str, compression: str) -> io.BufferedReader:
    """Return the content of a compressed file, a stream of bytes; ``name`` is for errors.

    Raises:
        MissingExtraError: zstd, and backports.zstd is not installed.
    """
    return io.BufferedReader(_Decompressed(file, name, compression), _BUFFER_BYTES)


class _Gzip:
    """zlib's decompressor with the interface of bz2's, lzma's and zstd's."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(_GZIP)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, raw: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + raw, max_length)


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        return import_module("compression.zstd")
    return import_extra("backports.zstd", "text")


class _Decompressed(io.RawIOBase):
    """The content of a file of one or more gzip members, bzip2 or xz streams, or zstd frames.

    Not the libraries' own files: some take one that was cut short for a whole one. No more is made
    than was asked for: a few bytes can swell to gigabytes.
    """

    def __init__(self, file: BinaryIO, path: str, compression: str) -> None:
        self._file = file
        self._path = path
        self._compression = compression
        self._new: Callable[[], Any]
        self._error: type[Exception]
        if compression == "gzip":
            self._new, self._error = _Gzip, zlib.error
        elif compression == "bzip2":
            self._new, self._error = bz2.BZ2Decompressor, OSError
        elif compression == "xz":
            self._new, self._error = lzma.LZMADecompressor, lzma.LZMAError
        else:
            zstd = _zstd()
            self._new, self._error = zstd.ZstdDecompressor, zstd.ZstdError
        self._decompressor: Any = None
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        made, stuck = b"", False
        while not made:
            raw, at_end = b"", False
            if self._decompressor is None or self._decompressor.needs_input or stuck:
                raw, self._rest = self._rest or self._file.read(_READ_BYTES), b""
                at_end = not raw
            if at_end and self._decompressor is None:
                return 0
            made = self._decompress(raw, len(buffer))
            stuck = not raw  # zstd's says at times that it has more to give, and has not
            if at_end and not made and self._decompressor is not None:
                raise SourceError(
                    f"{self._path} was cut short: its {self._compression} data does not come "
                    f"to an end. Copy or compress the file again."
                )
        buffer[: len(made)] = made
        return len(made)

    def _decompress(self, raw: bytes, most: int) -> bytes:
        if self._decompressor is None:
            if self._compression in ("gzip", "xz") and not (raw := raw.lstrip(b"\0")):
                return b""  # tapes, block devices and xz fill up with zeros behind the last one
            self._decompressor = self._new()
        try:
            made: bytes = self._decompressor.decompress(raw, most)
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
