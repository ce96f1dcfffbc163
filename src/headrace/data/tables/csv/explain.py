"""Why a CSV file cannot be read: a second look, a line at a time, that names the line."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from headrace.data.progress import Progress
from headrace.data.tables.csv.looks import look
from headrace.data.tables.csv.plan import TRUTH, Plan
from headrace.data.tables.csv.reading import (
    Records,
    first_record,
    opened,
    rows,
    shown,
    width_problem,
)
from headrace.errors import SourceError

_INT64 = range(-(2**63), 2**63)


class Trouble(Exception):
    """A piece of a file that is not what it should be; a second look says where.

    Where it is known: the column, the text of the field, and what is wrong with it.
    """

    def __init__(self, column: str = "", text: str | None = None, problem: str = "") -> None:
        super().__init__(problem)
        self.column = column
        self.text = text
        self.problem = problem


def explain(path: str, plan: Plan, error: BaseException) -> SourceError:
    """Return what is wrong with a file that could not be read, with its line."""
    trouble = error if isinstance(error, Trouble) and error.text is not None else None
    found = find_problem(path, plan, trouble)
    if found is not None:
        return found
    said = str(error).partition("\n")[0] or type(error).__name__
    if trouble is not None:
        said = f"column {trouble.column!r} has {trouble.text!r}: {said}"
    return SourceError(
        f"{shown(path)} cannot be read: {said}. Open it with another program to see why."
    )


def find_problem(path: str, plan: Plan, trouble: Trouble | None = None) -> SourceError | None:
    """Read a file a line at a time, and return the first thing that is wrong with it."""
    places = {name: plan.names.index(name) for name in plan.columns}
    size = os.path.getsize(path) if shown(path) == path else None
    try:
        with (
            opened(path, plan.form) as file,
            Progress(f"checking {os.path.basename(path)}", size, "bytes") as bar,
        ):
            source = Records(path, plan.form, file)
            width = len(plan.names)
            if plan.form.is_named:
                _, names = first_record(source) or (0, list(plan.names))
                places = {name: names.index(name) for name in plan.columns}
                width = len(names)
            for line, record in rows(source, width):
                problem = _problem(record, width, places, plan, trouble)
                if problem is not None:
                    return SourceError(f"{shown(path)}, line {line:,}{problem}")
                bar.advance(sum(map(len, record)) + len(record))
    except SourceError as error:
        return error
    return None


def _problem(
    record: list[str], width: int, places: Mapping[str, int], plan: Plan, trouble: Trouble | None
) -> str | None:
    problem = width_problem(record, width, plan.form)
    if problem is not None:
        return problem
    if plan.form.is_named and [record[place] for place in places.values()] == [*places]:
        return " repeats the names of the columns. Take it out."
    for name, place in places.items():
        problem = _field_problem(name, record[place], plan)
        if problem is None and trouble is not None:
            is_it = (trouble.column, trouble.text) == (name, record[place])
            problem = f"{record[place]!r}: {trouble.problem}." if is_it else None
        if problem is not None:
            return f", column {name!r}: {problem}"
    return None


def _field_problem(name: str, field: str, plan: Plan) -> str | None:
    if name != plan.wanted.target and name not in plan.features:
        return None  # only its presence counts
    kind = plan.kinds[name]
    number = plan.form.notation.read(field)
    is_number = kind in ("integer", "number")
    if field in plan.form.null_values or (is_number and number is not None and math.isnan(number)):
        return _missing_problem(name, field, plan)
    if kind == "moment":
        return None
    if kind == "text":
        return _category_problem(name, field, plan)
    if kind == "boolean":
        return None if field.lower() in TRUTH else _not(field, "true or false", name)
    return _number_problem(name, field, number, plan)


def _missing_problem(name: str, field: str, plan: Plan) -> str | None:
    if name == plan.wanted.target:
        return "the target is missing. Take out the row: a sample needs a target."
    if plan.wanted.missing != "error":
        return None
    number = "missing=0 (or another number)"
    if plan.wanted.dtype != "int64":
        number = 'missing=0 (or another number, or float("nan"))'
    learnt = ""
    if plan.wanted.dtype != "int64":
        learnt = (
            " For a number of each column's own, learnt from the training split: "
            'missing=float("nan"), mean = torch.from_numpy(data.features[train.indices]).nanmean(0)'
            ", and torch.where(x.isnan(), mean, x) for each batch."
        )
    return (
        f"a value is missing ({field!r}). Write {number} to put one there, in all columns, or "
        f"features= without this column.{learnt}"
    )


def _number_problem(name: str, field: str, number: float | None, plan: Plan) -> str | None:
    if number is None:
        return _not(field, "a number", name)
    if field.rstrip() != field and name not in plan.as_text:
        return f"{field!r} has spaces behind the number. Take them out."
    is_target = name == plan.wanted.target
    if (plan.target_dtype if is_target else plan.wanted.dtype) == "int64":
        return _integer_problem(field, "target_dtype" if is_target else "dtype")
    return None


def _category_problem(name: str, field: str, plan: Plan) -> str | None:
    known = plan.wanted.known.get(name)
    if known is None or field in known:
        return None
    shown = ", ".join(map(repr, known[:8])) + (", ..." if len(known) > 8 else "")
    return f"{field!r} is none of the categories given: {shown}. Add it to categories=."


def _integer_problem(field: str, option: str) -> str | None:
    try:
        if int(field) in _INT64:
            return None
    except ValueError:
        pass
    return f"{field[:60]!r} is no whole number of 64 bits. Write {option}=torch.float32."


def _not(field: str, what: str, name: str) -> str:
    found = look(name, [field])
    known = "" if found is None else f" If it is one of {found.what}, write {found.line}."
    return (
        f"{field[:60]!r} is not {what}, as the values above it are.{known} Write "
        f"null_values=['', {field[:60]!r}] if that is how a missing value is written, or "
        f"categories=[{name!r}] if it is text."
    )
