"""CSV files as a dataset of features and target."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, TypeAlias

import torch

from headrace.data.columns import columns
from headrace.data.compose import Source
from headrace.data.files import PathLike
from headrace.data.gatherer import Array, Gatherer
from headrace.data.mapped import MappedFiles
from headrace.data.tables.arrow import Missing, check_missing
from headrace.data.tables.cache import (
    CacheDir,
    Memory,
    Sink,
    cache_directory,
    check_unchanged,
    converted,
    describe,
    entry_of,
    paths_of,
)
from headrace.data.tables.columns import places
from headrace.data.tables.csv.convert import check_head, convert
from headrace.data.tables.csv.dates import given
from headrace.data.tables.csv.doubts import Doubt, of_head
from headrace.data.tables.csv.form import NULL_VALUES, checked_form
from headrace.data.tables.csv.plan import Dtype, Wanted, header, make_plan
from headrace.data.tables.csv.reading import READABLE
from headrace.data.tables.csv.sniff import find_separator
from headrace.data.text.known import check_text, first_bytes
from headrace.errors import OptionError, SourceError, SourceWarning
from headrace.notices import warn_user
from headrace.spelling import suggests_names

OnDoubt: TypeAlias = Literal["error", "warn", "ignore"]

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

    What a column is, its first 1,000 rows decide. Numbers are numbers; ``true`` and ``false``, in
    any case, are 1 and 0; other text is categories, numbered from 0 in sorted order, "yes" and "no"
    among them. A target of whole numbers, truth values or categories is int64, one of other numbers
    has type ``dtype``. What is probably no category (numbers in another notation, dates, another
    separator, a missing header) is an error that says what to write; what may be none (a name of
    its own in each row, ids, row numbers) is a :class:`SourceWarning`.

    Files compressed with gzip, zstd, bzip2 or xz are read, and UTF-16 with a byte order mark. Empty
    lines are no rows.

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
        dates: names of columns of dates or times; or a dict from name to format, as
            ``{"day": "%d.%m.%Y"}``, None where it is to be found. A date is days since 1970-01-01,
            a date with a time is seconds since then (UTC, where no zone is given), a time alone,
            or a duration, is seconds. :attr:`kinds` says which.
        null_values: fields that say that a value is missing. NaN always does.
        separator: one character between fields; None finds which of tab, ";", "|" and ",".
        has_header: whether the first line has the names. Without, they are ``column_1`` and so on.
            None: it has, and it is an error if it looks like a row.
        decimal: the character before decimals.
        thousands: the character between groups of digits; " " and "'" stand for those alike too.
        units: texts before or behind numbers that are left out, as "$", "%", "kg": 10% is 10.
        encoding: of the file, as "cp1252" or "latin-1"; a byte order mark says more than this.
        comment: how lines begin that are no rows, as "#".
        skipinitialspace: leave out spaces behind separators.
        on_doubt: "warn" makes warnings of what is probably not meant, and "ignore" is silent; both
            take such columns as they are read, text as categories.
        cache_dir: where the converted table is kept, which makes the next start quick, and lets it
            be larger than memory. None reads files of up to 64 MiB in all into memory, and keeps
            larger ones in ``~/.cache/headrace/tables``; False always reads into memory.

    Attributes:
        feature_names: names of the features.
        target_name: name of the target, or None.
        categories: a dict from the name of each column of categories to these.
        kinds: a dict from the name of each column to what its numbers are: "numbers", "whole
            numbers", "true or false", "categories", or the unit of a date.
        doubts: what may not be meant: for each the ``column`` (None: the file), the ``text``, and
            ``sure``, whether it is an error with ``on_doubt="error"``.
        classes: the categories of the target; None if it is no column of text.
        features: the features of all rows, read-only, of shape ``(rows, features)``.
        targets: the targets of all rows, of shape ``(rows,)``; None without a target.

    Raises:
        SourceError: a file that is not what it should be: ragged rows, wrong types, another
            encoding, empty, a missing value, text that is probably numbers. It names file, line or
            column, and what to write.
        MissingColumnError: a column that is not there.
        SourceChangedError: a file that changed while it was read.
        OSError: no file, or no room for the converted table.
    """

    @suggests_names
    def __init__(
        self,
        path: PathLike | Sequence[PathLike],
        *,
        features: str | Sequence[str] | None = None,
        target: str | None = None,
        dtype: torch.dtype = torch.float32,
        target_dtype: torch.dtype | None = None,
        missing: Missing = "error",
        categories: str | Sequence[str] | Mapping[str, Sequence[str] | None] = (),
        dates: str | Sequence[str] | Mapping[str, str | None] = (),
        null_values: Sequence[str] = NULL_VALUES,
        separator: str | None = ",",
        has_header: bool | None = None,
        decimal: str = ".",
        thousands: str | None = None,
        units: str | Sequence[str] = (),
        encoding: str = "utf-8",
        comment: str | None = None,
        skipinitialspace: bool = False,
        on_doubt: OnDoubt = "error",
        cache_dir: CacheDir = None,
    ) -> None:
        self._paths = paths_of(path)
        self._form = checked_form(
            separator=separator,
            has_header=has_header,
            null_values=null_values,
            encoding=encoding,
            comment=comment,
            skipinitialspace=skipinitialspace,
            decimal=decimal,
            thousands=thousands,
            units=units,
        )
        self._wanted = Wanted(
            _names(features),
            target,
            _dtype(dtype),
            check_missing(missing),
            _known(categories),
            given(_formats(dates)),
            None if target_dtype is None else _dtype(target_dtype),
        )
        _check_together(self._wanted)
        if on_doubt not in ("error", "warn", "ignore"):
            raise OptionError(
                f"on_doubt= is 'error', 'warn' or 'ignore', got {on_doubt!r}. Write 'warn'."
            )
        self._on_doubt = on_doubt
        for one in self._paths:
            check_text(one, first_bytes(one), READABLE)
        self._key = describe(self._paths, self._options())
        self._cache = cache_directory(cache_dir, sum(size for _, size, _ in self._key["files"]))
        self._load()
        if on_doubt != "ignore":
            for found in self.doubts:
                warn_user(found.text, SourceWarning)

    def _options(self) -> dict[str, Any]:
        form, wanted = asdict(self._form), self._wanted
        return {
            "form": form,
            "features": wanted.features,
            "target": wanted.target,
            "dtypes": [wanted.dtype, wanted.target_dtype],
            "missing": repr(wanted.missing),  # NaN is no JSON
            "known": dict(sorted(wanted.known.items())),
            "dates": {name: None if m is None else m.format for name, m in wanted.dates.items()},
            "on_doubt": self._on_doubt == "error",
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
        self.kinds: dict[str, str] = dict(extra["kinds"])
        self.doubts: tuple[Doubt, ...] = tuple(Doubt(*found) for found in extra["doubts"])

    def _convert(self, sink: Sink) -> dict[str, Any]:
        first = self._paths[0]
        form = self._form
        if form.separator is None:
            form = find_separator(first, form)
        plan = make_plan(first, header(first, form), form, self._wanted)
        doubts: list[Doubt] = []

        def doubt(found: Doubt) -> None:
            if found.sure and self._on_doubt == "error":
                raise SourceError(found.text)
            doubts.append(found)

        for found in of_head(first, plan):
            doubt(found)
        if self._on_doubt == "error":  # before a large file is read
            check_head(first, plan)
        return {**convert(self._paths, plan, sink, doubt), "doubts": doubts}

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


def _check_together(wanted: Wanted) -> None:
    whole = wanted.missing == "error" or float(wanted.missing).is_integer()
    if wanted.dtype == "int64" and not whole:
        raise OptionError(
            f"missing={wanted.missing} is no value of dtype=torch.int64. Write missing=0."
        )
    both = sorted(set(wanted.known) & set(wanted.dates))
    if both:
        raise OptionError(
            f"{both[0]!r} is in categories= and in dates=. Leave it out of one of them."
        )


def _formats(dates: Any) -> dict[str, str | None]:
    if isinstance(dates, str):
        dates = (dates,)
    return dict(dates) if isinstance(dates, Mapping) else dict.fromkeys(dates)


def _known(categories: Any) -> dict[str, tuple[str, ...] | None]:
    if isinstance(categories, str):
        categories = (categories,)
    if not isinstance(categories, Mapping):
        return dict.fromkeys(categories)
    return {n: None if known is None else tuple(known) for n, known in categories.items()}
