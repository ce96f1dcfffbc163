"""What texts look like that may be no categories: numbers in another notation, dates, units."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from headrace.data.tables.csv.dates import moment_of
from headrace.data.tables.csv.form import Notation

_LOOKED_AT = 1_000
_NOTATIONS = (
    (Notation(","), "decimal=','"),
    (Notation(thousands=","), "thousands=','"),
    (Notation(thousands=" "), "thousands=' '"),
    (Notation(thousands="'"), 'thousands="\'"'),
    (Notation(thousands="_"), "thousands='_'"),
    (Notation(",", "."), "decimal=',', thousands='.'"),
    (Notation(",", " "), "decimal=',', thousands=' '"),
    (Notation(",", "'"), "decimal=',', thousands=\"'\""),
)
_NUMBER = r"[0-9][0-9.,'\u2019 \u00a0\u202f]*(?:[eE][+-]?[0-9]+)?|[.,][0-9]+"
_WITH_UNIT = re.compile(
    rf"(?P<sign>[+-]?)\s*(?P<before>[^\d\s.,+-]{{0,4}})\s*(?P<minus>[+-]?)"
    rf"(?P<number>{_NUMBER})(?<![\s\u00a0\u202f])\s*(?P<behind>[^\d\s.,'+:/-][^\d]{{0,12}})?"
)
_ORDINALS = {"st", "nd", "rd", "th"}
_CODES = {"USD", "EUR", "GBP", "CHF", "JPY", "CNY", "INR", "AUD", "CAD", "SEK", "NOK", "DKK", "PLN"}
_LIMITS = {"<", ">", "<=", ">=", "≤", "≥", "~", "≈", "±"}
_MONTHS = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_OTHERS = (
    (r"[+-]?0[xX][0-9a-fA-F]+", "numbers in base 16", "int(text, 16)"),
    (r"\([$€£]?[0-9][0-9.,]*\)", "negative numbers in brackets", "-float(text.strip('()'))"),
    (r"[0-9][0-9.,]*-", "numbers with the sign behind them", "-float(text[:-1])"),
    (
        r"-?[0-9]+ days?( [+-]?[0-9:.]+)?",
        "durations",
        "pandas.Timedelta(text).total_seconds()",
    ),
    (r"[+-]?[0-9.]+[dD][+-]?[0-9]+", "numbers of Fortran", "float(text.replace('d', 'e'))"),
    (
        r"\(?[+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?[+-][0-9.]*(?:[eE][+-]?[0-9]+)?[ij]\)?",
        "complex numbers",
        "abs(complex(text.replace('i', 'j')))",
    ),
    (
        r"[0-9]{4}-?W[0-9]{2}(?:-?[1-7])?",
        "weeks",
        "datetime.date.fromisocalendar(int(text[:4]), int(text.split('W')[1][:2]), 1).toordinal()",
    ),
    (
        rf"(?:[0-9]{{1,2}}[. -])?(?:{_MONTHS})[a-z]*[., -]+(?:[0-9]{{1,2}},? )?'?[0-9]{{2,4}}",
        "dates with the name of a month",
        "pandas.Timestamp(text).timestamp()",
    ),
)
_MAYBE = (  # few of them may well be categories
    (r"[0-9]{1,4}\s?/\s?[0-9]{1,4}", "fractions", "float(fractions.Fraction(text))"),
    (r"[0-9]{4}-?Q[1-4]", "quarters", "pandas.Period(text).ordinal"),
    (r"Q[1-4][ -]?[0-9]{4}", "quarters", "pandas.Period(text[-4:] + text[:2]).ordinal"),
    (r"\[.*\]", "lists", "json.loads(text)[0]"),
)


class Look(NamedTuple):
    """What texts look like; ``line`` is what to write to have them as numbers.

    ``sure`` is whether they can hardly be anything else, and ``other`` one that is none of these.
    """

    what: str
    line: str
    sure: bool
    examples: tuple[str, ...]
    other: str | None = None


def look(name: str, texts: Sequence[str]) -> Look | None:
    """Return what the distinct texts of a column look like, None if they may be categories.

    Those that are of one kind must be most of them: others may say that a value is missing.
    """
    texts = [text for text in texts[:_LOOKED_AT] if text.strip()]
    numbers = [text for text in texts if Notation().read(text) is not None]
    if not texts or len(numbers) == len(texts):
        return None
    return _dates(name, texts) or _notation(texts) or _special(name, texts) or _units(texts)


def _most(found: Sequence[str], texts: Sequence[str]) -> bool:
    return len(found) * 2 >= len(texts)


def _shown(found: Sequence[str], texts: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    there = set(found)
    return tuple(found[:2]), next((text for text in texts if text not in there), None)


def _dates(name: str, texts: Sequence[str]) -> Look | None:
    found = [text for text in texts if moment_of([text])]
    if len(found) * 2 <= len(texts):
        return None
    moments = moment_of(found)
    examples, other = _shown(found, texts)
    if not moments:
        return Look(
            "dates or times of several formats",
            f"dates={{{name!r}: '%d.%m.%Y'}}, with the one format that they have",
            True,
            examples,
            other,
        )
    if len(moments) == 2:
        line = " or ".join(f"dates={{{name!r}: {m.format!r}}}" for m in moments)
        return Look("dates, with the day first or the month", line, True, examples, other)
    what = "times" if moments[0].kind == "time" else "dates"
    return Look(what, f"dates=[{name!r}]", True, examples, other)


def _notation(texts: Sequence[str]) -> Look | None:
    best: tuple[list[str], str] | None = None
    for notation, line in _NOTATIONS:
        read = [text for text in texts if notation.read(text) is not None]
        own = [text for text in read if Notation().read(text) is None]
        if own and _most(read, texts) and (best is None or len(read) > len(best[0])):
            best = own + [text for text in read if text not in set(own)], line
    if best is None:
        return None
    found, line = best
    examples, other = _shown(found, texts)
    if line == "decimal=','" and all(
        re.fullmatch(r"[+-]?\d{1,3},\d{3}", text.strip()) or text.strip().isdigit()
        for text in found
    ):
        line = "thousands=',' (or decimal=',', if 1,500 is one and a half)"
    return Look("numbers in another notation", line, True, examples, other)


def _special(name: str, texts: Sequence[str]) -> Look | None:
    for pattern, what, code in _OTHERS:
        found = [text for text in texts if re.fullmatch(pattern, text.strip())]
        if _most(found, texts) or (found and _most(_numbers(texts) + found, texts)):
            return Look(what, _in_pandas(name, code), True, *_shown(found, texts))
    plain = {text: _plainly(text) for text in texts}
    found = [text for text in texts if plain[text] != text and _as_number(plain[text])]
    if found and _most(_numbers(texts) + found, texts):
        code = "float(unicodedata.normalize('NFKC', text).replace('\\u2212', '-'))"
        return Look(
            "numbers in other signs or digits than ASCII's",
            _in_pandas(name, code),
            True,
            *_shown(found, texts),
        )
    for pattern, what, code in _MAYBE:
        found = [text for text in texts if re.fullmatch(pattern, text.strip())]
        if _most(found, texts):
            return Look(what, _in_pandas(name, code), False, *_shown(found, texts))
    return None


def _numbers(texts: Sequence[str]) -> list[str]:
    return [text for text in texts if _as_number(text)]


def _as_number(text: str) -> bool:
    return Notation().read(text) is not None


def _plainly(text: str) -> str:
    """Return a text with ASCII's digits and signs for those that look like them."""
    text = unicodedata.normalize("NFKC", text)
    digits = "".join(str(unicodedata.decimal(c, c)) for c in text)
    return digits.replace("\u2212", "-").replace("\u2013", "-").replace("\u066b", ".")


def _in_pandas(name: str, code: str) -> str:
    return (
        f"frame = pandas.read_csv(path); frame[{name!r}] = [{code} for text in frame[{name!r}]]; "
        f"frame.to_csv(new_path, index=False)"
    )


def _units(texts: Sequence[str]) -> Look | None:
    found: dict[str, dict[str, str]] = {}  # for each unit its texts, and the number in each
    for text in texts:
        match = _WITH_UNIT.fullmatch(text.strip())
        if match is None:
            continue
        for unit, at_front in ((match["before"], True), (match["behind"], False)):
            if unit and _is_unit(unit, at_front=at_front):
                found.setdefault(unit, {})[text] = match["number"]
    signs = [unit for unit in found if _is_sign(unit)]
    with_sign = {text: number for unit in signs for text, number in found[unit].items()}
    if signs and _most([*_numbers(texts), *with_sign], texts):
        return _unit("numbers with a unit", signs, with_sign, texts, sure=True)
    unit = max(found, key=lambda unit: len(found[unit]), default="")
    if unit and len(found[unit]) > 1 and _most([*found[unit]], texts):
        return _unit("numbers with a unit", [unit], found[unit], texts, sure=False)
    return None


def _unit(
    what: str, units: list[str], found: dict[str, str], texts: Sequence[str], *, sure: bool
) -> Look:
    notation = _notation(list(dict.fromkeys(found.values())))
    more = "" if notation is None else f", {notation.line}"
    line = f"units={units}{more} (it is left out: 10% is 10)"
    return Look(what, line, sure, *_shown([*found], texts))


def _is_sign(unit: str) -> bool:
    return unit.upper() in _CODES or all(
        unicodedata.category(c) == "Sc" or c in "%‰°" for c in unit
    )


def _is_unit(unit: str, *, at_front: bool) -> bool:
    if at_front:  # letters before a number are a code, such as C85
        return _is_sign(unit) or unit in _LIMITS
    return unit.partition(" ")[0].lower() not in _ORDINALS
