"""The columns of MDS shards: how a sample is divided into them, and what their bytes are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch

from headrace.data.images.decode import resized
from headrace.data.images.decoder import ImageDecoder, Wording, checked_size
from headrace.data.shards.decode import Decode
from headrace.errors import OptionError, SourceError
from headrace.extras import import_extra

Value: TypeAlias = Callable[[bytes, str], Any]

_SIZE_BYTES = 4
_SCALARS = (
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("float16", "float32", "float64"),
)
# An array whose type is not the same in all samples begins with this number.
_TYPES = {8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16"}
_TYPES |= {32: "uint32", 33: "int32", 34: "float32", 64: "uint64", 65: "int64", 66: "float64"}
_WORDING = Wording(
    'MDSDataset(..., decode={{"image": ImageDecoder({})}})', "Write the shard again."
)


@dataclass(frozen=True)
class Columns:
    """The columns of a shard, as its index lists them.

    Attributes:
        names: what they are called.
        encodings: what their bytes are.
        sizes: their bytes in each sample; None where samples differ.
    """

    names: tuple[str, ...]
    encodings: tuple[str, ...]
    sizes: tuple[int | None, ...]

    def split(self, data: bytes, where: str) -> list[bytes]:
        """Return the bytes of each column of a sample.

        Raises:
            SourceError: they are not as many as the sample says.
        """
        head = _SIZE_BYTES * self.sizes.count(None)
        found = iter(np.frombuffer(data[:head], "<u4").tolist() if len(data) >= head else ())
        sizes = [next(found, -1) if size is None else size for size in self.sizes]
        if head + sum(sizes) != len(data) or min(sizes, default=0) < 0:
            raise SourceError(
                f"{where} is damaged: its {len(data):,} bytes are not those of its columns. Copy "
                f"the shard again."
            )
        parts = []
        for size in sizes:
            parts.append(data[head : head + size])
            head += size
        return parts

    def values(self, decode: Decode, size: int | tuple[int, int] | None) -> list[tuple[str, Value]]:
        """Return what makes a value of each column's bytes.

        Raises:
            SourceError: a column of an unknown kind, or of pickles, which can run any code.
            OptionError: functions for columns that there are not.
        """
        own: Mapping[str, Any] = {} if isinstance(decode, bool) else decode
        for name in own:
            if name not in self.names:
                raise OptionError(
                    f"decode= has a function for {name!r}, and the columns are "
                    f"{', '.join(map(repr, self.names))}."
                )
        image = ImageDecoder(size, wording=_WORDING)
        made: list[tuple[str, Value]] = []
        for name, encoding in zip(self.names, self.encodings, strict=True):
            if name in own:
                made.append((name, partial(_by_own, name, own[name])))
            elif decode is False:
                made.append((name, _as_bytes))
            else:
                made.append((name, partial(_told, _value_of(name, encoding, image))))
        return made


def columns_of(names: Sequence[Any], encodings: Sequence[Any], sizes: Sequence[Any]) -> Columns:
    """Return the columns that an index lists.

    Raises:
        ValueError: it does not list them.
    """
    columns = Columns(
        tuple(map(str, names)),
        tuple(map(str, encodings)),
        tuple(None if size is None else int(size) for size in sizes),
    )
    if not columns.names or not len(columns.names) == len(columns.encodings) == len(columns.sizes):
        raise ValueError("columns without a name, a kind or a size")
    return columns


def _as_bytes(data: bytes, _where: str) -> bytes:
    return data


def _by_own(name: str, function: Callable[[bytes], Any], data: bytes, where: str) -> Any:
    try:
        return function(data)
    except Exception as error:
        error.add_note(f"headrace: in decode[{name!r}], of {where}")
        raise


def _told(value: Value, data: bytes, where: str) -> Any:
    try:
        return value(data, where)
    except (ImportError, MemoryError, SourceError):
        raise
    except Exception as error:  # whatever broken bytes make a parser raise
        raise SourceError(
            f"{where} cannot be decoded: {error}. Write the shard again, or "
            f'DataLoader(..., on_error="skip").'
        ) from error


def _value_of(name: str, encoding: str, image: ImageDecoder) -> Value:
    """Return what decodes one kind of column."""
    kind, _, given = encoding.partition(":")
    value: Value | None = None
    if encoding.startswith("list[") and encoding.endswith("]"):
        value = partial(_list, _value_of(name, encoding[5:-1], image), _SIZE_BYTES)
    elif encoding in ("jpeg_array", "jpegarray"):
        value = partial(_list, image, 0)
    elif encoding in ("jpeg", "png"):
        value = image
    elif encoding == "pil":
        value = partial(_pixels, checked_size(image.size))
    elif kind == "ndarray":
        value = partial(_array, *_type_and_shape(given))
    elif encoding in _SCALARS:
        value = partial(_scalar, np.dtype(encoding).newbyteorder("<"))
    elif encoding in _PLAIN:
        value = partial(_plain, _PLAIN[encoding])
    if value is not None:
        return value
    if encoding == "pkl":
        raise SourceError(
            f"the column {name!r} holds pickles, which may run any code when they are read, and "
            f"are not read here. If you trust them write decode={{{name!r}: pickle.loads}}; else "
            f"decode=False for bytes."
        )
    raise SourceError(
        f"the column {name!r} is of the kind {encoding!r}, which is unknown here. Write "
        f"decode={{{name!r}: my_function}}, or decode=False for bytes."
    )


def _plain(function: Callable[[bytes], Any], data: bytes, _where: str) -> Any:
    return function(data)


def _list(inner: Value, start: int, data: bytes, where: str) -> list[Any]:
    return [inner(part, where) for part in _several(data, start)]


def _text(data: bytes) -> str:
    return data.decode("utf-8")


def _int(data: bytes) -> int:
    [number] = np.frombuffer(data, "<i8").tolist()
    return int(number)


_PLAIN: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "str": _text,
    "int": _int,
    "json": json.loads,
    "str_int": lambda data: int(_text(data)),
    "str_float": lambda data: float(_text(data)),
    "str_decimal": lambda data: Decimal(_text(data)),
}


def _scalar(dtype: Any, data: bytes, _where: str) -> Any:
    [number] = np.frombuffer(data, dtype)
    return number


def _type_and_shape(given: str) -> tuple[str | None, tuple[int, ...] | None]:
    dtype, _, shape = given.partition(":")
    if dtype and dtype not in _TYPES.values():
        raise SourceError(f"a column holds arrays of {dtype!r}, a type that is unknown here.")
    return dtype or None, tuple(map(int, shape.split(","))) if shape else None


def _array(
    dtype: str | None, shape: tuple[int, ...] | None, data: bytes, _where: str
) -> np.ndarray[Any, Any]:
    """Return an array: its type, the number and type of its axes, and these, where they vary."""
    start = 0
    if dtype is None:
        dtype, start = _TYPES[data[0]], 1
    if shape is None:
        axes, width = divmod(data[start], 4)
        width = 2**width
        start += 1
        shape = tuple(np.frombuffer(data, f"<u{width}", axes, start).tolist())
        start += axes * width
    flat = np.frombuffer(data, np.dtype(dtype).newbyteorder("<"), prod(shape), start)
    if start + flat.nbytes != len(data):
        raise ValueError(f"an array of {shape} in {len(data) - start:,} bytes")
    return flat.reshape(shape).astype(dtype)  # a copy: bytes cannot be written


def _pixels(size: tuple[int, int] | None, data: bytes, _where: str) -> torch.Tensor:
    """Return an image that was stored as it lay in memory."""
    pillow = import_extra("PIL.Image", "images")
    width, height, mode_size = np.frombuffer(data, "<u4", 3).tolist()
    start = 3 * _SIZE_BYTES + mode_size
    mode = data[3 * _SIZE_BYTES : start].decode("ascii")
    rows = np.array(pillow.frombytes(mode, (width, height), data[start:]).convert("RGB"))
    return torch.from_numpy(rows if size is None else resized(rows, size)).permute(2, 0, 1)


def _several(data: bytes, start: int) -> list[bytes]:
    """Return the items of a list: how many, their sizes, and they."""
    [count] = np.frombuffer(data, "<u4", 1, start).tolist()
    start += _SIZE_BYTES
    sizes = np.frombuffer(data, "<u4", count, start).astype(np.int64)
    first = start + _SIZE_BYTES * count
    ends = [first, *(first + np.cumsum(sizes)).tolist()]
    if ends[-1] != len(data):
        raise ValueError(f"a list of {count} in {len(data):,} bytes")
    return [data[low:high] for low, high in pairwise(ends)]
