"""Why a CSV file cannot be read: a second look, a line at a time, that names the line."""

from __future__ import annotations

import math
import os

from headrace.data.progress import Progress
from headrace.data.tables.csv_plan import TRUTH, Plan, as_number, records, width_problem
from headrace.errors import SourceError

_INT64 = range(-(2**63), 2**63)


class Trouble(Exception):
    """A piece of a file that is not what it should be; a second look says why."""


def explain(path: str, plan: Plan, error: BaseException) -> SourceError:
    """Return what is wrong with a file that could not be read, with its line."""
    found = find_problem(path, plan)
    if found is not None:
        return found
    said = str(error).partition("\n")[0] or type(error).__name__
    return SourceError(f"{path} cannot be read: {said}. Open it with another program to see why.")


def find_problem(path: str, plan: Plan) -> SourceError | None:
    """Read a file a line at a time, and return the first thing that is wrong with it."""
    checks = [(name, plan.names.index(name)) for name in plan.columns]
    try:
        rows = records(path, plan.form)
        with Progress(f"checking {os.path.basename(path)}", os.path.getsize(path), "bytes") as bar:
            if plan.form.has_header:
                names = next(rows)[1]
                checks = [(name, names.index(name)) for name in plan.columns]
            width = len(names) if plan.form.has_header else len(plan.names)
            for line, record in rows:
                problem = _problem(record, width, checks, plan)
                if problem is not None:
                    return SourceError(f"{path}, line {line:,}{problem}")
                bar.advance(sum(map(len, record)) + len(record))
    except SourceError as error:
        return error
    return None


def _problem(
    record: list[str], width: int, checks: list[tuple[str, int]], plan: Plan
) -> str | None:
    problem = width_problem(record, width, plan.form)
    if problem is not None:
        return problem
    record = record or [""]
    for name, place in checks:
        problem = _field_problem(name, record[place], plan)
        if problem is not None:
            return f", column {name!r}: {problem}"
    return None


def _field_problem(name: str, field: str, plan: Plan) -> str | None:
    if name != plan.wanted.target and name not in plan.features:
        return None  # only its presence counts
    kind = plan.kinds[name]
    number = as_number(field)
    is_number = kind in ("integer", "number")
    if field in plan.form.null_values or (is_number and number is not None and math.isnan(number)):
        return _missing_problem(name, field, plan)
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
    return (
        f"a value is missing ({field!r}). Write {number} to put one there, or features= without "
        f"this column."
    )


def _number_problem(name: str, field: str, number: float | None, plan: Plan) -> str | None:
    if number is None:
        return _not(field, "a number", name)
    if field.rstrip() != field and name not in plan.padded:
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
    return (
        f"{field[:60]!r} is not {what}, as the values above it are. Write null_values=[...] with "
        f"how a missing value is written, or categories=[{name!r}] if it is text."
    )
