"""CSV to arrays: streamed by polars, a piece at a time, and explained where it fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from headrace.data.gatherer import Array
from headrace.data.progress import Progress
from headrace.data.tables.arrow import check_names
from headrace.data.tables.cache import Sink
from headrace.data.tables.csv.doubts import Doubt, of_digits, of_texts
from headrace.data.tables.csv.explain import Trouble, explain, find_problem
from headrace.data.tables.csv.form import Notation
from headrace.data.tables.csv.looks import look
from headrace.data.tables.csv.plan import Plan, header
from headrace.data.tables.csv.reading import pieces, shown
from headrace.errors import SourceError
from headrace.extras import import_extra

_EXACT = {"float32": 2**24, "float64": 2**53 - 1}  # up to here whole numbers are what they were

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
        else:
            unknown = next((text for text in texts if text not in self.texts), None)
            if unknown is not None:
                raise Trouble(column.name, unknown, "it is none of the categories given")
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


class Conversion:
    """Files on their way to arrays: the codes of their texts, and what turned up on the way.

    ``doubt`` is told what may not be meant; it raises where that is an error.
    """

    def __init__(self, plan: Plan, sink: Sink, doubt: Callable[[Doubt], None]) -> None:
        self.plan = plan
        self.sink = sink
        self.doubt = doubt
        self.rows = 0
        self.codes = {name: Codes(plan.wanted.known.get(name)) for name in plan.category_columns()}
        self.long: dict[str, list[float]] = {}  # whole numbers that lose digits, by column

    def extra(self) -> dict[str, Any]:
        """Return what the arrays are."""
        return {
            "features": list(self.plan.features),
            "categories": {name: code.categories() for name, code in self.codes.items()},
            "kinds": {name: self._kind(name) for name in self.plan.used},
        }

    def _kind(self, name: str) -> str:
        if name in self.plan.moments:
            return self.plan.moments[name].meaning
        kind = self.plan.kinds[name]
        return {
            "integer": "whole numbers",
            "number": "numbers",
            "boolean": "true or false",
            "text": "categories",
        }[kind]


def convert(
    paths: Sequence[str], plan: Plan, sink: Sink, doubt: Callable[[Doubt], None]
) -> dict[str, Any]:
    """Write the features and the target of CSV files to ``sink``; return what they are.

    Raises:
        SourceError, MissingColumnError: a file is not what it should be.
    """
    _check_process(paths[0])
    import_extra("polars", "tables")  # before the time runs: to import it may take seconds
    work = Conversion(plan, sink, doubt)
    plain = all(shown(path) == path for path in paths)
    size = sum(os.path.getsize(path) for path in paths) if plain else None
    with Progress(f"reading {os.path.basename(paths[0])}", size, "bytes") as progress:
        for path in paths:
            for done in _convert_one(path, _plan_of(path, plan, paths[0]), work):
                progress.advance(done)
    for name, code in work.codes.items():
        if name not in plan.wanted.known:
            for found in of_texts(paths[0], plan, name, [*code.texts], work.rows):
                doubt(found)
    for name, values in work.long.items():
        doubt(of_digits(paths[0], plan, name, values))
    _sort_codes(plan, work.codes, sink)
    return work.extra()


def check_head(path: str, plan: Plan) -> None:
    """Check that no column of text looks like numbers or dates in its first rows already.

    Raises:
        SourceError: one does.
    """
    for name in plan.category_columns():
        texts = list(dict.fromkeys(plan.there(name)))
        found = None if name in plan.wanted.known else look(name, texts)
        if found is not None and found.sure:
            for doubt in of_texts(path, plan, name, texts, len(texts)):
                raise SourceError(doubt.text)


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


def _plan_of(path: str, plan: Plan, first: str) -> Plan:
    """Return the plan of one of several files, whose columns may stand in another order.

    Raises:
        SourceError, MissingColumnError: its columns are others.
    """
    names = header(path, plan.form)
    if names == plan.names:
        return plan
    check_names(names, plan.used, shown(path))
    extra = [name for name in names if name not in plan.names]
    if extra or plan.wanted.features is None:
        raise SourceError(
            f"{shown(path)} has other columns than {first}, or in another order. Write features= "
            f"with those to read."
        )
    return replace(plan, names=names, empty=None)


def _convert_one(path: str, plan: Plan, work: Conversion) -> Iterator[int]:
    """Convert one file; yield how many bytes of its content are done, a piece at a time."""
    before, looked = work.rows, False
    last = plan.names[-1 if plan.empty is None else -2]
    try:
        for piece in pieces(path, plan.form, len(plan.names)):
            frame = _frame(piece, plan)
            # A value is missing in the last column, or a row is too short: a closer look tells.
            if not looked and frame[last].null_count():
                looked = True
                problem = find_problem(path, plan)
                if problem is not None:
                    raise problem
            _convert_piece(frame, work)
            work.rows += len(frame)
            yield len(piece)
    except BaseException as error:
        if is_polars(error) or isinstance(error, Trouble):
            raise explain(path, plan, error) from error
        raise
    if work.rows == before:
        raise SourceError(f"{shown(path)} has no rows below its header.")


def is_polars(error: BaseException) -> bool:
    """Say whether an error came from polars: its panics are no ``Exception``."""
    pl = import_extra("polars", "tables")
    panic = type(error).__name__ == "PanicException"
    return panic or isinstance(error, pl.exceptions.PolarsError)


def _frame(piece: bytes, plan: Plan) -> Any:
    """Return the columns of a piece that are read, as polars parses them."""
    pl = import_extra("polars", "tables")
    types = dict.fromkeys(plan.names, pl.String)
    for name in plan.used:
        kind = plan.kinds[name]
        if kind == "boolean":
            types[name] = pl.Boolean
        elif kind in ("integer", "number") and name not in plan.as_text:
            dtype = plan.dtype_of(name)
            # Whole numbers as float64 first: float32 would hide which of them lose digits.
            types[name] = _polars_type("float64" if (kind, dtype[0]) == ("integer", "f") else dtype)
    frame: Any = pl.read_csv(
        piece,
        separator=plan.form.mark,
        has_header=False,
        schema=types,
        null_values=list(plan.form.null_values),
        infer_schema=False,
        low_memory=False,
    )
    if plan.empty is not None:
        extra = frame[plan.empty].str.strip_chars()
        extra = extra.filter(extra != "")
        if len(extra):
            raise Trouble(
                plan.empty, extra[0], "it has no name. Give the column one, or take it out"
            )
    return frame


def _convert_piece(frame: Any, work: Conversion) -> None:
    plan = work.plan
    wanted = plan.wanted
    work.sink.append("features", _features(frame, work))
    if wanted.target is not None:
        target = _ready(frame[wanted.target], work)
        values = target.to_numpy()
        if target.null_count() or (values.dtype.kind == "f" and np.isnan(values).any()):
            raise Trouble
        work.sink.append("target", values)


def _features(frame: Any, work: Conversion) -> Array:
    pl = import_extra("polars", "tables")
    plan = work.plan
    dtype, missing = plan.wanted.dtype, plan.wanted.missing
    ready = [_ready(frame[name], work) for name in plan.features]
    if missing == "error" and any(column.null_count() for column in ready):
        raise Trouble
    fill = [-1 if name in work.codes else missing for name in plan.features]
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


def _ready(column: Any, work: Conversion) -> Any:
    """Return a polars column of numbers, or of codes for one of texts."""
    plan, name = work.plan, column.name
    dtype = plan.dtype_of(name)
    if name in work.codes:
        column = work.codes[name].of(column)
    elif name in plan.moments:
        moment = plan.moments[name]
        numbers = moment.numbers(column)
        _check_all(column, numbers.is_null(), f"it is no {moment.kind} as {moment.shown}")
        column = numbers
    elif name in plan.as_text and plan.kinds[name] in ("integer", "number"):
        column = _numbers(column, plan.form.notation, dtype)
    if plan.kinds[name] in ("integer", "moment") and dtype != "int64":
        _note_long(column, dtype, work)
    return column.cast(_polars_type(dtype)).rename(name)


def _check_all(texts: Any, bad: Any, problem: str) -> None:
    """Check that no text is bad.

    Raises:
        Trouble: one is.
    """
    found = texts.filter(bad & texts.is_not_null())
    if len(found):
        raise Trouble(texts.name, found[0], problem)


def _numbers(texts: Any, notation: Notation, dtype: str) -> Any:
    """Return a polars column of numbers for one of texts in a notation."""
    pl = import_extra("polars", "tables")
    plain = texts.str.strip_chars()
    if notation.units:
        plain = plain.str.replace(notation.before, "${1}").str.replace(notation.behind, "")
    _check_all(texts, ~plain.str.contains(notation.number), "it is no number in the notation given")
    if notation.thousands is not None:
        plain = plain.str.replace_all(notation.between, "")
    if notation.decimal != ".":
        plain = plain.str.replace(notation.decimal, ".", literal=True)
    return plain.cast(pl.Int64 if dtype == "int64" else pl.Float64)


def _note_long(column: Any, dtype: str, work: Conversion) -> None:
    """Note whole numbers that lose digits in the type that they are to have."""
    seen = work.long.get(column.name, [])
    if len(seen) > 1 or column.dtype.is_integer():
        return
    most = column.abs().max()
    if most is None or most <= _EXACT[dtype]:
        return
    pl = import_extra("polars", "tables")
    lost = column.abs() > _EXACT["float64"]
    if dtype == "float32":
        lost |= column.cast(pl.Float32).cast(pl.Float64) != column
    found = column.filter(lost & column.is_finite() & (column == column.floor())).unique()
    if len(found):
        work.long[column.name] = [*seen, *found.head(2 - len(seen)).to_list()]


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
