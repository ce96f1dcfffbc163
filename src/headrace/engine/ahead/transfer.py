"""Batches on a device, copied one ahead of the user's work.

Copies run on a stream of their own, straight from the leases that batches lie on. A batch is handed
over as soon as its copy has been *started*: the user's stream waits for it, the user's process does
not. These hold, each with its test:

- The memory of a host batch is not lent again before its copy is done: the batch is held until the
  event behind the copy has happened, also when the epoch is left or a copy raised.
- The user's stream waits for the copy, and the device's allocator knows that this stream uses the
  tensors, which were allocated on another.
- What is copied ahead is only looked at, never taken: the position of the epoch is exact. A copy
  ahead that fails is forgotten and tried again when the batch is due.
- A batch is asked for when at most one copy is under way, so that a loop that runs ahead of the
  link does not pile up batches. The wait comes before a batch is taken: interrupted, it costs none.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from headrace.engine.ahead.pinning import CudaPages
from headrace.engine.doubt import BOOKS, SETTLED, close_wholly
from headrace.engine.stats import Counters
from headrace.tree import convert

_UNDER_WAY = 1
_WITH_STREAMS = ("cuda", "xpu")


class Event(Protocol):
    """Happens when the copies before it are done."""

    def query(self) -> bool:
        """Say whether it has happened."""

    def synchronize(self) -> object:
        """Wait for it."""


class Lane(Protocol):
    """How copies get to one device, beside what the user has it do."""

    device: torch.device

    def stream(self) -> AbstractContextManager[object]:
        """Return what copies are started within."""

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start to copy a CPU tensor; return the one that will hold it."""

    def event(self) -> Event:
        """Return the event behind all copies so far."""

    def hand_over(self, event: Event, tensors: list[torch.Tensor]) -> None:
        """Have the user's later work wait for an event, and keep the tensors for that work."""


def lane_to(device: torch.device) -> Lane:
    """Return the best lane to a device that exists."""
    return _StreamLane(device) if device.type in _WITH_STREAMS else _PlainLane(device)


class _StreamLane:
    """Asynchronous copies on a side stream."""

    def __init__(self, device: torch.device) -> None:
        self._module: Any = torch.get_device_module(device)
        index = self._module.current_device() if device.index is None else device.index
        self.device = torch.device(device.type, index)
        self._stream = self._module.Stream(device=self.device)
        cuda = device.type == "cuda"
        self._pages = CudaPages(torch.cuda.cudart()) if cuda else None  # type: ignore[no-untyped-call]

    def stream(self) -> AbstractContextManager[object]:
        stream: AbstractContextManager[object] = self._module.stream(self._stream)
        return stream

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._pages is None or not self._pages.lock_under(tensor):
            tensor = tensor.pin_memory()  # torch keeps it until the copy is done
        return tensor.to(self.device, non_blocking=True)

    def event(self) -> Event:
        event: Event = self._stream.record_event()
        return event

    def hand_over(self, event: Event, tensors: list[torch.Tensor]) -> None:
        users = self._module.current_stream(self.device)
        users.wait_event(event)
        for tensor in tensors:
            tensor.record_stream(users)


class _PlainLane:
    """Copies that are done when they return, for devices without streams."""

    def __init__(self, device: torch.device) -> None:
        # An array without elements knows the number of the device that it is on.
        self.device = torch.empty(0, device=device).device

    def stream(self) -> AbstractContextManager[object]:
        return nullcontext()

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device)

    def event(self) -> Event:
        return _Done()

    def hand_over(self, event: Event, tensors: list[torch.Tensor]) -> None:
        pass


class _Done:
    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


@dataclass
class _Copy:
    """A batch whose copy was started."""

    host: Any
    batch: Any = None
    tensors: list[torch.Tensor] = field(default_factory=list)
    event: Event | None = None
    unmoved: bool = False  # something is left that has to move by itself


class Transfer(Iterator[Any]):
    """Iterates over batches on a device.

    Tensors in nested dicts, lists, tuples and dataclasses are copied; an object that moves itself
    (``to`` and ``pin_memory``, or ``to`` and no container) is asked to, on the user's stream, when
    it is handed over. What is no tensor, or is on the device already, stays as it is.

    Args:
        batches: host batches; what it raises passes through.
        device: where they should arrive; it exists.
        peek: returns the batch that ``batches`` will give next, if that is ready, without taking
            it; None otherwise.
        lane: how copies get there.
        counters: of the epoch; hears whether a step is in doubt.
    """

    def __init__(
        self,
        batches: Iterator[Any],
        device: torch.device,
        peek: Callable[[], Any],
        lane: Lane | None = None,
        counters: Counters | None = None,
    ) -> None:
        self._batches = batches
        self._peek = peek
        self._lane = lane_to(device) if lane is None else lane
        self._counters = Counters() if counters is None else counters
        self._ahead: _Copy | None = None
        self._copying: Any = None  # the memory that is read, until an event stands behind it
        self._under_way: deque[tuple[Event, Any]] = deque()  # and the memory that is read
        self._pid = os.getpid()

    def __next__(self) -> Any:
        """Return the next batch, on the device, and start to copy the one after it."""
        self._counters.doubt = SETTLED  # nothing is taken yet
        self._make_room()
        self._counters.doubt = BOOKS
        try:
            host = next(self._batches)
        except StopIteration:
            self.close()
            raise
        try:
            ahead, self._ahead = self._ahead, None
            due = ahead if ahead is not None and ahead.host is host else self._start(host)
            self._look_ahead()
            return self._hand_over(due)
        except Exception:  # takes the place of its batch
            self._counters.doubt = SETTLED
            raise

    def close(self) -> None:
        """Let go of all host batches, once their copies are done."""
        self._ahead = None
        self._settle_interrupted()
        while self._under_way:
            self._wait_for_oldest()

    def _settle_interrupted(self) -> None:
        if self._copying is not None:  # copies were begun, and no event was put behind them
            self._lane.event().synchronize()
            self._copying = None

    def _wait_for_oldest(self) -> None:
        self._under_way[0][0].synchronize()
        self._under_way.popleft()  # not before: it holds the memory that is read

    def __del__(self) -> None:
        under_way = getattr(self, "_under_way", None)
        # A forked child has no use for the device; at the interpreter's end the device may be gone.
        if (under_way or getattr(self, "_copying", None) is not None) and os.getpid() == self._pid:
            with suppress(RuntimeError):
                close_wholly(self.close)

    def _look_ahead(self) -> None:
        host = self._peek()
        if host is None:
            return
        with suppress(Exception):  # it is tried again, and raises, when it is due
            self._ahead = self._start(host)

    def _make_room(self) -> None:
        while self._under_way and self._under_way[0][0].query():
            self._under_way.popleft()
        while len(self._under_way) > _UNDER_WAY:
            self._wait_for_oldest()

    def _start(self, host: Any) -> _Copy:
        self._settle_interrupted()
        started = _Copy(host)
        self._copying = host
        try:
            with self._lane.stream():
                started.batch = convert(host, lambda value: self._leaf(value, started))
        finally:
            if started.tensors:  # of those some may have been copied, though another one failed
                started.event = self._lane.event()
                self._under_way.append((started.event, host))
            self._copying = None
        return started

    def _leaf(self, value: Any, started: _Copy) -> Any:
        if isinstance(value, torch.Tensor) and _is_plain(value):
            started.tensors.append(self._lane.copy(value))
            return started.tensors[-1]
        started.unmoved = True
        return value

    def _hand_over(self, due: _Copy) -> Any:
        if due.event is not None:
            self._lane.hand_over(due.event, due.tensors)
        if due.unmoved:
            return convert(due.batch, self._move)
        return due.batch

    def _move(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.device == self._lane.device:
            return value
        return value.to(self._lane.device)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Say whether this is a tensor in main memory that a stream can be told of."""
    return (
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not is_traceable_wrapper_subclass(tensor)
    )
