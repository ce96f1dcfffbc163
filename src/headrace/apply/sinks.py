"""Where results go: to memory, or to a file that grows with them."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from headrace.apply.rows import Column
from headrace.errors import OptionError, StateError
from headrace.tree import NUMPY_DTYPES


class Sink(ABC):
    """Takes rows in order, and makes what is returned of them."""

    @abstractmethod
    def begin(self, columns: Sequence[Column], rows: int) -> None:
        """Prepare for columns; the first ``rows`` rows were written by an earlier run."""

    @abstractmethod
    def write(self, parts: Sequence[torch.Tensor]) -> None:
        """Append rows: a CPU tensor of shape (rows, ...) for each column."""

    @abstractmethod
    def flush(self) -> None:
        """Make sure that what was written is on the disk."""

    @abstractmethod
    def finish(self) -> Any:
        """Return the result: tensors, or the path of the finished file."""

    def close(self) -> None:  # noqa: B027  (memory holds nothing open)
        """Close what is open; what was written stays."""


class Memory(Sink):
    """Tensors that grow; where the number of rows is known they have their size at once.

    ``arrays``: NumPy arrays are to be made of them.
    """

    def __init__(self, length: int | None, arrays: bool) -> None:
        self._length = length or 0
        self._arrays = arrays
        self._rows = 0

    def begin(self, columns: Sequence[Column], rows: int) -> None:
        """Allocate the tensors."""
        assert rows == 0
        for column in columns if self._arrays else ():
            numpy_dtype(column, "an array", "")
        self._buffers = [
            torch.empty((self._length, *c.shape), dtype=getattr(torch, c.dtype), device="cpu")
            for c in columns
        ]

    def write(self, parts: Sequence[torch.Tensor]) -> None:
        """Copy the rows in."""
        stop = self._rows + len(parts[0])
        for number, part in enumerate(parts):
            buffer = self._buffers[number]
            if stop > len(buffer):
                larger = buffer.new_empty((max(stop, 2 * len(buffer)), *buffer.shape[1:]))
                larger[: self._rows] = buffer[: self._rows]
                self._buffers[number] = buffer = larger
            buffer[self._rows : stop] = part
        self._rows = stop

    def flush(self) -> None:
        """Do nothing."""

    def finish(self) -> list[Any]:
        """Return the tensors, or arrays."""
        whole = [b if len(b) == self._rows else b[: self._rows].clone() for b in self._buffers]
        return [b.numpy() for b in whole] if self._arrays else whole


class _Raw(Sink):
    """Files of plain bytes: a header of fixed length, and behind it the rows.

    The first column stands in ``<out>.part``, further ones in ``<out>.part.1`` and so on, which are
    appended at the end: how long each is, is known only then.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._files: list[BinaryIO] = []

    @abstractmethod
    def _header(self, rows: int) -> bytes:
        """Return the header, as long for any number of rows."""

    def begin(self, columns: Sequence[Column], rows: int) -> None:
        """Open the files, cut to the rows that count."""
        self._columns, self._rows = columns, rows
        for number, column in enumerate(columns):
            path = part_path(self._out, number)
            start = len(self._header(0)) if number == 0 else 0
            wanted = start + rows * _row_bytes(column)
            file = open(path, "r+b" if rows else "wb", buffering=1 << 20)  # noqa: SIM115
            self._files.append(file)
            if rows == 0:
                file.write(bytes(start))
            elif os.fstat(file.fileno()).st_size < wanted:
                raise StateError(
                    f"{path} should hold {wanted:,} bytes and is shorter: it was cut. "
                    f"Delete it to start over."
                )
            else:
                file.truncate(wanted)  # behind the last note of progress, rows may be torn
                file.seek(wanted)

    def write(self, parts: Sequence[torch.Tensor]) -> None:
        """Append the rows' bytes."""
        for file, part in zip(self._files, parts, strict=True):
            flat = part.contiguous().view(-1)
            known = flat.dtype in NUMPY_DTYPES
            file.write((flat if known else flat.view(torch.uint8)).numpy().data)
        self._rows += len(parts[0])

    def flush(self) -> None:
        """Bring the bytes to the disk."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> Path:
        """Put columns together under a header that says how many rows there are, and rename."""
        first, *more = self._files
        for file in more:
            file.flush()
            with open(file.name, "rb") as column:
                shutil.copyfileobj(column, first, 1 << 20)
        first.seek(0)
        first.write(self._header(self._rows))
        self.flush()
        self.close()
        os.replace(part_path(self._out, 0), self._out)
        for number in range(1, len(self._files)):
            part_path(self._out, number).unlink()
        return self._out

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


class Npy(_Raw):
    """One ``.npy`` file of one column."""

    def begin(self, columns: Sequence[Column], rows: int) -> None:
        """Open the file.

        Raises:
            OptionError: several columns, or a type that NumPy does not have.
        """
        (column, *more) = columns
        if more:
            names = ", ".join(c.name for c in columns)
            raise OptionError(
                f"the function returns {len(columns)} tensors ({names}), and a .npy file holds one "
                f"array. Write out='{self._out.stem}.safetensors', or '{self._out.stem}.arrow'."
            )
        self._dtype = numpy_dtype(column, "a .npy file", "safetensors")
        self._shape = column.shape
        super().begin(columns, rows)

    def _header(self, rows: int) -> bytes:
        # NumPy pads its header so that the first dimension may grow to 21 digits in place.
        file = io.BytesIO()
        description = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": description, "fortran_order": False, "shape": (rows, *self._shape)}
        np.lib.format.write_array_header_1_0(file, header)
        return file.getvalue()


class Safetensors(_Raw):
    """One ``.safetensors`` file; its format is 8 bytes of length, a JSON header, and the bytes.

    See https://huggingface.co/docs/safetensors: the header may end in spaces. Columns with large
    elements come first, so that all of them are aligned.
    """

    def begin(self, columns: Sequence[Column], rows: int) -> None:
        """Open the files."""
        self._order = sorted(range(len(columns)), key=lambda n: -_item_bytes(columns[n]))
        super().begin([columns[n] for n in self._order], rows)

    def write(self, parts: Sequence[torch.Tensor]) -> None:
        """Append the rows' bytes."""
        super().write([parts[n] for n in self._order])

    def _header(self, rows: int) -> bytes:
        room = len(self._json(10**15)) + 8
        room += -room % 8  # tensors begin at a multiple of 8
        return (room - 8).to_bytes(8, "little") + self._json(rows).ljust(room - 8)

    def _json(self, rows: int) -> bytes:
        entries, stop = {}, 0
        for column in self._columns:
            start, stop = stop, stop + rows * _row_bytes(column)
            entries[column.name] = {
                "dtype": _safetensors_name(column),
                "shape": [rows, *column.shape],
                "data_offsets": [start, stop],
            }
        return json.dumps(entries, separators=(",", ":")).encode()


def part_path(out: Path, number: int = 0) -> Path:
    """Return where a column is kept until all is there."""
    return out.with_name(f"{out.name}.part" + (f".{number}" if number else ""))


def numpy_dtype(column: Column, where: str, instead: str) -> np.dtype[Any]:
    """Return a column's type as NumPy has it.

    Raises:
        OptionError: it has none: bfloat16 and the types of 8 bits.
    """
    dtype = getattr(torch, column.dtype)
    if dtype not in NUMPY_DTYPES:
        raise OptionError(
            f"{column.name} is {column.dtype}, which {where} cannot hold. Return it as "
            f"float32 (result.float())" + (f", or write out='….{instead}'." if instead else ".")
        )
    return NUMPY_DTYPES[dtype]


def _row_bytes(column: Column) -> int:
    return math.prod(column.shape) * _item_bytes(column)


def _item_bytes(column: Column) -> int:
    dtype: torch.dtype = getattr(torch, column.dtype)
    return dtype.itemsize


# The names of types in the format; complex128 has none.
_NAMES = {
    "bool": "BOOL",
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    "bfloat16": "BF16",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}


def _safetensors_name(column: Column) -> str:
    if column.dtype not in _NAMES:
        raise OptionError(
            f"{column.name} is {column.dtype}, which a .safetensors file cannot hold. Return it as "
            f"another type: result.float(), or torch.view_as_real(result)."
        )
    return _NAMES[column.dtype]
