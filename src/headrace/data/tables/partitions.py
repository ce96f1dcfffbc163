"""Parquet files in directories, and columns that the names of directories hold: ``year=2020/``."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote

import numpy as np

from headrace.data.shards.addresses import find_shards, written_out
from headrace.data.stores.remote import Object, Stores, is_remote, shown
from headrace.data.tables.arrow import Place
from headrace.data.tables.nested import Column
from headrace.data.tables.pieces import Pieces
from headrace.errors import OptionError, SourceError
from headrace.extras import import_extra

_MISSING = "__HIVE_DEFAULT_PARTITION__"
_ENDING = ".parquet"
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


def parquet_files(path: Any, stores: Stores) -> tuple[list[str], Partitions, dict[str, Object]]:
    """Return the files of a path, of several, or of a directory (``.parquet``, by name).

    Those in stores are named as they are shown, and there is an object for each.

    Raises:
        SourceError: a directory without any, or one whose files lie in directories of other names.
        OptionError: no path.
    """
    objects: dict[str, Object] = {}
    found = _files(path, stores, objects)
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
    return [file for file, _ in found], Partitions(columns), objects


_Found: TypeAlias = list[tuple[str, dict[str, str | None]]]


def _files(path: Any, stores: Stores, objects: dict[str, Object]) -> _Found:
    if not isinstance(path, (str, os.PathLike)):
        return [file for one in path for file in _files(one, stores, objects)]
    address = os.fspath(path)
    if is_remote(address):
        return _in_stores(address, stores, objects)
    if not os.path.exists(path):
        return [(file, {}) for one in written_out(address) for file in _matching(one)]
    if not os.path.isdir(path):
        return [(address, {})]
    root = Path(path)
    found = sorted(
        file
        for file in root.rglob("*.parquet")
        if file.is_file() and not any(part[0] in "._" for part in file.relative_to(root).parts)
    )
    if not found:
        raise SourceError(f"{root} has no .parquet files, nor has a directory in it.")
    return [(str(file), _values(file.relative_to(root).parts[:-1])) for file in found]


def _matching(address: str) -> list[str]:
    return (sorted(glob.glob(address, recursive=True)) if glob.has_magic(address) else []) or [
        address
    ]


def _in_stores(address: str, stores: Stores, objects: dict[str, Object]) -> _Found:
    """Return the files that an address names, or that are below it, with their directories' values.

    Raises:
        SourceError: there are none.
        OSError: there is no such object, or a store refuses access or does not answer.
    """
    is_pattern = glob.has_magic(address) or "{" in address or address.startswith("http")
    missing: FileNotFoundError | None = None
    if is_pattern or address.endswith(_ENDING):
        try:
            places = find_shards(address, _ENDING, stores)
        except FileNotFoundError as error:
            if is_pattern:
                raise
            missing = error  # Spark calls directories x.parquet too
        else:
            abouts = [place.about for place in places if place.about is not None]
            objects.update({shown(about.address): about for about in abouts})
            return [(shown(about.address), {}) for about in abouts]
    base = address.rstrip("/") + "/"
    found: _Found = []
    for about in stores.below(base):
        *directories, name = about.address.removeprefix(base).split("/")
        is_hidden = any(part[:1] in "._" for part in (*directories, name))
        if name.endswith(_ENDING) and not is_hidden:
            objects[shown(about.address)] = about
            found.append((shown(about.address), _values(directories)))
    if found:
        return found
    raise missing or SourceError(
        f"{shown(address)} has no {_ENDING} files, nor has what is below it."
    )


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
