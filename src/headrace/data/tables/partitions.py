"""Parquet files in directories, and columns that the names of directories hold: ``year=2020/``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from headrace.data.tables.arrow import Place
from headrace.data.tables.nested import Column
from headrace.data.tables.pieces import Pieces
from headrace.errors import OptionError, SourceError
from headrace.extras import import_extra

_MISSING = "__HIVE_DEFAULT_PARTITION__"
_WHOLE = re.compile(r"-?\d{1,18}", re.ASCII)


@dataclass(frozen=True)
class Partitions:
    """The columns that the directories of files hold: a text for each file, None where missing."""

    columns: Mapping[str, Sequence[str | None]] = field(default_factory=dict)

    def kind(self, name: str) -> Any:
        """Return the Arrow type of a column: int64 where all values are whole numbers."""
        pa = import_extra("pyarrow", "tables")
        return pa.int64() if self._is_whole(name) else pa.large_string()

    def _is_whole(self, name: str) -> bool:
        known = [value for value in self.columns[name] if value is not None]
        return bool(known) and all(_WHOLE.fullmatch(value) for value in known)

    def column(self, file: int, rows: int, place: Place) -> Column:
        """Return the rows of a column in one file.

        Raises:
            SourceError: its value is missing, and ``missing=`` does not say what to put there.
        """
        value = self.columns[place.name][file]
        if value is None and place.missing == "error":
            raise place.missing_at(0)
        if self._is_whole(place.name):
            number = place.missing if value is None else int(value)
            if not float(number).is_integer():
                raise place.fault_at(
                    0, f"missing={number!r} is no whole number. Write one, as missing=-1."
                )
            return np.full(rows, int(number), np.int64)
        text = np.frombuffer((value or "").encode(), np.uint8)
        return Pieces("text", np.arange(rows + 1, dtype=np.int64) * len(text), np.tile(text, rows))


def parquet_files(path: Any) -> tuple[list[str], Partitions]:
    """Return the files of a path, of several, or of a directory (``.parquet``, by name).

    Raises:
        SourceError: a directory without any, or one whose files lie in directories of other names.
        OptionError: no path.
    """
    found = _files(path)
    if not found:
        raise OptionError("there are no files to read: the list of paths is empty.")
    first, names = found[0][0], [*found[0][1]]
    for file, values in found:
        if [*values] != names:
            raise SourceError(
                f"{file}: its directories hold the columns {_list(values)}, those of {first} "
                f"{_list(names)}. Give the files of each kind alone, as a list of files."
            )
    columns = {name: [values[name] for _, values in found] for name in names}
    return [file for file, _ in found], Partitions(columns)


def _files(path: Any) -> list[tuple[str, dict[str, str | None]]]:
    if not isinstance(path, (str, os.PathLike)):
        return [file for one in path for file in _files(one)]
    if not os.path.isdir(path):
        return [(os.fspath(path), {})]
    root = Path(path)
    found = sorted(
        file
        for file in root.rglob("*.parquet")
        if file.is_file() and not any(part[0] in "._" for part in file.relative_to(root).parts)
    )
    if not found:
        raise SourceError(f"{root} has no .parquet files, nor has a directory in it.")
    return [(str(file), _values(file.relative_to(root).parts[:-1])) for file in found]


def _values(directories: Sequence[str]) -> dict[str, str | None]:
    values: dict[str, str | None] = {}
    for directory in directories:
        name, is_column, value = directory.partition("=")
        if is_column:
            text = unquote(value)
            values[unquote(name)] = None if text == _MISSING else text
    return values


def _list(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"
