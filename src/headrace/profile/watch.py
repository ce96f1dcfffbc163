"""Every loader of a program, watched while the program runs as it is.

What is replaced while it lasts: how torch's loader and ours are iterated, and the seams between
which a batch is made (:mod:`headrace.profile.seams`). Nothing draws random numbers, and no order
changes. Processes that are forked inherit it, those that are spawned put it in first.
"""

from __future__ import annotations

import atexit
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from multiprocessing import spawn
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, dataloader
from torch.utils.data._utils import worker as torch_worker

from headrace.engine.backends.worker import _Worker
from headrace.iterator import LoaderIterator
from headrace.loader import STOCK, DataLoader
from headrace.machine import available_cores, available_memory_bytes
from headrace.profile.log import Log
from headrace.profile.seams import Seams
from headrace.profile.stacks import Sampler
from headrace.sized import length_of
from headrace.tree import size_bytes

_clock = time.perf_counter
_EPOCH = "_headrace_watched"  # of an iterator: the epoch that it is in


class Watch:
    """What is watched in this process."""

    def __init__(self, directory: str, loader: str | None = None) -> None:
        self._directory = directory
        self._seams = Seams()
        self._sampler: Sampler | None = None
        self._pid = os.getpid()
        self._numbers: dict[int, tuple[Any, str]] = {}  # loaders, held: their identity is theirs
        self._epochs = 0
        self.current = loader  # whose workers may be starting
        self._seams.log = None

    def start(self) -> None:
        """Watch from here on."""
        seams = self._seams
        seams.put_in()
        seams.replace(STOCK, "__iter__", self._iterated(STOCK.__iter__))
        for kind in (dataloader._BaseDataLoaderIter, LoaderIterator):
            seams.replace(kind, "__next__", self._stepped(kind.__next__))
        loop = self._in_worker(torch_worker._worker_loop)
        seams.replace(torch_worker, "_worker_loop", loop)
        seams.replace(_Worker, "run", self._in_worker(_Worker.run))
        self._own_preparation = spawn.get_preparation_data
        seams.replace(spawn, "get_preparation_data", self._prepared(spawn.get_preparation_data))
        os.register_at_fork(after_in_child=self._forked)
        atexit.register(self.end)

    def stop(self) -> None:
        """Put everything back, and write down what there is."""
        self._seams.take_out()
        self.end()
        atexit.unregister(self.end)

    def end(self) -> None:
        """Write down all there is, the stacks that were seen too."""
        self._end_sampling()
        self.flush()

    def flush(self) -> None:
        """Write down what there is."""
        if self._seams.log is not None:
            self._usage(self._seams.log)
            self._seams.log.flush()

    def note(self, kind: str, **values: Any) -> None:
        """Write one thing down."""
        self._log().note(kind, **values)

    def _log(self) -> Log:
        if self._seams.log is None:
            log = self._seams.log = Log(self._directory, "main", self.current)
            log.note("machine", cores=available_cores(), memory=available_memory_bytes())
        return self._seams.log

    def _forked(self) -> None:
        self._seams.log = self._sampler = None
        self._numbers = {}

    def _usage(self, log: Log, watching_s: float = 0.0) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        log.note(
            "usage",
            user_s=used.ru_utime,
            system_s=used.ru_stime,
            minor_faults=used.ru_minflt,
            major_faults=used.ru_majflt,
            memory=used.ru_maxrss * 1024,
            watching_s=watching_s,
            read_bytes=_read_bytes(),
        )

    def _begin_sampling(self) -> None:
        if self._sampler is None:
            log = self._log()
            self._sampler = Sampler(
                log, self._seams.codes, lambda watching_s: self._usage(log, watching_s)
            )

    def _end_sampling(self) -> None:
        sampler, self._sampler = self._sampler, None
        if sampler is not None:
            sampler.stop()

    def _in_worker(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(inner)
        def watched(*args: Any) -> Any:
            log = self._seams.log = Log(self._directory, "worker", self.current)
            self._begin_sampling()
            try:
                return inner(*args)
            finally:
                self._end_sampling()
                log.flush()

        return watched

    def _prepared(self, inner: Callable[[str], dict[str, Any]]) -> Any:
        @wraps(inner)
        def get_preparation_data(name: str) -> dict[str, Any]:
            begin = _Begin(self._directory, self.current)
            return {**inner(name), "headrace_profile": begin}

        return get_preparation_data

    def _iterated(self, inner: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @wraps(inner)
        def __iter__(loader: Any) -> Any:
            self.current = self._number_of(loader)
            if _has_processes(loader):
                self._end_sampling()  # a fork should find no thread of ours
            began = _clock()
            iterator = inner(loader)
            self._begin_epoch(iterator, self.current, began)
            return iterator

        return __iter__

    def _number_of(self, loader: Any) -> str:
        known = self._numbers.get(id(loader))
        if known is None:
            known = loader, f"{os.getpid()}-{len(self._numbers)}"
            self._numbers[id(loader)] = known
            with suppress(Exception):  # of a stranger's loader we can do without
                self.note("loader", number=known[1], **_described(loader))
        return known[1]

    def _begin_epoch(self, iterator: Any, loader: str, began: float) -> Epoch:
        self._epochs += 1
        epoch = Epoch(self, loader, self._epochs)
        workers = getattr(iterator, "_workers", None) or ()
        pids = [worker.pid for worker in workers if hasattr(worker, "pid")]
        self.note(
            "epoch", number=epoch.number, loader=loader, began=began, ready=_clock(), workers=pids
        )
        self._usage(epoch.log)
        if not pids:
            self._begin_sampling()
        with suppress(AttributeError):  # it may have slots
            setattr(iterator, _EPOCH, epoch)
        return epoch

    def _stepped(self, inner: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @wraps(inner)
        def __next__(iterator: Any) -> Any:
            epoch = iterator.__dict__.get(_EPOCH)
            if epoch is None:  # of a loader that makes its iterators itself
                number = f"{os.getpid()}-{type(iterator).__name__}"
                epoch = self._begin_epoch(iterator, number, _clock())
            self.current = epoch.loader
            epoch.log.loader = epoch.loader
            began = _clock()
            try:
                batch = inner(iterator)
            except StopIteration:
                epoch.end(began)
                raise
            epoch.step(began, _clock(), batch)
            return batch

        return __next__


class Epoch:
    """One pass over a loader."""

    def __init__(self, watch: Watch, loader: str, number: int) -> None:
        self.loader = loader
        self.number = number
        self._watch = watch
        self._steps = 0
        self._weigh_at = 1
        self.log = watch._log()

    def step(self, began: float, ended: float, batch: Any) -> None:
        """Note that ``next()`` was called, and has given a batch."""
        log = self.log
        weight = -1
        self._steps += 1
        if self._steps == self._weigh_at:  # a few of them: it takes time
            self._weigh_at *= 4
            with suppress(Exception):
                weight = size_bytes(batch)
        log.rows("steps").append([self.number, began, ended, weight])
        if ended >= log.next_flush:
            self._watch.flush()

    def end(self, began: float) -> None:
        """Note that there are no more."""
        self._watch.note("over", number=self.number, last=began)
        self._watch.flush()


class _Begin:
    """Unpickled, it watches: what a spawned process reads before it imports the main module."""

    def __init__(self, directory: str, loader: str | None) -> None:
        self._names = {"directory": directory, "loader": loader, "path": sys.path}

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (_BEGIN, self._names)


# Code, not a function by reference: the path on which headrace is found is not set yet.
_BEGIN = """
import sys
sys.path[:] = path
from headrace.profile.watch import Watch
Watch(directory, loader).start()
"""


def _has_processes(loader: Any) -> bool:
    inline = isinstance(loader, DataLoader) and loader.backend in ("inline", "thread")
    return bool(loader.num_workers) and not inline


def _described(loader: Any) -> dict[str, Any]:
    ours = isinstance(loader, DataLoader) and type(loader).__module__.startswith("headrace")
    dataset, collate = loader.dataset, loader.collate_fn
    length = None if isinstance(dataset, IterableDataset) else length_of(dataset)
    context = loader.multiprocessing_context
    return {
        "where": _users_line(),
        "ours": ours,
        "dataset": type(dataset).__name__,
        "length": length,
        "batch_size": loader.batch_size,
        "num_workers": loader.num_workers,
        "backend": getattr(loader, "backend", "process"),
        "context": getattr(context, "_name", None),
        "prefetch_factor": loader.prefetch_factor,
        "persistent": loader.persistent_workers,
        "pin_memory": loader.pin_memory,
        "collate": getattr(collate, "__qualname__", type(collate).__name__),
    }


def _users_line() -> str:
    """Return the file and line that the loader is iterated at."""
    frame = sys._getframe(1)
    ours = str(Path(__file__).parents[1]) + os.sep
    while frame.f_back is not None:
        name = frame.f_code.co_filename
        if not name.startswith((ours, "<")) and f"{os.sep}site-packages{os.sep}" not in name:
            break
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _read_bytes() -> int:
    """Return the bytes that this process has read, from wherever; 0 where nothing says so."""
    try:
        text = Path("/proc/self/io").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(text.split("rchar:", 1)[1].split(None, 1)[0])
