"""Parquet files that are not on this machine: their ends first, then row groups, each at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.data.stores.remote import Object, RemoteFile, Stores
from headrace.data.stores.seekable import SeekableObject

_END_BYTES = 64 << 10


class Remote:
    """The objects among the files, by the names that they are shown by."""

    def __init__(self, objects: Mapping[str, Object], stores: Stores) -> None:
        self._objects = objects
        self._stores = stores

    def __bool__(self) -> bool:
        return bool(self._objects)

    def opened(self, paths: Sequence[str]) -> dict[str, SeekableObject]:
        """Return those among paths as files, with their ends, where Parquet begins, fetched."""
        abouts = {path: self._objects[path] for path in paths if path in self._objects}
        ends = [
            (about, max(0, about.size_bytes - _END_BYTES), min(about.size_bytes, _END_BYTES))
            for about in abouts.values()
        ]
        parts = self._stores.read(ends) if ends else []
        files = {}
        for (path, about), (_, offset, _), part in zip(abouts.items(), ends, parts, strict=True):
            files[path] = SeekableObject(RemoteFile(about, self._stores), self._stores)
            files[path].held = [(offset, part)]
        return files


def range_of(chunk: Any) -> tuple[int, int]:
    """Return where a column of a row group lies: its pages, the dictionary first."""
    first = chunk.data_page_offset
    if chunk.dictionary_page_offset:  # 0 where a writer means none
        first = min(first, chunk.dictionary_page_offset)
    return first, chunk.total_compressed_size
