"""What an epoch does when things go wrong, and how far it looks ahead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.engine.epoch.same_stream import SameStream
from headrace.engine.task import Result, SkippedSample
from headrace.errors import TooManySkippedError


@dataclass(frozen=True)
class Policy:
    """How far the window looks ahead, and what it does when things go wrong.

    ``depth`` is the number of tasks in flight or waiting to be handed out. ``movable``
    says that a batch does not depend on its worker.
    For the streams of an iterable dataset, ``given_before`` counts the batches of each worker
    before this window, ``turn`` is the worker whose turn it is, and ``on_stream`` hears of each
    result that leaves, and whose it is: batches, errors in their place, the stream's end;
    ``to_replay`` counts the batches that a worker without a state has to make again. ``on_step``
    hears of each step that leaves, where they may leave out of order. ``same_stream`` compares the
    streams.
    ``ahead_bytes`` bounds what is made before it is asked for, to within one batch;
    ``max_skipped`` the samples that may be left out.
    """

    depth: int = 1
    in_order: bool = True
    iterable: bool = False
    movable: bool = False
    timeout_s: float = 0
    restarts: int = 0
    given_before: tuple[int, ...] = ()
    to_replay: tuple[int, ...] = ()
    turn: int = 0
    on_stream: Callable[[int, Result], None] | None = None
    on_step: Callable[[int], None] | None = None
    same_stream: SameStream | None = None
    ahead_bytes: int | None = None
    max_skipped: int | None = None


def too_many_skipped(count: int, limit: int, last: SkippedSample) -> TooManySkippedError:
    """Return what ends an epoch that leaves out more samples than ``max_errors=`` allows."""
    return TooManySkippedError(
        f"{count} samples of this epoch raised, and max_errors={limit} allows {limit} to be "
        f"skipped. The last was at index {last.index!r}: {last.exception!r}. "
        f"loader.statistics().skipped_samples lists them."
    )


def without_left_out(indices: Any, left_out: Sequence[SkippedSample]) -> list[Any] | None:
    """Return the indices of a batch without those of the samples that were left out."""
    if indices is None or not isinstance(indices, (list, tuple)):
        return None if indices is None else [indices]
    kept = list(indices)
    for sample in left_out:
        kept.remove(sample.index)
    return kept
