"""Samples that raise and are left out: ``DataLoader(on_error="skip")``."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

from headrace.engine.task import SkippedSample
from headrace.errors import CollateError, format_path
from headrace.notices import warn_user


def skipped(index: Any, error: BaseException) -> SkippedSample:
    """Return the entry of a sample that raised ``error``, as it can be kept and sent."""
    key = format_path(error.path) if isinstance(error, CollateError) and error.path else None
    try:
        portable: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:  # a type that cannot be pickled, or that wants other arguments
        portable = RuntimeError(f"{type(error).__name__}: {error}")
    return SkippedSample(index, key, portable)


def odd_one(error: Exception, samples: Sequence[Any], collate: Callable[[Any], Any]) -> int | None:
    """Return the position of the sample that does not fit the others, None where there is none.

    Where two do not fit each other, a third decides; where there is none, it is the later one.
    """
    if not isinstance(error, CollateError) or not error.positions:
        return next((n for n in range(len(samples)) if not _collates([samples[n]], collate)), None)
    last = max(error.positions)
    if len(error.positions) == 1:
        return last
    thirds = [n for n in range(len(samples)) if n not in error.positions]
    for third in thirds:
        for mate in sorted(error.positions):
            if _collates([samples[third], samples[mate]], collate):
                return next((n for n in error.positions if n != mate), mate)
    return last


def _collates(samples: list[Any], collate: Callable[[Any], Any]) -> bool:
    try:
        collate(samples)
    except Exception:
        return False
    return True


def warn_of_skipped(count: int, examples: Sequence[SkippedSample]) -> None:
    """Say once, at the end of an epoch, what was left out of it."""
    shown = "; ".join(_describe(sample) for sample in examples[:3])
    more = f"; and {count - 3} more" if count > 3 else ""
    warn_user(
        f"on_error='skip' left {count} sample{'s' * (count != 1)} out of this epoch: "
        f"{shown}{more}. loader.statistics().skipped_samples lists them."
    )


def _describe(sample: SkippedSample) -> str:
    where = "a sample" if sample.index is None else f"index {sample.index!r}"
    at = f" at {sample.key}" if sample.key else ""
    return f"{where}{at} ({type(sample.exception).__name__}: {_first_line(sample.exception)})"


def _first_line(error: BaseException) -> str:
    text = str(error).partition("\n")[0]
    return text if len(text) <= 200 else f"{text[:200]}..."
