"""Who should make a loader's batches: a sweep over workers, processes and threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from headrace.data.progress import Progress
from headrace.errors import OptionError
from headrace.loader import DataLoader
from headrace.machine import available_cores
from headrace.oom import batch_rows
from headrace.sized import length_of
from headrace.train.randomness import random_states, set_random_states
from headrace.tune.clone import cloned
from headrace.tune.table import as_text, number, show

# Of the best: what takes fewer workers, or threads instead of processes, is then the better choice.
_NEAR = 0.95
_HEADINGS = ("backend", "workers", "first batch s", "samples/s", "waiting", "epoch s", "note")


@dataclass(frozen=True)
class WorkersRow:
    """One setting that was tried.

    Attributes:
        backend: ``"inline"``, ``"thread"`` or ``"process"``.
        num_workers: workers; 0 inline.
        first_batch_s: seconds until the first batch was there, starting workers included.
        samples_per_s: samples a second after that, steps included.
        waiting: share of that time in which the loop waited for a batch; None without a ``step``,
            as a loop that does nothing else waits all the time.
        epoch_s: seconds that an epoch would take; None where its length is not known.
        note: why there are no figures.
    """

    backend: str
    num_workers: int
    first_batch_s: float | None = None
    samples_per_s: float | None = None
    waiting: float | None = None
    epoch_s: float | None = None
    note: str = ""


@dataclass(frozen=True)
class WorkersReport:
    """What :func:`find_num_workers` found.

    Attributes:
        best: the setting to take.
        why: in one sentence.
        rows: all settings, in the order in which they were tried.
    """

    best: WorkersRow
    why: str
    rows: tuple[WorkersRow, ...]

    @property
    def options(self) -> dict[str, Any]:
        """Arguments for the loader: ``DataLoader(dataset, **report.options)``."""
        return {"num_workers": self.best.num_workers, "backend": self.best.backend}

    def __str__(self) -> str:
        """Return the settings as a table, and the reason."""
        return f"{as_text(_HEADINGS, self._cells())}\n{self.why}"

    def show(self) -> None:
        """Print the table, framed in a terminal."""
        show(_HEADINGS, self._cells(), self.rows.index(self.best), self.why)

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                row.backend,
                str(row.num_workers),
                number(row.first_batch_s),
                number(row.samples_per_s),
                "-" if row.waiting is None else f"{100 * row.waiting:.0f} %",
                number(row.epoch_s),
                row.note,
            )
            for row in self.rows
        ]


def find_num_workers(
    loader: DataLoader[Any],
    step: Callable[[Any], Any] | None = None,
    *,
    max_workers: int | None = None,
    seconds: float = 2.0,
    max_batches: int = 500,
    show: bool = True,
) -> WorkersReport:
    """Try inline, threads and processes from one to all cores, and print and return the figures.

    ::

        report = headrace.tune.find_num_workers(loader, step=lambda batch: train(model, batch))
        loader = DataLoader(dataset, batch_size=64, **report.options)

    Each setting gets a fresh copy of the loader, that shares its dataset, and ``seconds``. The one
    is chosen with which an epoch takes the shortest time, starting its workers included; of those
    within 5 % of it the one with the fewest workers, threads before processes. The loader itself,
    its generators and the random state are left as they were; ``step`` is run, and trains.

    Args:
        loader: the loader as it will be used.
        step: what the loop does with a batch, so that loading beside it is measured. None measures
            loading alone: it tells which setting is the fastest, not whether it has to be.
        max_workers: at most so many, instead of the cores that this process may use.
        seconds: to measure each setting, at most.
        max_batches: to take from each, at most.
        show: print the table.

    Raises:
        TypeError: not a loader of headrace.
        OptionError: nothing to measure in.
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"a headrace.DataLoader was wanted, and a {type(loader).__name__} came. Write "
            f"from headrace import DataLoader, and build the loader with that."
        )
    if seconds <= 0 or max_batches < 2:
        raise OptionError(
            f"seconds={seconds!r}, max_batches={max_batches!r} measure nothing. Write "
            f"find_num_workers(loader, seconds=2, max_batches=500)."
        )
    most = max(1, int(available_cores()))
    most = most if max_workers is None else min(most, max_workers)
    settings = [("inline", 0)]
    settings += [(kind, n) for n in range(1, most + 1) for kind in ("thread", "process")]
    random = random_states(torch.device("cpu"))
    limits = seconds, max_batches
    rows = []
    try:
        with Progress("trying workers", len(settings), "settings") as progress:
            for backend, workers in settings:
                copy = partial(cloned, loader, backend, workers)
                rows.append(_tried(copy, WorkersRow(backend, workers), step, limits))
                progress.advance()
    finally:
        set_random_states(random, torch.device("cpu"))
    report = _judged(tuple(rows), alone=step is None)
    if show:
        report.show()
    return report


def _tried(
    make_loader: Callable[[], DataLoader[Any]],
    row: WorkersRow,
    step: Callable[[Any], Any] | None,
    limits: tuple[float, int],
) -> WorkersRow:
    try:
        return _measured(make_loader(), row, step, limits)
    except Exception as error:
        if row.backend == "inline":
            raise
        # Some datasets cannot be loaded in some way: no reason not to try the others.
        return replace(row, note=f"{type(error).__name__}: {error}".partition("\n")[0])


def _measured(
    loader: DataLoader[Any],
    row: WorkersRow,
    step: Callable[[Any], Any] | None,
    limits: tuple[float, int],
) -> WorkersRow:
    seconds, max_batches = limits
    clock = time.perf_counter
    begin = asked = clock()
    came: list[tuple[float, float, int]] = []  # when, after which wait, how many samples
    for batch in loader:
        now = clock()
        came.append((now, now - asked, batch_rows(batch) or loader.batch_size or 1))
        if len(came) == max_batches or now > came[0][0] + seconds:
            break
        if step is not None:
            step(batch)
        asked = clock()
    if not came:
        raise OptionError("the loader has no batches: there is nothing to measure.")
    first_batch_s = came[0][0] - begin
    # What was made ahead while the first one was waited for is no measure of speed.
    ahead = loader.num_workers * (loader.prefetch_factor or 0)
    start = came[min(ahead, (len(came) - 1) // 2)][0]
    counted = [entry for entry in came if entry[0] > start]
    if not counted:
        return replace(
            row, first_batch_s=first_batch_s, epoch_s=first_batch_s, note="one batch only"
        )
    elapsed = came[-1][0] - start
    steps = length_of(loader)
    return replace(
        row,
        first_batch_s=first_batch_s,
        samples_per_s=sum(entry[2] for entry in counted) / elapsed,
        waiting=None if step is None else sum(entry[1] for entry in counted) / elapsed,
        epoch_s=steps and first_batch_s + (steps - 1) * elapsed / len(counted),
    )


def _judged(rows: tuple[WorkersRow, ...], *, alone: bool = False) -> WorkersReport:
    """Choose the quickest; of those that are nearly as quick, the one that takes least."""
    known = [row for row in rows if row.epoch_s or row.samples_per_s]
    quickest = min(map(_cost, known))
    best = next(
        row for row in known if _cost(row) * _NEAR <= quickest
    )  # in order of what they take
    inline = known[0]
    if best is inline:
        why = "Take inline: workers bring less than 5 %."
    else:
        why = f"Take {_named(best)}: {_cost(inline) / _cost(best):.3g} times as fast as inline."
        if best.waiting is not None:
            why += f" The loop then waits {100 * best.waiting:.0f} % of the time."
    if alone:
        why += " This is loading alone: with step=, what your training waits for is measured."
    return WorkersReport(
        best, f"{why} Write num_workers={best.num_workers}, backend={best.backend!r}.", rows
    )


def _cost(row: WorkersRow) -> float:
    """Return seconds: of an epoch, or of a sample where its length is not known."""
    return row.epoch_s or 1 / (row.samples_per_s or 1e-9)


def _named(row: WorkersRow) -> str:
    plural = "" if row.num_workers == 1 else "es" if row.backend == "process" else "s"
    return f"{row.num_workers} worker {row.backend}{plural}"
