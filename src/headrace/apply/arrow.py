"""Results streamed to an Arrow file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.apply.rows import Column
from headrace.apply.sinks import Sink, numpy_dtype, part_path
from headrace.errors import OptionError, StateError
from headrace.extras import import_extra

# An Arrow file is 8 bytes of magic, then a stream, then a footer with the places of its batches.
_STREAM_STARTS = 8


class Arrow(Sink):
    """One ``.arrow`` file (the IPC file format), a record batch for each call of the function.

    Rows with a shape are fixed-size lists, nested for several dimensions.
    """

    def __init__(self, out: Path) -> None:
        self._arrow = import_extra("pyarrow", "tables")
        self._ipc = import_extra("pyarrow.ipc", "tables")
        self._out = out
        self._file: Any = None
        self._writer: Any = None

    def begin(self, columns: Sequence[Column], rows: int) -> None:
        """Open the file; rows of an earlier run are copied: without a footer none can be added."""
        self._schema = self._arrow.schema([(column.name, self._type(column)) for column in columns])
        path = part_path(self._out)
        new = path.with_name(path.name + ".new") if rows else path
        self._file = open(new, "wb")  # noqa: SIM115
        self._writer = self._ipc.new_file(self._file, self._schema)
        if rows:
            self._copy(path, rows)
            self.flush()
            os.replace(new, path)

    def _copy(self, path: Path, rows: int) -> None:
        with open(path, "rb") as file:
            file.seek(_STREAM_STARTS)
            try:
                batches = self._ipc.open_stream(file)
                while rows > 0:
                    batch = batches.read_next_batch()
                    self._writer.write_batch(batch)
                    rows -= batch.num_rows
            except (self._arrow.ArrowInvalid, OSError, StopIteration) as error:
                raise StateError(
                    f"{path} does not hold the rows that were written to it ({error}): it was cut "
                    f"or changed. Delete it to start over."
                ) from error

    def _type(self, column: Column) -> Any:
        dtype = numpy_dtype(column, "an Arrow file", "safetensors")
        if dtype.kind == "c":
            raise OptionError(
                f"{column.name} is {column.dtype}, which an Arrow file cannot hold. Return its "
                f"parts: torch.view_as_real(result)."
            )
        if 0 in column.shape:  # Arrow divides by the length of its lists
            raise OptionError(
                f"{column.name} has rows of shape {column.shape}, which an Arrow file cannot hold. "
                f"Leave out what has no elements."
            )
        kind = self._arrow.from_numpy_dtype(dtype)
        for length in reversed(column.shape):
            kind = self._arrow.list_(kind, length)
        return kind

    def write(self, parts: Sequence[torch.Tensor]) -> None:
        """Write one record batch."""
        columns = [
            self._column(part, kind) for part, kind in zip(parts, self._schema.types, strict=True)
        ]
        self._writer.write_batch(self._arrow.record_batch(columns, schema=self._schema))

    def _column(self, part: torch.Tensor, kind: Any) -> Any:
        kinds = [kind]
        while isinstance(kinds[-1], self._arrow.FixedSizeListType):
            kinds.append(kinds[-1].value_type)
        flat = part.contiguous().view(-1).numpy()
        # From buffers: pyarrow.array() would import pandas, which takes seconds.
        bits = np.packbits(flat, bitorder="little") if flat.dtype == bool else flat
        buffers = [None, self._arrow.py_buffer(bits)]
        values = self._arrow.Array.from_buffers(kinds.pop(), len(flat), buffers)
        while kinds:
            values = self._arrow.FixedSizeListArray.from_arrays(values, type=kinds.pop())
        return values

    def flush(self) -> None:
        """Bring the record batches to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> Path:
        """Write the footer, and rename."""
        self._writer.close()
        self.flush()
        self._file.close()
        os.replace(part_path(self._out), self._out)
        return self._out

    def close(self) -> None:
        """Close the file; without its footer it waits for another run."""
        if self._file is not None:
            self._file.close()
