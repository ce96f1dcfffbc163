"""Samples as bytes and back, without pickling: a header in JSON, then the memory of the arrays.

::

    magic | CRC-32 of the rest | length of the header | header | padding | array | padding | array

The numbers are little-endian, 4 bytes each; arrays begin at multiples of 64 bytes. The header is
the sample, in which each container and each array is a list of its kind and what it takes to make
it, and strings, numbers and None are themselves.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from typing import Any

import numpy as np
import torch

_MAGIC = b"hrs1"
_HEAD = struct.Struct("<4sII")
_CHECKED_FROM = 8  # behind magic and checksum
_ALIGN = 64
_PLAIN = (str, int, float, bool, type(None))
_BYTES = np.dtype(np.uint8)


class NotKeptError(Exception):
    """A value that has no place in a record; the text says which, and what to write."""


class DamagedRecordError(Exception):
    """Bytes that are no whole record."""


def pack(sample: Any) -> bytearray:
    """Return a sample as bytes.

    It may hold dense CPU tensors, NumPy arrays and scalars, strings, bytes, numbers and None, in
    dicts, lists and tuples.

    Raises:
        NotKeptError: it holds something else.
    """
    memories: list[Any] = []
    header = json.dumps(_described(sample, memories), separators=(",", ":")).encode()
    record = bytearray(_HEAD.size) + header
    for memory in memories:
        record += bytes(-len(record) % _ALIGN)
        record += memory.tobytes()
    _HEAD.pack_into(record, 0, _MAGIC, 0, len(header))
    struct.pack_into("<I", record, 4, zlib.crc32(memoryview(record)[_CHECKED_FROM:]))
    return record


def unpack(record: bytearray) -> Any:
    """Return the sample of a record; its arrays and tensors are views of ``record``.

    Raises:
        DamagedRecordError: it is not whole.
    """
    if len(record) < _HEAD.size:
        raise DamagedRecordError("cut short")
    magic, checksum, length = _HEAD.unpack_from(record)
    if magic != _MAGIC or checksum != zlib.crc32(memoryview(record)[_CHECKED_FROM:]):
        raise DamagedRecordError("not what was written")
    header = json.loads(record[_HEAD.size : _HEAD.size + length])
    return _Maker(record, _HEAD.size + length).make(header)


def _described(value: Any, memories: list[Any]) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is dict and all(type(key) in _PLAIN for key in value):
        return ["dict", [[key, _described(part, memories)] for key, part in value.items()]]
    if kind is list or kind is tuple:
        return [kind.__name__, [_described(part, memories) for part in value]]
    if kind is bytes:
        memories.append(np.frombuffer(value, _BYTES))
        return ["bytes", len(value)]
    if kind is torch.Tensor and _is_plain(value):
        memories.append(value.contiguous().reshape(-1).view(torch.uint8).numpy())
        return ["tensor", str(value.dtype).removeprefix("torch."), list(value.shape)]
    if (kind is np.ndarray or isinstance(value, np.generic)) and value.dtype.kind in "biufcSUmM":
        memories.append(value)
        return ["array" if kind is np.ndarray else "scalar", value.dtype.str, list(value.shape)]
    raise NotKeptError(
        f"{kind.__module__}.{kind.__qualname__} is not kept in a file: nothing read from one is "
        f"ever unpickled. Samples may hold dense CPU tensors without gradient, arrays, strings, "
        f"bytes and numbers, in dicts, lists and tuples. Write cached(dataset.map(fn), ...) with a "
        f"function that makes such samples, or cached(dataset, memory_bytes)."
    )


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not (tensor.requires_grad or tensor.is_quantized or tensor.is_nested)
        and not (tensor.is_conj() or tensor.is_neg())
    )


class _Maker:
    """Makes the values of a record in the order in which their memory stands in it."""

    def __init__(self, record: bytearray, place: int) -> None:
        self._record = record
        self._place = place

    def make(self, described: Any) -> Any:
        if not isinstance(described, list):
            return described
        kind, about, *shape = described
        if kind == "dict":
            return {key: self.make(part) for key, part in about}
        if kind in ("list", "tuple"):
            parts = [self.make(part) for part in about]
            return parts if kind == "list" else tuple(parts)
        if kind == "bytes":
            start = self._take(about)
            return bytes(self._record[start : start + about])
        if kind == "tensor":
            return self._tensor(getattr(torch, about), shape[0])
        return self._array(np.dtype(about), shape[0], scalar=kind == "scalar")

    def _take(self, size_bytes: int) -> int:
        start = self._place + -self._place % _ALIGN
        self._place = start + size_bytes
        return start

    def _tensor(self, dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
        count = math.prod(shape)
        start = self._take(count * dtype.itemsize)
        if not count:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._record, dtype=dtype, count=count, offset=start).reshape(shape)

    def _array(self, dtype: np.dtype[Any], shape: list[int], *, scalar: bool) -> Any:
        count = math.prod(shape)
        start = self._take(count * dtype.itemsize)
        if not count or not dtype.itemsize:
            array: Any = np.empty(shape, dtype)
        else:
            array = np.frombuffer(self._record, dtype, count, start).reshape(shape)
        return array[()] if scalar else array
