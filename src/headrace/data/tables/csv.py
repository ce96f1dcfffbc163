"""CSV files as a dataset of features and target."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch

from headrace.data.columns import columns
from headrace.data.compose import Source
from headrace.data.gatherer import Array, Gatherer
from headrace.data.mapped import MappedFiles
from headrace.data.tables.arrow import Missing, check_missing
from headrace.data.tables.cache import (
    Memory,
    Sink,
    check_unchanged,
    converted,
    default_directory,
    describe,
    entry_of,
)
from headrace.data.tables.columns import places
from headrace.data.tables.csv_convert import convert
from headrace.data.tables.csv_plan import Dtype, Form, Wanted, header, make_plan
from headrace.errors import OptionError

Path: TypeAlias = str | os.PathLike[str]
CacheDir: TypeAlias = Path | Literal[False] | None

NULL_VALUES = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
SMALL_BYTES = 1 << 26  # up to here a table is read into memory, unless told otherwise

_DTYPES: dict[torch.dtype, Dtype] = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.int64: "int64",
}


class CSVDataset(Source):
    """Rows of CSV files: a tensor of features, and the target.

    A sample is ``(features, target)``: a tensor of shape ``(features,)`` of type ``dtype`` and a
    scalar tensor. Without ``target=`` it is the features alone. Batches are gathered without
    Python per sample.

    What a column is, its first 1,000 rows decide. Numbers are numbers; ``true`` and ``false`` are
    1 and 0; other text is categories, numbered from 0 in sorted order. A target of whole numbers,
    truth values or categories is int64, one of other numbers has type ``dtype``.

    Args:
        path: a file, or several with the same columns.
        features: names of the columns in a sample's tensor, in this order; default all but the
            target.
        target: name of the target's column; None for no target.
        dtype: type of the features: ``torch.float32``, ``float64`` or ``int64``.
        target_dtype: type of the target, where it is not to be decided as above.
        missing: "error", or the number to put where a feature is missing. A missing category has
            code -1, whatever the number. A missing target is always an error.
        categories: names of columns that are text even where they look like numbers; or a dict
            from name to the categories in the order of their codes, as another dataset's
            :attr:`categories`. A value that is not among them is then an error.
        null_values: fields that say that a value is missing. NaN always does.
        separator: one character between fields.
        has_header: whether the first line has the names. Without, they are ``column_1`` and so on.
        cache_dir: where the converted table is kept, which makes the next start quick, and lets it
            be larger than memory. None reads files of up to 64 MiB in all into memory, and keeps
            larger ones in ``~/.cache/headrace/tables``; False always reads into memory.

    Attributes:
        feature_names: names of the features.
        target_name: name of the target, or None.
        categories: a dict from the name of each column of categories to these.
        classes: the categories of the target; None if it is no column of text.
        features: the features of all rows, read-only, of shape ``(rows, features)``.
        targets: the targets of all rows, of shape ``(rows,)``; None without a target.

    Raises:
        SourceError: a file that is not what it should be: ragged rows, wrong types, no UTF-8,
            empty, a missing value. It names file, line and column.
        MissingColumnError: a column that is not there.
        SourceChangedError: a file that changed while it was read.
        OSError: no file, or no room for the converted table.
    """

    def __init__(
        self,
        path: Path | Sequence[Path],
        *,
        features: str | Sequence[str] | None = None,
        target: str | None = None,
        dtype: torch.dtype = torch.float32,
        target_dtype: torch.dtype | None = None,
        missing: Missing = "error",
        categories: Sequence[str] | Mapping[str, Sequence[str] | None] = (),
        null_values: Sequence[str] = NULL_VALUES,
        separator: str = ",",
        has_header: bool = True,
        cache_dir: CacheDir = None,
    ) -> None:
        self._paths = paths_of(path)
        self._form = Form(_separator(separator), has_header, tuple(null_values))
        self._wanted = Wanted(
            _names(features),
            target,
            _dtype(dtype),
            check_missing(missing),
            _known(categories),
            None if target_dtype is None else _dtype(target_dtype),
        )
        whole = missing == "error" or float(missing).is_integer()
        if dtype == torch.int64 and not whole:
            raise OptionError(
                f"missing={missing} is no value of dtype=torch.int64. Write missing=0."
            )
        self._key = describe(self._paths, self._options())
        self._cache = cache_directory(cache_dir, sum(size for _, size, _ in self._key["files"]))
        self._load()

    def _options(self) -> dict[str, Any]:
        wanted = self._wanted
        return {
            "form": [self._form.separator, self._form.has_header, self._form.null_values],
            "features": wanted.features,
            "target": wanted.target,
            "dtypes": [wanted.dtype, wanted.target_dtype],
            "missing": repr(wanted.missing),  # NaN is no JSON
            "known": dict(sorted(wanted.known.items())),
        }

    def _load(self) -> None:
        if self._cache is None:
            memory = Memory()
            extra = self._convert(memory)
            check_unchanged(self._key)
            arrays = memory.arrays()
        else:
            entry = entry_of(self._cache, self._key)
            arrays, extra = converted(entry, self._key, self._convert)
        self.features: Array = arrays["features"]
        self.targets: Array | None = arrays.get("target")
        self.features.flags.writeable = False
        self._files = MappedFiles(arrays.values())
        self.feature_names: tuple[str, ...] = tuple(extra["features"])
        self.target_name = self._wanted.target
        self.categories = {name: tuple(texts) for name, texts in extra["categories"].items()}

    def _convert(self, sink: Sink) -> dict[str, Any]:
        first = self._paths[0]
        plan = make_plan(first, header(first, self._form), self._form, self._wanted)
        return convert(self._paths, plan, sink)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The categories of the target, by their codes; None if it is no column of text."""
        return None if self.target_name is None else self.categories.get(self.target_name)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.features)

    def __getitem__(self, index: int) -> Any:
        """Return a row's features, with its target if there is one."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return the rows at ``indices``."""
        found = places(indices, len(self), "CSVDataset")
        self._files.check()
        features = torch.from_numpy(self.features.take(found, 0))
        if self.targets is None:
            return list(features.unbind())
        targets = torch.from_numpy(self.targets.take(found, 0))
        return list(zip(features.unbind(), targets.unbind(), strict=True))

    def __gather__(self) -> Gatherer | None:
        """Join the gather protocol."""
        return columns(self.features if self.targets is None else (self.features, self.targets))

    def _identity(self) -> str:
        return json.dumps(self._key, sort_keys=True)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what was asked for, not what was read."""
        return {
            k: v for k, v in self.__dict__.items() if k not in ("features", "targets", "_files")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()  # of the same key: what was converted, or the same file

    def __repr__(self) -> str:
        target = "" if self.target_name is None else f", target={self.target_name!r}"
        return f"CSVDataset({len(self):,} rows of {len(self.feature_names)} features{target})"


def paths_of(path: Path | Sequence[Path]) -> tuple[str, ...]:
    """Return one path or several as text.

    Raises:
        OptionError: there are none.
    """
    several = [path] if isinstance(path, (str, os.PathLike)) else path
    paths = tuple(os.fspath(p) for p in several)
    if not paths:
        raise OptionError("there are no files to read: the list of paths is empty.")
    return paths


def cache_directory(cache_dir: CacheDir, size_bytes: int) -> str | None:
    """Return where a converted table is kept, None for memory."""
    if cache_dir is False:
        return None
    if cache_dir is None:
        return None if size_bytes <= SMALL_BYTES else os.fspath(default_directory())
    return os.path.abspath(cache_dir)


def _separator(separator: str) -> str:
    if len(separator) != 1 or not separator.isascii() or separator in '"\r\n':
        raise OptionError(f"separator= is one ASCII character, got {separator!r}. Write ';'.")
    return separator


def _names(features: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if features is None:
        return None
    names = (features,) if isinstance(features, str) else tuple(features)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        what = f"has {twice[0]!r} twice" if twice else "is empty"
        raise OptionError(f"features= {what}. Write each column's name once.")
    return names


def _dtype(dtype: torch.dtype) -> Dtype:
    if dtype not in _DTYPES:
        raise OptionError(
            f"dtype= is torch.float32, torch.float64 or torch.int64, got {dtype}. Convert the "
            f"batch to smaller types: x.to(torch.float16)."
        )
    return _DTYPES[dtype]


def _known(categories: Any) -> dict[str, tuple[str, ...] | None]:
    if isinstance(categories, str):
        categories = (categories,)
    if not isinstance(categories, Mapping):
        return dict.fromkeys(categories)
    return {n: None if known is None else tuple(known) for n, known in categories.items()}
