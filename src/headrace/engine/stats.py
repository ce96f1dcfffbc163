"""Where the time of loading goes: counters while it runs, a frozen snapshot for the user."""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass, fields, replace
from typing import Any

from headrace import traffic
from headrace.engine.doubt import SETTLED
from headrace.engine.task import Done, SkippedSample
from headrace.traffic import Traffic


@dataclass(frozen=True)
class Statistics:
    """What a loader has done since it was made.

    Attributes:
        path: how batches are made: ``"gather"`` (columns, in this process), ``"gather-thread"``
            (columns, one background thread), ``"inline"`` (samples, in this process),
            ``"thread"`` (samples, in threads of this process), ``"process"`` (samples, in worker
            processes) or ``"torch"`` (torch's own machinery). Empty before the first epoch.
        epochs: iterations begun.
        batches: batches handed out.
        samples: samples in them.
        size_bytes: bytes of the tensors and arrays in them. Batches of up to eight tensors, and all
            with ``prefetch_bytes=``, are counted; of others one in 64 is weighed, long lists by
            some of their parts, and the rest are taken to weigh as much a sample.
        wait_s: seconds that the loop waited inside ``next()`` for a batch to be made.
        fetch_s: seconds spent in making batches, summed over workers.
        store_bytes: bytes that came from object stores and web servers: ranges, and whole shards
            to be kept (``cache_bytes=``).
        store_wait_s: seconds that whoever makes batches waited for them, summed over workers.
        cache_hits: samples that were read from shards of stores that are kept here.
        restarts: workers that died and were replaced.
        moved: tasks that went from a slow worker to an idle one.
        skipped: samples that raised and were left out, with ``on_error="skip"``.
        skipped_samples: the first thousand of them: index, key and exception.
        why: with ``num_workers="auto"``, what was measured and what was chosen for it.
    """

    path: str
    epochs: int
    batches: int
    samples: int
    size_bytes: int
    wait_s: float
    fetch_s: float
    restarts: int
    moved: int
    skipped: int = 0
    skipped_samples: tuple[SkippedSample, ...] = ()
    why: str = ""
    store_bytes: int = 0
    store_wait_s: float = 0.0
    cache_hits: int = 0

    def __str__(self) -> str:
        """Return one line: what was handed out, what it took, and who made it."""
        parts = [
            f"{_counted(self.batches, 'batch', 'batches')}, {_counted(self.samples, 'sample')}, "
            f"{in_units(self.size_bytes)}",
            f"waited {_time(self.wait_s)}, fetched {_time(self.fetch_s)}",
            _PATHS.get(self.path, "nothing loaded yet"),
        ]
        if self.store_bytes or self.cache_hits:
            parts.append(
                f"{in_units(self.store_bytes)} from stores, waited {_time(self.store_wait_s)} for "
                f"them, {_counted(self.cache_hits, 'sample')} kept"
            )
        if self.skipped:
            parts.append(f"{_counted(self.skipped, 'sample')} skipped")
        if self.restarts:
            parts.append(f"{_counted(self.restarts, 'worker')} replaced")
        return "; ".join(parts)


_PATHS = {
    "gather": "gathered in this process",
    "gather-thread": "gathered in a background thread",
    "inline": "sample by sample in this process",
    "thread": "sample by sample in worker threads",
    "process": "sample by sample in worker processes",
    "torch": "made by torch's own loader, which counts nothing",
}


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{seconds * 1e3:.3g} ms"


def in_units(size_bytes: float) -> str:
    """Write a number of bytes with three digits: "512 bytes", "1.5 KiB", "14,000 MiB"."""
    if size_bytes < 1000:
        return f"{size_bytes:.0f} bytes"
    size, unit = next(
        ((size_bytes / 2**k, u) for k, u in ((10, "KiB"), (20, "MiB")) if size_bytes < 1000 << k),
        (size_bytes / 2**30, "GiB"),
    )
    return f"{size:.3g} {unit}" if size < 999.5 else f"{size:,.0f} {unit}"


_LISTED = 1000  # entries of skipped_samples: exceptions hold text, and epochs are many


class Totals:
    """The counters of all iterators that a loader has made."""

    def __init__(self) -> None:
        self._epochs = 0
        self.why = ""
        self._past: list[Statistics] = []
        self._live: list[tuple[weakref.ref[Any], Counters]] = []

    def counters_of(self, iterator: object) -> Counters:
        """Return new counters for one epoch of an iterator."""
        self._epochs += 1
        over = [c for owner, c in self._live if owner() is None or owner() is iterator]
        self._live = [(o, c) for o, c in self._live if o() is not None and o() is not iterator]
        self._past = [_sum([*self._past, *(c.snapshot() for c in over)])]
        counters = Counters()
        fetched = traffic.beside()  # of an earlier epoch, or else of another loader
        if self._past[0].store_bytes:
            counters.store_bytes += fetched
        self._live.append((weakref.ref(iterator), counters))
        return counters

    def snapshot(self) -> Statistics:
        """Return the sum over all iterators."""
        counters = [counters for _, counters in self._live]
        if counters and any(one.store_bytes or one.cache_hits for one in counters):
            counters[-1].store_bytes += traffic.beside()
        total = _sum([*self._past, *(one.snapshot() for one in counters)])
        return replace(total, epochs=self._epochs, why=self.why)


def _sum(parts: list[Statistics]) -> Statistics:
    """Add statistics up; the path is that of the latest."""
    total = Statistics("", 0, 0, 0, 0, 0.0, 0.0, 0, 0)
    words = {"path", "why"}
    for part in parts:
        sums = {
            f.name: getattr(total, f.name) + getattr(part, f.name)
            for f in fields(Statistics)
            if f.name not in words
        }
        sums["skipped_samples"] = sums["skipped_samples"][:_LISTED]
        total = Statistics(path=part.path or total.path, **sums)
    return total


class Counters:
    """What a snapshot is taken from.

    Batches of one block are alike, so the hot loop counts batches only; ``set_batch`` says what one
    of them is worth.
    """

    def __init__(self) -> None:
        self.path = ""
        self.batches = 0
        self.doubt = SETTLED
        self.interrupted = False  # a step was left by an exception, in doubt
        self.failed = 0  # steps that raised, or lost all their samples, and gave no batch
        self.wait_s = 0.0
        self.fetch_s = 0.0
        self.restarts = 0
        self.moved = 0
        self.skipped = 0
        self.skipped_before = 0  # of the same epoch, before a state was taken
        self.skipped_samples: list[SkippedSample] = []
        self.store_bytes = 0
        self.store_wait_s = 0.0
        self.cache_hits = 0
        self._settled = (0, 0, 0)  # batches, samples and bytes before the present kind of batch
        self._each = (0, 0)

    clock = staticmethod(time.perf_counter)

    @property
    def position(self) -> int:
        """Return the steps that have left, as batches or as exceptions."""
        return self.batches + self.failed

    @property
    def skipped_in_epoch(self) -> int:
        """Return the samples of the epoch that were left out, over a resume: what is bounded."""
        return self.skipped_before + self.skipped

    def set_batch(self, samples: int, size_bytes: int) -> None:
        """Say how many samples and bytes each batch from now on has."""
        if self._each != (samples, size_bytes):
            self._settled = (self.batches, *self._totals())
            self._each = (samples, size_bytes)

    def add_batch(self, samples: int, size_bytes: int) -> None:
        """Count one batch."""
        if self._each != (samples, size_bytes):
            self.set_batch(samples, size_bytes)
        self.batches += 1

    def add_skipped(self, samples: tuple[SkippedSample, ...]) -> None:
        """Count samples that were left out."""
        self.skipped += len(samples)
        self.skipped_samples += samples[: _LISTED - len(self.skipped_samples)]

    def add_made(self, result: Done) -> None:
        """Count what it took to make a batch elsewhere."""
        self.fetch_s += result.fetch_s
        if result.traffic is not None:
            self.add_traffic(result.traffic)
            self.store_bytes += traffic.beside()  # what was fetched ahead from here

    def add_traffic(self, read: Traffic | None) -> None:
        """Count what was read from stores."""
        if read is not None:
            self.store_bytes += read.fetched_bytes
            self.store_wait_s += read.wait_s
            self.cache_hits += read.hits

    def _totals(self) -> tuple[int, int]:
        batches, samples, size_bytes = self._settled
        count = self.batches - batches
        return samples + count * self._each[0], size_bytes + count * self._each[1]

    def snapshot(self) -> Statistics:
        """Return what has been counted so far."""
        samples, size_bytes = self._totals()
        return Statistics(
            path=self.path,
            epochs=0,
            batches=self.batches,
            samples=samples,
            size_bytes=size_bytes,
            wait_s=self.wait_s,
            fetch_s=self.fetch_s,
            restarts=self.restarts,
            moved=self.moved,
            skipped=self.skipped,
            skipped_samples=tuple(self.skipped_samples),
            store_bytes=self.store_bytes,
            store_wait_s=self.store_wait_s,
            cache_hits=self.cache_hits,
        )
