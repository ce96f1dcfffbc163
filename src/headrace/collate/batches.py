"""Batches without a loader: plain functions over tensors, arrays and containers of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from headrace.collate.stack import default_collate
from headrace.errors import ArrayMismatchError, MissingKeyError, ShapeMismatchError
from headrace.tree import is_namedtuple, leaves, map_leaves


def stack_batch(samples: Sequence[Any]) -> Any:
    """Stack a list of samples into a batch; what is NumPy stays NumPy.

    Args:
        samples: tensors, NumPy arrays, numbers, strings, or dicts, tuples and lists of them, all of
            one structure and with leaves of one shape.

    Returns:
        The structure of a sample. Tensors and numbers become tensors of shape (batch, ...), arrays
        and NumPy's numbers arrays of shape (batch, ...), strings a list.

    Raises:
        ValueError: no samples.
        ShapeMismatchError: two samples have different shapes or lengths.
        MissingKeyError: a key is in some samples only.
    """
    if len(samples) == 0:
        raise ValueError("there are no samples to stack. Write stack_batch([sample, ...]).")
    first = samples[0]
    if isinstance(first, (np.ndarray, np.generic)) and all(
        isinstance(s, (np.ndarray, np.generic)) for s in samples
    ):
        return _stack_arrays(samples)
    if isinstance(first, Mapping) and all(isinstance(s, Mapping) for s in samples):
        for position, sample in enumerate(samples):
            if sample.keys() != first.keys():
                key = next(iter(sample.keys() ^ first.keys()))
                raise MissingKeyError(
                    f"the key {key!r} is in only one of the samples 0 and {position}",
                    "Give every sample the same keys.",
                    (0, position),
                )
        return {key: stack_batch([sample[key] for sample in samples]) for key in first}
    if isinstance(first, (tuple, list)) and all(isinstance(s, (tuple, list)) for s in samples):
        for position, sample in enumerate(samples):
            if len(sample) != len(first):
                raise ShapeMismatchError(
                    f"sample 0 has {len(first)} entries and sample {position} has {len(sample)}",
                    "Give every sample as many.",
                    (0, position),
                )
        parts = [stack_batch(column) for column in zip(*samples, strict=True)]
        return type(first)(*parts) if is_namedtuple(first) else type(first)(parts)
    return default_collate(samples)


def _stack_arrays(samples: Sequence[Any]) -> npt.NDArray[Any]:
    for position, sample in enumerate(samples):
        if sample.shape != samples[0].shape:
            raise ShapeMismatchError(
                f"sample 0 has shape {samples[0].shape} and sample {position} has {sample.shape}",
                "Bring the samples to one shape, or pad them: pad_collate()(samples).",
                (0, position),
            )
    return np.stack(samples)


def iter_batches(
    arrays: Any,
    batch_size: int,
    *,
    shuffle: bool = False,
    drop_last: bool = False,
    generator: torch.Generator | None = None,
) -> Iterator[Any]:
    """Iterate over arrays in batches, without a dataset or a loader.

    Args:
        arrays: a tensor or array of shape (samples, ...), or dicts, tuples and lists of them.
        batch_size: samples in a batch.
        shuffle: a new random order; batches are copies. Otherwise they are views, in order.
        drop_last: leave out the last batch when it is shorter.
        generator: where the order comes from, with one `torch.randperm`; None is torch's global
            generator.

    Returns:
        An iterator over batches of the structure of `arrays`, tensors where tensors were.

    Raises:
        ValueError: `batch_size` below 1; a generator without shuffle.
        TypeError: something that is no tensor or array.
        ArrayMismatchError: different lengths.
    """
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(
            f"batch_size must be a positive integer, got {batch_size!r}. Write batch_size=32."
        )
    if generator is not None and not shuffle:
        raise ValueError("generator= does nothing without shuffle=True. Leave one of them out.")
    columns = leaves(arrays)
    for column in columns:
        if not isinstance(column, (torch.Tensor, np.ndarray)) or column.ndim == 0:
            raise TypeError(
                f"iter_batches needs tensors or arrays of shape (samples, ...), got "
                f"{type(column).__name__}. Write iter_batches(np.asarray(x), {batch_size})."
            )
    lengths = [len(column) for column in columns]
    if len(set(lengths)) != 1:
        raise ArrayMismatchError(
            f"the arrays need one row for each sample, but have {lengths} rows. "
            f"Cut them to one length: iter_batches((x[:n], y[:n]), {batch_size})."
        )
    n = lengths[0]
    stop = n // batch_size * batch_size if drop_last else n
    return _batches(arrays, range(0, stop, batch_size), batch_size, n if shuffle else 0, generator)


def _batches(
    arrays: Any, starts: range, size: int, shuffled: int, generator: torch.Generator | None
) -> Iterator[Any]:
    columns, rebuild = leaves(arrays), _rebuilder(arrays)
    if not shuffled:
        for start in starts:
            yield rebuild([column[start : start + size] for column in columns])
        return
    order = torch.randperm(shuffled, generator=generator)
    places = order.numpy()
    takes = [_rows_of(column) for column in columns]
    for start in starts:
        stop = start + size
        yield rebuild([take(order, places, start, stop) for take in takes])


def _rebuilder(arrays: Any) -> Callable[[list[Any]], Any]:
    """Return what puts the parts of a batch, in order, into the structure of ``arrays``."""
    kind = type(arrays)
    if not isinstance(arrays, (Mapping, tuple, list)):
        return _only
    parts = arrays.values() if isinstance(arrays, Mapping) else arrays
    flat = not any(isinstance(part, (Mapping, tuple, list)) for part in parts)
    if flat and kind in (tuple, list):
        return kind
    if flat and kind is dict:
        keys = list(arrays)
        return lambda parts: dict(zip(keys, parts, strict=True))
    return lambda parts: map_leaves(partial(_next, iter(parts)), arrays)


def _only(parts: list[Any]) -> Any:
    return parts[0]


def _next(parts: Iterator[Any], _: Any) -> Any:
    return next(parts)


def _rows_of(column: Any) -> Callable[[torch.Tensor, Any, int, int], Any]:
    """Return what copies the rows of a column at ``order[start:stop]``."""
    if isinstance(column, torch.Tensor):
        device = column.device
        return lambda order, _, start, stop: column[order[start:stop].to(device)]
    rows = column.view(np.ndarray) if type(column) is np.memmap else column
    return lambda _, places, start, stop: rows.take(places[start:stop], 0)
