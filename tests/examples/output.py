"""Compare what a program prints with what its page says it prints."""

import math
import re

_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
_ADVICE = ("Take ", "write ")


def differences(
    found: str, wanted: str, *, measured: bool = False, tolerance: float = 0.05
) -> list[str]:
    """Return the lines that differ, as text; none if the outputs agree.

    Words and whole numbers have to be the same. Numbers with a decimal point may be off by a share
    of ``tolerance``, or by two in the last place shown: processors add up in different orders. With
    ``measured``, numbers are times and speeds, and may be anything; so may advice that follows from
    them.
    """
    ours, theirs = found.rstrip().splitlines(), wanted.rstrip().splitlines()
    ours = [line for line in ours if not line.startswith("[Gloo]")]  # torch 2.10 says who is there
    problems = [
        f"line {number}: printed {a!r}, the page has {b!r}"
        for number, (a, b) in enumerate(zip(ours, theirs, strict=False), start=1)
        if not _same(a, b, measured, tolerance)
    ]
    if len(ours) != len(theirs):
        problems.append(f"printed {len(ours)} lines, the page has {len(theirs)}")
    return problems


def _same(found: str, wanted: str, measured: bool, tolerance: float) -> bool:
    if measured and found.startswith(_ADVICE) and wanted.startswith(_ADVICE):
        return True
    if _words(found) != _words(wanted):
        return False
    pairs = zip(_NUMBER.findall(found), _NUMBER.findall(wanted), strict=True)
    return measured or all(_close(a, b, tolerance) for a, b in pairs)


def _words(line: str) -> list[str]:
    """Return a line without its numbers and without the spaces that align them."""
    return _NUMBER.sub("#", line).split()


def _close(found: str, wanted: str, tolerance: float) -> bool:
    if "." not in wanted and "e" not in wanted:
        return found == wanted
    a, b = (float(text.replace(",", "")) for text in (found, wanted))
    last_place = 10.0 ** -len(wanted.partition(".")[2].partition("e")[0])
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=2.001 * last_place)
