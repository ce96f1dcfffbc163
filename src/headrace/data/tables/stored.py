"""Columns that are written a piece at a time, and read back: a JSON says what each is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from headrace.data.gatherer import Array
from headrace.data.images.decoder import ImageDecoder
from headrace.data.tables.cache import Sink
from headrace.data.tables.nested import Column, Images, Lists, Maps, Structs
from headrace.data.tables.pieces import Offsets, Pieces

_NUMBER = {"kind": "number"}


class Writer:
    """Adds columns to those that a sink has of the same names."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._totals: dict[str, int] = {}
        self._widths: dict[str, set[int]] = {}  # lengths of lists of numbers, two at most
        self._made_of: dict[str, Any] = {}

    def append(self, name: str, column: Column) -> None:
        """Add rows to the end of a column."""
        self._made_of[name] = self._append(name, column)

    def made_of(self, name: str) -> Any:
        """Return what a column is made of, as JSON holds it."""
        found = self._made_of.get(name, _NUMBER)
        widths = self._widths.get(name, set())
        if found["kind"] == "array" and len(widths) == 1:
            return {**found, "width": next(iter(widths))}
        return found

    def _append(self, name: str, column: Column) -> Any:
        if isinstance(column, Pieces):
            ends = column.offsets
            self._append_offsets(name, ends)
            self._sink.append(name, column.values[ends[0] : ends[-1]])
            widths = self._widths.setdefault(name, set())
            if column.kind == "array" and len(widths) < 2:
                widths.update(np.unique(np.diff(ends))[:2].tolist())
            return {"kind": column.kind}
        if isinstance(column, Images):
            return {"kind": "image", "name": column.name, "of": self._append(name, column.encoded)}
        if isinstance(column, Maps):
            return {"kind": "map", "of": self._append(name, column.entries)}
        if isinstance(column, Lists):
            self._append_offsets(name, column.offsets)
            return {"kind": "list", "of": self._append(_inside(name, "[]"), column.values)}
        if isinstance(column, Structs):
            parts = column.fields.items()
            return {
                "kind": "struct",
                "of": {key: self._append(_inside(name, key), part) for key, part in parts},
            }
        self._sink.append(name, column)
        return _NUMBER

    def _append_offsets(self, name: str, ends: Offsets) -> None:
        total = self._totals.get(name, 0)
        offsets = ends - ends[0] + total
        first = 0 if not self._sink.has(_offsets(name)) else 1
        self._sink.append(_offsets(name), offsets[first:])
        self._totals[name] = int(offsets[-1])


class Reader:
    """Puts columns together of the arrays that a :class:`Writer` wrote."""

    def __init__(self, arrays: Mapping[str, Array], decoder: ImageDecoder | None) -> None:
        self._arrays = arrays
        self._decoder = decoder

    def column(self, name: str, made_of: Any, rows: int) -> Column:
        """Return a column of ``rows`` rows."""
        kind = made_of["kind"]
        if "of" not in made_of:
            return self._flat(name, made_of, rows)
        if kind == "image":
            assert self._decoder is not None
            encoded = self.column(name, made_of["of"], rows)
            assert isinstance(encoded, Pieces)
            return Images(encoded, made_of["name"], self._decoder)
        if kind == "map":
            entries = self.column(name, made_of["of"], rows)
            assert isinstance(entries, Lists)
            return Maps(entries)
        if kind == "list":
            offsets = self._arrays[_offsets(name)]
            values = self.column(_inside(name, "[]"), made_of["of"], int(offsets[-1]))
            return Lists(offsets, values)
        parts = made_of["of"].items()
        return Structs({k: self.column(_inside(name, k), p, rows) for k, p in parts}, rows)

    def _flat(self, name: str, made_of: Any, rows: int) -> Column:
        values = self._arrays.get(name, np.empty(0))
        if made_of["kind"] == "number":
            return values
        if "width" in made_of:
            return values.reshape(rows, made_of["width"])
        return Pieces(made_of["kind"], self._arrays[_offsets(name)], values)


def _offsets(name: str) -> str:
    return f"offsets of {name}"


def _inside(name: str, key: str) -> str:
    return f"{name}\0{key}"  # no name of a column holds that
