"""Arrays that are mapped from files, which others may cut short."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from typing import Any

import numpy as np

from headrace.data.gatherer import Array
from headrace.errors import TruncatedFileError


def memory_file(array: Array, *, check: bool = False) -> mmap.mmap | None:
    """Return the memory map of a file that an array reads from, None for plain memory.

    Raises:
        TruncatedFileError: with ``check``, when the file has become shorter than the array: to
            read past its end is a bus error that ends the interpreter, not an exception.
    """
    owner: Any = array  # np.asarray(memmap) is a plain array, whose base is the memmap
    while not isinstance(file := getattr(owner, "_mmap", None), mmap.mmap):
        owner = owner.base
        if not isinstance(owner, np.ndarray):
            return None
    if check and file.size() < (end := _end_in_file(array)):
        raise TruncatedFileError(
            f"a memory-mapped array ends at byte {end:,}, but {owner.filename or 'its file'} has "
            f"only {file.size():,} bytes left: it was truncated after it was opened. "
            f"Write the file again and reopen it: make the dataset again, which also writes anew "
            f"what it keeps in a cache directory."
        )
    return file


class MappedFiles:
    """The files that arrays are mapped from, for a look at their lengths before each read."""

    def __init__(self, arrays: Iterable[Array]) -> None:
        found = [(memory_file(array), array) for array in arrays]
        self._files = [(file, _end_in_file(a), a) for file, a in found if file is not None]

    def check(self) -> None:
        """Check that no file has become shorter than the arrays in it.

        Raises:
            TruncatedFileError: one has.
        """
        for file, end, array in self._files:
            if file.size() < end:
                memory_file(array, check=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedFiles, ((),)  # arrays that were pickled are in memory


def _end_in_file(array: Array) -> int:
    """Return how long a file must be for every element of an array mapped from it to be there."""
    # np.memmap.offset is that of the map it was sliced from; its rows start where its data does.
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    start = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    spans = ((n - 1) * step for n, step in zip(array.shape, array.strides, strict=True) if n > 0)
    offset = int(getattr(base, "offset", 0))
    end: int = offset + int(start) + sum(max(s, 0) for s in spans) + array.itemsize
    return end
