"""The places of torch's loader and of ours between which a batch is made, with a clock at each.

What stands here replaces functions of both for as long as a program is watched. Their code is also
what the sampled stacks are told apart by: what is called within ``fetched`` and not within
``collated`` is the dataset's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from multiprocessing.reduction import ForkingPickler
from types import CodeType
from typing import Any

from torch.utils.data._utils import fetch as torch_fetch

from headrace.engine import cargo
from headrace.engine.making.fetch import Fetcher
from headrace.profile.log import Log

_clock = time.perf_counter


class Seams:
    """The clocks of one process."""

    def __init__(self) -> None:
        self.codes: dict[CodeType, str] = {}
        self.log: Log | None = None
        self._collate_s: dict[int, float] = {}
        self._put_back: list[tuple[Any, str, Any]] = []

    def put_in(self) -> None:
        """Put the clocks in, for processes that are started from here too."""
        for kind in (torch_fetch._MapDatasetFetcher, torch_fetch._IterableDatasetFetcher):
            self.replace(kind, "fetch", self._fetched(kind.fetch))
        self.replace(
            torch_fetch._BaseDatasetFetcher,
            "__init__",
            self._with_collate(torch_fetch._BaseDatasetFetcher.__init__),
        )
        self.replace(Fetcher, "make", self._fetched(Fetcher.make))
        self.replace(Fetcher, "_collated", self._collated(Fetcher._collated))
        self.replace(cargo, "pack", self._timed(cargo.pack, "pack"))
        self.replace(cargo, "unpack", self._timed(cargo.unpack, "unpack"))
        dumps = ForkingPickler.__dict__["dumps"]
        self.replace(ForkingPickler, "dumps", classmethod(self._timed(dumps.__func__, "pack")))
        loads = ForkingPickler.__dict__["loads"]
        inner = loads.__func__ if isinstance(loads, staticmethod) else loads
        self.replace(ForkingPickler, "loads", staticmethod(self._timed(inner, "unpack")))

    def take_out(self) -> None:
        """Put everything back as it was."""
        while self._put_back:
            owner, name, before = self._put_back.pop()
            setattr(owner, name, before)

    def replace(self, owner: Any, name: str, by: Any) -> None:
        """Replace an attribute until :meth:`take_out`."""
        self._put_back.append((owner, name, vars(owner)[name]))
        setattr(owner, name, by)

    def _fetched(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(inner)
        def fetched(*args: Any) -> Any:
            began, cpu = _clock(), time.thread_time()
            self._collate_s[id(args[0])] = 0.0
            try:
                return inner(*args)
            finally:
                collate_s = self._collate_s.pop(id(args[0]), 0.0)
                if self.log is not None:
                    ended = _clock()
                    cpu_s = time.thread_time() - cpu
                    row = [self.log.loader, began, ended, round(collate_s, 7), round(cpu_s, 7)]
                    self.log.rows("batches").append(row)

        self.codes[_code(fetched)] = "dataset"
        return fetched

    def _collated(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(inner)
        def collated(fetcher: Any, *args: Any) -> Any:
            began = _clock()
            try:
                return inner(fetcher, *args)
            finally:
                key = id(fetcher)
                self._collate_s[key] = self._collate_s.get(key, 0.0) + _clock() - began

        self.codes[_code(collated)] = "collate"
        return collated

    def _with_collate(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """Put a clock around the function that a fetcher of torch's collates with."""

        @wraps(inner)
        def __init__(fetcher: Any, *args: Any, **kwargs: Any) -> None:
            inner(fetcher, *args, **kwargs)
            collate = fetcher.collate_fn
            timed = self._collated(lambda _, samples: collate(samples))
            fetcher.collate_fn = lambda samples: timed(fetcher, samples)

        return __init__

    def _timed(self, inner: Callable[..., Any], kind: str) -> Callable[..., Any]:
        @wraps(inner)
        def handed_over(*args: Any, **kwargs: Any) -> Any:
            began = _clock()
            try:
                return inner(*args, **kwargs)
            finally:
                if self.log is not None:
                    self.log.rows(kind).append([self.log.loader, began, _clock()])

        self.codes[_code(handed_over)] = "hand over"
        return handed_over


def _code(function: Any) -> CodeType:
    code: CodeType = function.__code__
    return code
