"""What in a CSV file may not be meant: text that looks like numbers, ids, numbers of rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from headrace.data.tables.csv.dates import moment_of
from headrace.data.tables.csv.looks import look
from headrace.data.tables.csv.plan import Plan
from headrace.data.tables.csv.reading import shown

_ENOUGH = 10  # rows or texts, from which on it says something that all differ
_MANY = 1_000
_INDEX = re.compile(r"|Unnamed: \d+(_level_\d+)?")
_ID = re.compile(r"(?i:(.*[_\s.-])?(id|uuid|guid))|.*[a-z]I[dD]|(?i:row_?(num(ber)?|id)|index)")
_DATE_NUMBER = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")


class Doubt(NamedTuple):
    """What may not be meant, and what to write; ``sure`` is whether it can hardly be meant."""

    column: str | None
    text: str
    sure: bool


def of_head(path: str, plan: Plan) -> Iterator[Doubt]:
    """Yield what is doubted about the names of a file, and about the numbers of its first rows."""
    where = shown(path)
    if plan.form.has_header is None:
        yield from _names(where, plan)
    elif not plan.form.has_header:
        yield from _first_row(where, plan)
    yield from _spaces(where, plan)
    for name in plan.used:
        found = None
        if plan.kinds[name] in ("integer", "number") or not name:
            found = _index(where, plan, name) or _zeros(where, plan, name)
        if found is None and plan.kinds[name] == "number":
            found = _alike(where, plan, name)
        if found is not None:
            yield found


def of_texts(path: str, plan: Plan, name: str, texts: Sequence[str], rows: int) -> Iterator[Doubt]:
    """Yield what is doubted about a column that becomes categories: its distinct texts."""
    where = f"{shown(path)}, column {name!r}"
    found = look(name, texts)
    if found is not None:
        a, *b = map(repr, found.examples)
        examples = f"{a} and {b[0]}" if b else a
        other = "" if found.other is None else _other(found.other)
        yield Doubt(
            name,
            f"{where} has {found.what}, as {examples}, which would be categories. Write "
            f"{found.line}, or categories=[{name!r}] if they are categories.{other}",
            found.sure,
        )
        return
    numbers = [text for text in texts if plan.form.notation.read(text) is not None]
    if numbers:
        other = next((t for t in texts if plan.form.notation.read(t) is None), "")
        yield Doubt(name, _mixed(where, name, numbers[0], other), True)
        return
    if len(texts) >= _ENOUGH and (
        len(texts) * 2 > rows or (len(texts) >= _MANY and len(texts) * 10 > rows)
    ):
        yield Doubt(
            name,
            f"{where} has {len(texts):,} different texts in {rows:,} rows, as {texts[0][:60]!r} "
            f"and {texts[1][:60]!r}: names or ids rather than categories. Write features= without "
            f"it, or categories=[{name!r}] to have their numbers all the same.",
            False,
        )
        return
    yield from _alike_texts(where, name, texts)


def _other(other: str) -> str:
    return f" {other[:60]!r} is none: if it says that a value is missing, add it to null_values=."


def _mixed(where: str, name: str, number: str, other: str) -> str:
    return (
        f"{where} has numbers and text, as {number!r} and {other[:60]!r}. Write "
        f"categories=[{name!r}] if they are categories, or null_values=['', {other[:60]!r}] if "
        f"that is how a missing number is written."
    )


def _alike_texts(where: str, name: str, texts: Sequence[str]) -> Iterator[Doubt]:
    seen: dict[str, str] = {}
    for text in texts:
        twin = seen.setdefault(" ".join(text.split()).casefold(), text)
        if twin != text:
            yield Doubt(
                name,
                f"{where} has {twin!r} and {text!r}, which are two categories. Make them one in "
                f"the file (skipinitialspace=True leaves out spaces behind separators), or write "
                f"categories=[{name!r}] if they are two.",
                False,
            )
            return


def _names(where: str, plan: Plan) -> Iterator[Doubt]:
    """Look for a first line that is a row, whose fields have been taken for names."""
    numbers = [n for n in plan.names if plan.form.notation.read(n) is not None]
    numeric = [n for n in numbers if plan.kinds[n] in ("integer", "number", "moment")]
    if numeric:
        shown_names = " and ".join(map(repr, numeric[:2]))
        yield Doubt(
            None,
            f"{where}, line 1 has numbers where names are wanted, as {shown_names}. Write "
            f"has_header=False if it is a row, or has_header=True if they are names.",
            not _counts_up(numbers),
        )
        return
    again = next((n for n, row in enumerate(_rows(plan), 1) if row == plan.names), None)
    if again is not None:
        yield Doubt(
            None, f"{where}, row {again}: the names of the columns again. Take it out.", True
        )
        return
    if any(kind != "text" for kind in plan.kinds.values()):
        return  # a name above numbers is one
    for name in plan.names:
        there = plan.there(name)
        if name and (name in there or (moment_of([name]) and moment_of(there[:1]))):
            said = f"the name {name!r}, which is also a value below it"
            yield Doubt(
                None,
                f"{where}, line 1 has {said}. Write has_header=False if line 1 is a row, or "
                f"has_header=True if it has the names.",
                True,
            )
            return


def _rows(plan: Plan) -> Iterator[tuple[str, ...]]:
    return zip(*(plan.head[name] for name in plan.names), strict=True)


def _counts_up(names: Sequence[str]) -> bool:
    """Say whether names are whole numbers that follow each other: years, or pandas' columns."""
    whole = [int(name) for name in names if name.strip().isdecimal()]
    steps = np.diff(whole)
    return len(whole) == len(names) > 1 and bool((steps == 1).all())


def _first_row(where: str, plan: Plan) -> Iterator[Doubt]:
    """Look for names that have been taken for a row."""
    read = plan.form.notation.read
    columns = [plan.head[name] for name in plan.names if plan.kinds[name] == "text"]
    names = [c for c in columns if len(c) > 1 and all(read(field) is not None for field in c[1:])]
    if names and len(columns) == len(plan.names):
        yield Doubt(
            None,
            f"{where}, line 1 has text above numbers, as {names[0][0]!r} above {names[0][1]!r}. "
            f"Write has_header=True if it has the names of the columns.",
            True,
        )


def _spaces(where: str, plan: Plan) -> Iterator[Doubt]:
    if plan.form.skipinitialspace:
        return
    spaced = [name for name in plan.used if name[:1] == " "]
    spaced += [
        name
        for name in plan.used
        if plan.kinds[name] == "text"
        and name not in plan.wanted.known
        and name not in spaced
        and plan.there(name)
        and all(field[:1] == " " for field in plan.there(name))
    ]
    if spaced:
        yield Doubt(
            spaced[0],
            f"{where}, column {spaced[0]!r}: spaces behind separators are part of its "
            f"{'name' if spaced[0][:1] == ' ' else 'texts'}. Write skipinitialspace=True.",
            False,
        )


def _is_row_number(plan: Plan, name: str) -> bool:
    """Say whether a column is called like an index, or like an id with all values different."""
    if _INDEX.fullmatch(name):
        return True
    if plan.kinds[name] != "integer" or not _ID.fullmatch(name):
        return False
    there = plan.there(name)
    return len(there) >= _ENOUGH and len(set(there)) == len(there)


def is_called_like_a_row_number(name: str) -> bool:
    """Say whether a column's name is that of an index or an id."""
    return _INDEX.fullmatch(name) is not None or _ID.fullmatch(name) is not None


def _index(where: str, plan: Plan, name: str) -> Doubt | None:
    """Doubt a feature that numbers the rows: their order often tells the class."""
    if plan.wanted.features is not None or name == plan.wanted.target:
        return None
    if not _is_row_number(plan, name):
        return None
    there = plan.there(name)
    others = [other for other in plan.features if not _is_row_number(plan, other)]
    remedy = f"features={others}" if len(others) <= 8 else f"features= without {name!r}"
    examples = " and ".join(map(repr, there[:2]))
    if _INDEX.fullmatch(name):
        called = f"column {name!r}" if name else f"column {plan.names.index(name) + 1}"
        return Doubt(
            name,
            f"{where}, {called} has no name, and would be a feature, with {examples}: pandas "
            f"writes the number of each row like this. Write {remedy}, or, when the file is made, "
            f"frame.to_csv(path, index=False).",
            False,
        )
    return Doubt(
        name,
        f"{where}, column {name!r} has a number of its own in each row, as {examples}, and "
        f"would be a feature: it is the name of a row rather than a measure. Write {remedy}, "
        f"or features= with all of them if it is meant.",
        False,
    )


def _zeros(where: str, plan: Plan, name: str) -> Doubt | None:
    there = [field for field in plan.head[name] if re.match(r"\s*0\d\d+\s*$", field)]
    there = list(dict.fromkeys(there))
    if not there:
        return None
    numbers = " and ".join(str(int(text)) for text in there[:2])
    return Doubt(
        name,
        f"{where}, column {name!r} has zeros in front, as {' and '.join(map(repr, there[:2]))}, "
        f"which are read as {numbers}. Write categories=[{name!r}] if they are codes.",
        False,
    )


def _alike(where: str, plan: Plan, name: str) -> Doubt | None:
    """Doubt numbers that float32 cannot tell apart, as seconds since 1970."""
    if plan.dtype_of(name) != "float32":
        return None
    read = plan.form.notation.read
    texts = {number: text for text in plan.there(name) if (number := read(text)) is not None}
    numbers = np.unique(np.array([n for n in texts if np.isfinite(n)]))
    with np.errstate(over="ignore"):
        short = numbers.astype(np.float32)
    if len(numbers) < 2 or len(np.unique(short)) > 0.9 * len(numbers):
        return None
    at = int(np.argmax(short[1:] == short[:-1]))
    a, b = texts[float(numbers[at])], texts[float(numbers[at + 1])]
    return Doubt(
        name,
        f"{where}, column {name!r}: {a!r} and {b!r} are one number in float32. Write "
        f"dtype=torch.float64, or subtract what they have in common before.",
        False,
    )


def of_digits(path: str, plan: Plan, name: str, values: Sequence[float]) -> Doubt:
    """Return what is doubted about whole numbers that lose digits; ``values`` are two at most."""
    dtype = plan.dtype_of(name)
    becomes = [int(np.float32(value) if dtype == "float32" else value) for value in values]
    there = plan.there(name)
    option = "target_dtype" if name == plan.wanted.target else "dtype"
    shown_values = " and ".join(
        f"{int(a)}" + (f" becomes {b}" if int(a) != b else "")
        for a, b in zip(values, becomes, strict=True)
    )
    if plan.kinds[name] == "moment":
        what, more = f"a time of {shown_values} seconds", ""
    else:
        what, more = f"{shown_values}", f", categories=[{name!r}] if they are ids"
        if there and all(_DATE_NUMBER.fullmatch(text.strip()) for text in there):
            more = f", dates={{{name!r}: '%Y%m%d'}} if they are dates"
    other = "float64" if dtype == "float32" and max(map(abs, values)) < 2**53 else "int64"
    return Doubt(
        name,
        f"{shown(path)}, column {name!r} has whole numbers with more digits than {dtype} holds: "
        f"{what}. Write {option}=torch.{other}{more}, or features= without it.",
        False,
    )
