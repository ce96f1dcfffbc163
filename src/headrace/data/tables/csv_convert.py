"""CSV to arrays: streamed by polars, a piece at a time, and explained where it fails."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from headrace.data.gatherer import Array
from headrace.data.progress import Progress
from headrace.data.tables.arrow import check_names
from headrace.data.tables.cache import Sink
from headrace.data.tables.csv_explain import Trouble, explain, find_problem
from headrace.data.tables.csv_plan import (
    Form,
    Plan,
    check_mixed,
    header,
    reading,
)
from headrace.errors import SourceError
from headrace.extras import import_extra

PIECE_ROWS = 65_536

_began_in: list[int] = []  # the process in which polars began its threads


class Codes:
    """Numbers the texts of a column: in the order of appearance, until they are sorted."""

    def __init__(self, given: Sequence[str] | None) -> None:
        self.fixed = given is not None
        self.texts: dict[str, int] = {text: code for code, text in enumerate(given or ())}

    def of(self, column: Any) -> Any:
        """Return a polars column of codes for one of texts; a missing text stays missing.

        Raises:
            Trouble: a text is not among those given.
        """
        pl = import_extra("polars", "tables")
        found = column.drop_nulls().unique().sort()
        texts = found.to_list()
        if not self.fixed:
            for text in texts:
                self.texts.setdefault(text, len(self.texts))
        elif not all(text in self.texts for text in texts):
            raise Trouble
        if not texts:
            return pl.Series(column.name, [None] * len(column), dtype=pl.Int64)
        codes = pl.Series([self.texts[text] for text in texts], dtype=pl.Int64)
        return column.replace_strict(found, codes, default=None, return_dtype=pl.Int64)

    def ranks(self) -> Array | None:
        """Return for each code its place among the sorted texts; None where they are in place."""
        texts = list(self.texts)
        if self.fixed or texts == sorted(texts):
            return None
        places = {text: place for place, text in enumerate(sorted(texts))}
        return np.array([places[text] for text in texts])

    def categories(self) -> list[str]:
        """Return the texts, in the order of their codes."""
        return list(self.texts) if self.fixed else sorted(self.texts)


def convert(paths: Sequence[str], plan: Plan, sink: Sink) -> dict[str, Any]:
    """Write the features and the target of CSV files to ``sink``; return what they are.

    Raises:
        SourceError, MissingColumnError: a file is not what it should be.
    """
    _check_process(paths[0])
    import_extra("polars", "tables")  # before the time runs: to import it may take seconds
    codes = {name: Codes(plan.wanted.known.get(name)) for name in plan.category_columns()}
    size = sum(os.path.getsize(path) for path in paths)
    with Progress(f"reading {os.path.basename(paths[0])}", size, "bytes") as progress:
        for path in paths:
            _check_header(path, plan, paths[0])
            rows = _convert_one(path, plan, codes, sink)
            done = 0
            for share in rows:
                progress.advance(share - done)
                done = share
    for name, code in codes.items():
        if name not in plan.wanted.known:
            check_mixed(paths[0] if len(paths) == 1 else f"{paths[0]} ...", name, [*code.texts])
    _sort_codes(plan, codes, sink)
    return {
        "features": list(plan.features),
        "categories": {name: code.categories() for name, code in codes.items()},
    }


def _check_process(path: str) -> None:
    """Check that this is no fork of a process that has used polars: it would wait for ever."""
    if _began_in and _began_in[0] != os.getpid():
        raise SourceError(
            f"{path} cannot be read here: this process was forked from one in which polars, which "
            f"reads CSV files, runs threads, and they are not copied. Make the CSVDataset before "
            f"the workers start, make it there once with cache_dir=, or write "
            f"DataLoader(..., multiprocessing_context='forkserver')."
        )
    _began_in[:] = [os.getpid()]


def _check_header(path: str, plan: Plan, first: str) -> None:
    names = header(path, plan.form)
    if names == plan.names:
        return
    check_names(names, plan.columns, path)
    extra = [name for name in names if name not in plan.names]
    if extra or plan.wanted.features is None:
        raise SourceError(
            f"{path} has other columns than {first}, or in another order. Write features= with "
            f"those to read."
        )


def _convert_one(path: str, plan: Plan, codes: Mapping[str, Codes], sink: Sink) -> Iterator[int]:
    """Convert one file; yield about how many of its bytes are done."""
    size, rows = os.path.getsize(path), 0
    suspect, looked = _ends_in_separator(path, plan.form), False
    try:
        for frame in _frames(path, plan):
            # A value is missing in the last column, or a row is too short: a closer look tells.
            suspect = suspect or frame[plan.names[-1]].null_count() > 0
            if suspect and not looked:
                looked = True
                problem = find_problem(path, plan)
                if problem is not None:
                    raise problem
            _convert_piece(frame, plan, codes, sink)
            rows += len(frame)
            yield min(size, int(rows * plan.row_bytes))
    except BaseException as error:
        if is_polars(error) or isinstance(error, Trouble):
            raise explain(path, plan, error) from error
        raise
    if not rows:
        raise SourceError(f"{path} has no rows below its header.")
    yield size


def _ends_in_separator(path: str, form: Form) -> bool:
    """Say whether the last line has no line feed and ends in a separator, which polars drops."""
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == form.separator.encode()


def is_polars(error: BaseException) -> bool:
    """Say whether an error came from polars: its panics are no ``Exception``."""
    pl = import_extra("polars", "tables")
    panic = type(error).__name__ == "PanicException"
    return panic or isinstance(error, pl.exceptions.PolarsError)


def _frames(path: str, plan: Plan) -> Iterator[Any]:
    pl = import_extra("polars", "tables")
    number = _polars_type(plan.wanted.dtype)
    types = {"integer": number, "number": number, "boolean": pl.Boolean, "text": pl.String}
    overrides = {}
    for name, kind in plan.kinds.items():
        overrides[name] = pl.String if name in plan.padded else types[kind]
    target = plan.wanted.target
    if target is not None and plan.kinds[target] in ("integer", "number"):
        overrides[target] = pl.String if target in plan.padded else _polars_type(plan.target_dtype)
    lazy = pl.scan_csv(path, **reading(plan.form, overrides))
    yield from lazy.select(plan.columns).collect_batches(
        chunk_size=PIECE_ROWS, maintain_order=True, engine="streaming"
    )


def _convert_piece(frame: Any, plan: Plan, codes: Mapping[str, Codes], sink: Sink) -> None:
    wanted = plan.wanted
    sink.append("features", _features(frame, plan, codes))
    if wanted.target is not None:
        target = _ready(frame[wanted.target], plan, codes, plan.target_dtype)
        values = target.to_numpy()
        if target.null_count() or (values.dtype.kind == "f" and np.isnan(values).any()):
            raise Trouble
        sink.append("target", values)


def _features(frame: Any, plan: Plan, codes: Mapping[str, Codes]) -> Array:
    pl = import_extra("polars", "tables")
    dtype, missing = plan.wanted.dtype, plan.wanted.missing
    ready = [_ready(frame[name], plan, codes, dtype) for name in plan.features]
    if missing == "error" and any(column.null_count() for column in ready):
        raise Trouble
    fill = [-1 if name in codes else missing for name in plan.features]
    if dtype == "int64" and missing != "error":
        ready = [c.fill_null(int(value)) for c, value in zip(ready, fill, strict=True)]
    block: Array = pl.DataFrame(ready).to_numpy(order="c", writable=True)
    if block.dtype.kind == "f":
        absent = np.isnan(block)  # nulls too, now: one look at all is quicker than one a column
        if absent.any():
            if missing == "error":
                raise Trouble
            rows, places = np.nonzero(absent)
            block[rows, places] = np.array(fill, block.dtype)[places]
    return block


def _ready(column: Any, plan: Plan, codes: Mapping[str, Codes], dtype: str) -> Any:
    """Return a polars column of numbers, or of codes for one of texts."""
    if column.name in codes:
        column = codes[column.name].of(column)
    elif column.name in plan.padded:
        column = column.str.strip_chars()
    return column.cast(_polars_type(dtype))


def _polars_type(dtype: str) -> Any:
    pl = import_extra("polars", "tables")
    return {"float32": pl.Float32, "float64": pl.Float64, "int64": pl.Int64}[dtype]


def _sort_codes(plan: Plan, codes: Mapping[str, Codes], sink: Sink) -> None:
    """Put the codes into the order of the sorted texts, now that all of them are known."""
    ranks = {name: code.ranks() for name, code in codes.items()}
    changes = [
        (place, rank)
        for place, name in enumerate(plan.features)
        if (rank := ranks.get(name)) is not None
    ]

    def features(piece: Array) -> None:
        for place, rank in changes:
            known = piece[:, place] >= 0  # -1 is a missing category
            piece[known, place] = rank[piece[known, place].astype(np.int64)]

    if changes:
        sink.rewrite("features", features)
    rank = None if plan.wanted.target is None else ranks.get(plan.wanted.target)
    if rank is not None:
        order = rank

        def target(piece: Array) -> None:
            piece[...] = order[piece]

        sink.rewrite("target", target)
