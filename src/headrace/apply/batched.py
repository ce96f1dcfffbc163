"""A function of tensors that works through any length in chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

from headrace.apply.rows import join_rows, name_of, rows_of_result
from headrace.errors import OptionError, RowMismatchError
from headrace.oom import batch_rows, cut_rows

_P = ParamSpec("_P")
_R = TypeVar("_R")


def batched(
    batch_size: int, *, whole: Iterable[str] = ()
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Make a function of tensors work through any length, ``batch_size`` rows at a time.

    ::

        @headrace.batched(batch_size=1024)
        def distances(x, centres):  # (n, d), (k, d) -> (n, k)
            return torch.cdist(x, centres)

    Every tensor and array among the arguments, also inside dicts, tuples and lists, is cut alike
    along its first dimension, so they must have one length; arguments named in ``whole``, those
    without dimensions and everything that is no tensor are passed on as they are. The results,
    one row for each row, are put together again, containers of them too. Gradients flow as they
    would without it.

    An empty input is one call with empty tensors: so the result has its shape and type. Random
    numbers are drawn chunk by chunk: another ``batch_size`` draws others.

    Args:
        batch_size: rows of a call, at most.
        whole: names of arguments that are not cut, such as weights.

    Raises:
        OptionError: ``batch_size`` is no positive integer; ``whole`` names no argument.
        RowMismatchError: in a call, arguments of different lengths, or a result that has not one
            row for each row.
    """
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        line = "Write @headrace.batched(batch_size=1024)."
        raise OptionError(f"batch_size={batch_size!r} is no number of rows. {line}")
    kept = {whole} if isinstance(whole, str) else set(whole)

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        parameters = signature(function)
        unknown = kept - parameters.parameters.keys()
        if unknown:
            raise OptionError(
                f"{name_of(function)}() has no argument {', '.join(sorted(unknown))}. Name some of "
                f"{', '.join(parameters.parameters)} in whole=."
            )

        @wraps(function)
        def in_batches(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            given = parameters.bind(*args, **kwargs)
            cut = {k: v for k, v in given.arguments.items() if k not in kept}
            rows = _rows(cut, name_of(function))
            results = []
            for start in range(0, max(rows, 1), batch_size):
                stop = min(start + batch_size, rows)
                part = cut if stop - start == rows else cut_rows(cut, start, stop)
                given.arguments.update(part)
                result = function(*given.args, **given.kwargs)
                rows_of_result(result, stop - start, name_of(function))
                results.append(result)
            joined: _R = join_rows(results)
            return joined

        return in_batches

    return decorate


def _rows(arguments: Any, name: str) -> int:
    rows = batch_rows(arguments)
    if rows is None:
        lengths = {k: batch_rows(v) for k, v in arguments.items()}
        known = ", ".join(f"{k} has {n}" for k, n in lengths.items() if n is not None)
        raise RowMismatchError(
            f"{name}() needs tensors of one length to cut into batches, but {known or 'got none'}. "
            f"What is not to be cut is named: @headrace.batched(batch_size=..., whole='weights')."
        )
    return rows
