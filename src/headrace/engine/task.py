"""The messages of the engine. A batch is a pure function of its task."""

from __future__ import annotations

from typing import Any, NamedTuple

from headrace.traffic import Traffic


class SkippedSample(NamedTuple):
    """A sample that was left out of its batch.

    Attributes:
        index: its index in the dataset, None for an iterable one.
        key: where in the sample the trouble was ("sample['image']"), None where all of it was.
        exception: what it raised, without the traceback.
    """

    index: Any
    key: str | None
    exception: BaseException


class Task(NamedTuple):
    """One batch to make: which samples, and the seed of the generators they may draw from.

    ``indices`` is a list of dataset indices, one index where batching is off, or None for an
    iterable dataset. ``seed`` is a function of (base seed, epoch, step).
    """

    epoch: int
    step: int
    indices: Any
    seed: int


class Done(NamedTuple):
    """A task's batch, and what it took.

    ``state`` is that of an iterable dataset behind this batch, where it can say it. ``skipped`` are
    the samples that were left out; where no other is left there is no batch, and ``samples`` is 0.
    ``traffic`` is what was read from stores for it.
    """

    step: int
    batch: Any
    samples: int
    size_bytes: int
    fetch_s: float
    state: Any = None
    skipped: tuple[SkippedSample, ...] = ()
    traffic: Traffic | None = None


class Failed(NamedTuple):
    """A task that ended in an exception of user code; ``error`` carries its traceback."""

    step: int
    error: BaseException


class Exhausted(NamedTuple):
    """An iterable dataset has no more batches; ``worker`` iterated it.

    ``state`` is what the dataset says of itself at its end, where it can.
    """

    step: int
    worker: int
    state: Any = None


Result = Done | Failed | Exhausted
