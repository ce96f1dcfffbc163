"""An object as a file that libraries seek in; what they will read is fetched before, at once."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

from headrace.data.stores.remote import RemoteFile, Stores


class SeekableObject(io.RawIOBase):
    """A readable file over ranges of an object.

    Args:
        remote: the object.
        stores: reads it.
    """

    def __init__(self, remote: RemoteFile, stores: Stores) -> None:
        self._remote = remote
        self._stores = stores
        self._at = 0
        self.held: list[tuple[int, bytes]] = []  # fetched before they are asked for

    def hold(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch ranges (offset, size), in place of those that were held; neighbours in one go."""
        about = self._remote.about
        asked = [(about, offset, size) for offset, size in ranges]
        parts = self._stores.read(asked) if asked else []
        self.held = [(offset, part) for (offset, _), part in zip(ranges, parts, strict=True)]

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Return the place."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size()}[whence]
        self._at = origin + offset
        return self._at

    def size(self) -> int:
        """Return the bytes that there are."""
        return self._remote.about.size_bytes

    def readinto(self, buffer: Any) -> int:
        """Read as many bytes as there are room and bytes for."""
        count = max(0, min(len(buffer), self.size() - self._at))
        if count:
            buffer[:count] = self._bytes(self._at, count)
        self._at += count
        return count

    def _bytes(self, offset: int, count: int) -> bytes:
        for first, part in self.held:
            if first <= offset and offset + count <= first + len(part):
                return part[offset - first : offset - first + count]
        return self._remote.read(offset, count)
