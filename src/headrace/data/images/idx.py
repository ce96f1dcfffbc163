"""IDX files, in which MNIST and the sets like it come; gzipped or not.

Two zero bytes, one for the type, one for the number of dimensions; a length of four bytes for each
dimension; then the elements, all of it big-endian (http://yann.lecun.com/exdb/mnist).
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from typing import Any, BinaryIO, cast

import numpy as np

from headrace.data.files import fill
from headrace.errors import SourceError

_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_MAX_DEFLATE = 1032  # no stream of zlib's is more times smaller than what it holds


def read_idx(path: str) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the array in an IDX file, in the machine's byte order.

    Raises:
        SourceError: it is no IDX file, is shorter or longer than its head says, or is damaged.
    """
    try:
        with open(path, "rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if file.peek(2)[:2] != b"\x1f\x8b":
                return _read(path, file, size_bytes)
            with gzip.GzipFile(fileobj=file) as unpacked:
                return _read(path, cast(BinaryIO, unpacked), size_bytes * _MAX_DEFLATE)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path} cannot be read: {error}. Fetch the file again.") from error


def _read(path: str, file: BinaryIO, most_bytes: int) -> np.ndarray[Any, np.dtype[Any]]:
    """Read the array; ``most_bytes`` is what the file could hold, whatever its head says."""
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES or head[3] == 0:
        raise SourceError(
            f"{path} is no IDX file: it begins with {head!r}, not with two zero bytes, a type and "
            f"a number of dimensions. Fetch the file again."
        )
    dtype, dimensions = np.dtype(_TYPES[head[2]]), head[3]
    lengths = file.read(4 * dimensions)
    if len(lengths) < 4 * dimensions:
        raise SourceError(f"{path} ends within its head. Fetch the file again.")
    shape = struct.unpack(f">{dimensions}I", lengths)
    wanted = math.prod(shape) * dtype.itemsize
    if wanted > most_bytes:
        raise _other_length(path, shape, dtype, f"no more than {most_bytes:,}")
    try:
        array = np.empty(shape, dtype)
    except (ValueError, MemoryError) as error:  # more dimensions, or more bytes, than there can be
        raise SourceError(
            f"{path}: its head says {shape} of {dtype.name}, which cannot be made: {error}. "
            f"Fetch the file again."
        ) from error
    filled = fill(array.reshape(-1).view(np.uint8), file)
    if filled < wanted:
        raise _other_length(path, shape, dtype, f"{filled:,}")
    if file.read(1):
        raise _other_length(path, shape, dtype, "more")
    if not dtype.isnative:
        array = array.byteswap(inplace=True).view(dtype.newbyteorder("="))
    return array


def _other_length(
    path: str, shape: tuple[int, ...], dtype: np.dtype[Any], found: str
) -> SourceError:
    wanted = math.prod(shape) * dtype.itemsize
    return SourceError(
        f"{path}: its head says {shape} of {dtype.name}, which is {wanted:,} bytes, but it "
        f"holds {found}. Fetch the file again."
    )
