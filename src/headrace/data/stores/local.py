"""A file on this machine, read at any place without moving a position that others share."""

from __future__ import annotations

import os

from headrace.data.files import PathLike, Stamp
from headrace.errors import TruncatedFileError

_AT_ONCE_BYTES = 1 << 30  # Linux reads at most 2 GiB less a page in one call


class LocalFile:
    """An open file. A child that was forked reads on from it: each read names its place.

    It is read, not mapped: what a mapped file no longer has is a bus error that ends the
    interpreter, and one copy is made either way.

    Raises:
        SourceChangedError: it is no longer what ``stamp`` was taken of.
        OSError: it cannot be opened.
    """

    _fd = -1

    def __init__(self, path: PathLike, stamp: Stamp | None = None) -> None:
        self.path = os.fspath(path)
        self.stamp = Stamp.of(path) if stamp is None else stamp
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.check()

    def check(self) -> None:
        """Raise where the file is no longer the one that was opened.

        Raises:
            SourceChangedError: another size or time of change, or it is gone.
        """
        self.stamp.check(self.path)

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes of the file.

        Raises:
            TruncatedFileError: they are not all there.
        """
        data = os.pread(self._fd, size_bytes, offset)
        if len(data) == size_bytes:
            return data
        parts = [data]
        missing = size_bytes - len(data)
        while missing and parts[-1]:
            start = offset + size_bytes - missing
            parts.append(os.pread(self._fd, min(missing, _AT_ONCE_BYTES), start))
            missing -= len(parts[-1])
        if missing:
            raise TruncatedFileError(
                f"{self.path} ends {missing:,} bytes before byte {offset + size_bytes:,}, up to "
                f"which it was to be read: it has been cut short. Copy it again, and make the "
                f"dataset again."
            )
        return b"".join(parts)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
