"""The lengths of a dataset's samples, found by reading each of them once."""

from __future__ import annotations

import os
import sys
import time
import weakref
import zipfile
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any

import numpy as np

from headrace.rng import ProcessGenerators
from headrace.sampling.planned import Indices
from headrace.written import written_whole

PROGRESS_EVERY_S = 0.2
QUIET_S = 1.0  # what takes less shows nothing

# Within a process a dataset is measured once. The key function is held, the dataset is not.
_measured: weakref.WeakKeyDictionary[object, dict[Any, Indices]] = weakref.WeakKeyDictionary()


def measure(
    dataset: Sized, key: Callable[[Any], int], cache: str | os.PathLike[str] | None = None
) -> Indices:
    """Return `key(sample)` for every sample, as int64 of shape (samples,).

    The global generators of torch, NumPy and `random` are put back afterwards, so that a program
    draws the same whether its lengths were measured or came from the cache. A progress bar is
    shown on a terminal.

    Args:
        dataset: map-style; each sample is read once, in order.
        key: sample -> its length, an integer.
        cache: a file (`.npz`) that keeps the lengths from one run to the next.

    Raises:
        ValueError: the cache was made by another key, or of a dataset of another length.
        TypeError: `key` returned something else than an integer.
    """
    known = _remembered(dataset)
    if key in known and len(known[key]) == len(dataset):
        return known[key]
    path = None if cache is None else Path(cache)
    if path is not None and path.exists():
        lengths = _load(path, len(dataset), _name(key))
    else:
        lengths = _read(dataset, key)
        if path is not None:
            _save(path, lengths, _name(key))
    known[key] = lengths
    return lengths


def _remembered(dataset: object) -> dict[Any, Indices]:
    try:
        return _measured.setdefault(dataset, {})
    except TypeError:  # a list, say, can be neither hashed nor referred to weakly
        return {}


def _read(dataset: Sized, key: Callable[[Any], int]) -> Indices:
    n = len(dataset)
    lengths = np.empty(n, np.int64)
    show = _Progress(n)
    generators = ProcessGenerators()
    saved = generators.save()
    try:
        for i in range(n):
            length = key(dataset[i])  # type: ignore[index]
            try:
                lengths[i] = length.__index__()
            except (AttributeError, TypeError):
                raise TypeError(
                    f"key(dataset[{i}]) returned {type(length).__name__}: {length!r}. It must be "
                    f"the length as an integer: key=lambda sample: len(sample[0])."
                ) from None
            show.step(i + 1)
    finally:
        generators.restore(saved)
        show.close()
    return lengths


class _Progress:
    """One line on a terminal's stderr, from the first second on; nothing elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._on = sys.stderr is not None and sys.stderr.isatty()
        self._start = time.monotonic()
        self._next = self._start + QUIET_S
        self._shown = False

    def step(self, done: int) -> None:
        if not self._on or (now := time.monotonic()) < self._next:
            return
        self._next = now + PROGRESS_EVERY_S
        self._shown = True
        share = done / self._total
        left_s = (now - self._start) * (1 - share) / share
        bar = "#" * round(30 * share)
        sys.stderr.write(f"\rmeasuring lengths [{bar:<30}] {share:4.0%}, {left_s:,.0f} s left ")
        sys.stderr.flush()

    def close(self) -> None:
        if self._shown:
            sys.stderr.write("\r" + " " * 79 + "\r")


def _name(key: object) -> str:
    return f"{getattr(key, '__module__', '')}.{getattr(key, '__qualname__', type(key).__name__)}"


def _load(path: Path, n: int, name: str) -> Indices:
    again = f"Delete the file to measure again, or write cache={str(path) + '.new'!r}."
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            lengths, key = file["lengths"], str(file["key"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} holds no lengths that were saved here ({error}). {again}"
        ) from error
    if len(lengths) != n:
        raise ValueError(f"{path} holds {len(lengths)} lengths, the dataset {n} samples. {again}")
    if key != name:
        raise ValueError(f"{path} was measured by key {key}, not by {name}. {again}")
    measured: Indices = lengths.astype(np.int64)
    return measured


def _save(path: Path, lengths: Indices, name: str) -> None:
    with written_whole(path) as file:  # by several ranks at once, it may be
        np.savez(file, lengths=lengths, key=np.array(name))
