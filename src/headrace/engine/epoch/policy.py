"""How a window over the tasks of an epoch behaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headrace.engine.epoch.same_stream import SameStream
from headrace.engine.task import Result


@dataclass(frozen=True)
class Policy:
    """How far the window looks ahead, and what it does when things go wrong.

    ``depth`` is the number of tasks in flight or waiting to be handed out; ``eager`` submits them
    before they are asked for. ``movable`` says that a batch does not depend on its worker.
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
    eager: bool = False
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
