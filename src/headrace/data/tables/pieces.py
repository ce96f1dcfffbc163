"""Texts, byte strings and arrays of any length as values and offsets."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.data.gatherer import Array, IndexArray

Offsets: TypeAlias = npt.NDArray[np.int64]


class Pieces:
    """A column of rows of any length: texts, byte strings, or arrays.

    Args:
        kind: what a row is.
        offsets: int64 of shape ``(rows + 1,)``: row i is ``values[offsets[i]:offsets[i + 1]]``.
        values: the rows, one behind the other; uint8 for texts (UTF-8) and byte strings.
    """

    def __init__(
        self, kind: Literal["text", "bytes", "array"], offsets: Offsets, values: Array
    ) -> None:
        self.kind = kind
        self.offsets = offsets
        self.values = values
        self._make: Any = {"text": _text, "bytes": Array.tobytes, "array": np.array}[kind]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, indices: IndexArray) -> list[Any]:
        """Return the rows at ``indices``, each in ``[0, len)``."""
        starts, ends = self.offsets[indices].tolist(), self.offsets[indices + 1].tolist()
        make, values = self._make, self.values.view(np.ndarray)
        return [make(values[start:end]) for start, end in zip(starts, ends, strict=True)]


def _text(row: Array) -> str:
    return row.tobytes().decode()
