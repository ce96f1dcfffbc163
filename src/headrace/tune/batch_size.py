"""The largest batch that a training step can do with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from headrace.data.progress import Progress
from headrace.errors import OptionError, TrainingError
from headrace.oom import batch_rows, is_out_of_memory, release_memory
from headrace.train.devices import device_of
from headrace.tune.memory import PeakMemory, free_bytes
from headrace.tune.snapshot import Snapshot
from headrace.tune.table import as_text, mebibytes, number

# A size is run three times at least, and for so long, unless steps take long: then the quickest one
# means something on a busy machine too.
_RUNS, _TIMED_S, _LONG_S = 3, 0.2, 2.0
# Below, steps take so little that their times say more about the machine than about the size.
_FEWEST_ROWS = 32
_MIB = 1 << 20


@dataclass(frozen=True)
class Trial:
    """One batch size that was run.

    Attributes:
        batch_size: samples.
        fits: whether the step ran, within the share of memory.
        seconds: of one step, the quickest; None where it did not run.
        memory_bytes: taken by the step at its peak; None where the device does not tell.
    """

    batch_size: int
    fits: bool
    seconds: float | None
    memory_bytes: int | None

    @property
    def samples_per_s(self) -> float | None:
        """Samples a second."""
        return None if self.seconds is None else self.batch_size / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class BatchSizeReport:
    """What :func:`find_batch_size` found; ``int(report)`` is the batch size.

    Attributes:
        batch_size: the largest that fits, or on the CPU the one at which speed stops growing.
        why: what ended the search, in one sentence.
        trials: the sizes that were run, in that order.
    """

    batch_size: int
    why: str
    trials: tuple[Trial, ...]

    def __int__(self) -> int:
        return self.batch_size

    def __str__(self) -> str:
        """Return the trials as a table, and the reason."""
        rows = [
            (
                f"{t.batch_size:,}",
                "yes" if t.fits else "no",
                number(None if t.seconds is None else 1000 * t.seconds),
                number(t.samples_per_s),
                mebibytes(t.memory_bytes),
            )
            for t in self.trials
        ]
        table = as_text(("batch size", "fits", "ms a step", "samples/s", "MiB"), rows)
        return f"{table}\nbatch size {self.batch_size:,}: {self.why}"


def find_batch_size(
    step: Callable[[Any], Any],
    make_batch: Callable[[int], Any],
    *,
    model: torch.nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    others: Iterable[Any] = (),
    device: torch.device | str | None = None,
    low: int = 1,
    high: int = 65536,
    memory_share: float = 0.8,
    min_gain: float | None = 0.05,
) -> BatchSizeReport:
    """Find the largest batch size for which a whole training step runs.

    ::

        def step(batch):
            loss = loss_fn(model(batch["x"]), batch["y"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        longest = sorted(dataset, key=lambda sample: -len(sample["x"]))
        found = find_batch_size(
            step, lambda n: collate(longest[:n]), model=model, optimizer=optimizer
        )
        loader = DataLoader(dataset, batch_size=found.batch_size)

    The size is doubled until a step runs out of memory or takes more than its share, then the
    interval is halved. One step at ``low`` comes first, so that the optimizer's own memory is there
    in every measurement. Every size that is returned was run.

    On the CPU nothing is run that would take more than its share by what the sizes before took: the
    kernel does not raise, it kills. And the search ends, at 32 samples or more, when two doublings
    in a row gain less than ``min_gain`` in samples a second; then the size where speed stopped
    growing is returned: the smallest that none is faster than by ``min_gain``.

    Afterwards ``model`` (parameters, gradients, buffers, modes), ``optimizer``, ``others`` and the
    random state are what they were, bit for bit, and memory is given back. What else ``step``
    changes stays changed.

    Args:
        step: does a whole step on a batch: forward, backward, optimizer.
        make_batch: makes a batch of ``n`` of the longest samples, on the model's device. It may
            return fewer when there are no more: the search ends there.
        model: what ``step`` trains.
        optimizer: what it steps.
        others: what else it changes that has ``state_dict()``: schedulers, gradient scalers.
        device: where ``step`` runs; None is where the model is, or what the optimizer steps.
        low: the smallest size; 2 for models with BatchNorm.
        high: the largest size to be tried.
        memory_share: of the memory that is free now (in the container, on the CPU).
        min_gain: on the CPU, what share of samples/s a doubling must gain; None: memory only.

    Raises:
        OptionError: limits that cannot be; no such device; what is no function; a ``low`` of 1
            where BatchNorm needs 2.
        TrainingError: not even ``low`` fits.
    """
    if not callable(step):
        raise OptionError(
            f"step is a {type(step).__name__}, not a function that trains on a batch. Write "
            f"find_batch_size(step, make_batch), with def step(batch): ..."
        )
    if not callable(make_batch):
        raise OptionError(
            f"make_batch is a {type(make_batch).__name__}, not a function of a number of samples. "
            f"Write find_batch_size(step, lambda n: default_collate([dataset[i] for i in "
            f"range(min(n, len(dataset)))])), default_collate being torch.utils.data's."
        )
    if not 1 <= low <= high or not 0 < memory_share <= 1:
        raise OptionError(
            f"low={low!r}, high={high!r}, memory_share={memory_share!r} leave nothing to try. "
            f"Write find_batch_size(step, make_batch, low=1, high=4096, memory_share=0.8)."
        )
    place = _device(device, model, optimizer)
    snapshot = Snapshot(model, optimizer, others, place)
    gain = min_gain if place.type == "cpu" else None
    search = _Search(step, make_batch, place, memory_share, gain)
    try:
        return search.run(low, high)
    finally:
        snapshot.restore()
        release_memory(place)


def _device(
    device: torch.device | str | None,
    model: torch.nn.Module | None,
    optimizer: torch.optim.Optimizer | None,
) -> torch.device:
    if device is not None:
        return device_of(device, "find_batch_size")
    owned = [] if model is None else list(model.parameters())
    groups = [] if optimizer is None else optimizer.param_groups
    found = owned + [parameter for group in groups for parameter in group["params"]]
    return found[0].device if found else torch.device("cpu")


class _Search:
    """Growth, then bisection."""

    def __init__(
        self,
        step: Callable[[Any], Any],
        make_batch: Callable[[int], Any],
        device: torch.device,
        memory_share: float,
        min_gain: float | None,
    ) -> None:
        self._step, self._make_batch, self._device = step, make_batch, device
        self._gain = min_gain
        free = free_bytes(device)
        self._share = memory_share
        self._room = None if free is None else int(memory_share * free)
        self._memory = PeakMemory(device)
        self._trials: list[Trial] = []
        self._why = ""

    def run(self, low: int, high: int) -> BatchSizeReport:
        """Return the report."""
        with Progress("finding a batch size", None, "batch sizes tried") as progress:
            self._progress = progress
            if not self._begins(low):
                raise TrainingError(
                    f"not even a batch of {low} fits: {self._why}. Use a smaller model, shorter "
                    f"samples or a lower precision."
                )
            good, bad = self._grow(self._trials[-1].batch_size, high)
            while bad is not None and bad - good > 1:
                middle = (good + bad) // 2
                if self._fits(middle):
                    good = self._trials[-1].batch_size
                    bad = bad if good == middle else None  # there are no more samples
                else:
                    bad = middle
        return BatchSizeReport(good, self._why, tuple(self._trials))

    def _begins(self, low: int) -> bool:
        try:
            return self._fits(low, warm_up=True)
        except ValueError as error:
            if low > 1 or "more than 1 value per channel" not in str(error):
                raise
            raise OptionError(
                "BatchNorm cannot be trained on one sample. Write find_batch_size(..., low=2)."
            ) from error

    def _grow(self, low: int, high: int) -> tuple[int, int | None]:
        """Return the largest size that fitted, and the smallest that did not, if one did not."""
        good, gainless = low, 0
        while good < high:
            wanted = min(2 * good, high)
            if not self._fits(wanted):
                return good, wanted
            if self._trials[-1].batch_size < wanted:  # make_batch has no more samples
                high = self._trials[-1].batch_size
                self._why = f"there are no more than {high:,} samples to make a batch of"
                return high, None
            before, good = good, wanted
            if self._gain is None:
                continue
            # Against the size before: after one lucky size all others would look gainless.
            gained = self._rate(good) >= (1 + self._gain) * self._rate(before)
            gainless = 0 if gained else gainless + 1
            if gainless >= 2 and good >= _FEWEST_ROWS:
                break
        if self._gain is not None and gainless >= 2:
            return self._quick_enough(self._gain), None
        self._why = f"high={high:,} was reached"
        return good, None

    def _quick_enough(self, gain: float) -> int:
        """Return the smallest size that no other is faster than by ``gain``."""
        sizes = [trial.batch_size for trial in self._trials]
        most = max(map(self._rate, sizes))
        found = next(size for size in sizes if (1 + gain) * self._rate(size) >= most)
        self._why = (
            f"more samples at once are not {100 * gain:.0f} % faster a sample "
            f"({number(self._rate(found))} samples/s)"
        )
        return found

    def _rate(self, batch_size: int) -> float:
        rates = [t.samples_per_s for t in self._trials if t.batch_size == batch_size]
        return rates[-1] or 0.0

    def _fits(self, batch_size: int, warm_up: bool = False) -> bool:
        expected = self._expected_bytes(batch_size)
        if self._device.type == "cpu" and self._is_too_much(expected):
            self._why = (
                f"{batch_size:,} would take about {number((expected or 0) / _MIB)} MiB, more than "
                f"{self._limit()}"
            )
            return False  # not run: the kernel would kill, not raise
        if warm_up and self._attempt(batch_size) is None:
            return False
        trial = self._attempt(batch_size)
        self._progress.advance()
        if trial is None:
            self._trials.append(Trial(batch_size, False, None, None))
            return False
        if self._is_too_much(trial.memory_bytes):
            self._why = (
                f"{batch_size:,} takes {mebibytes(trial.memory_bytes)} MiB, more than "
                f"{self._limit()}"
            )
            trial = Trial(batch_size, False, trial.seconds, trial.memory_bytes)
        self._trials.append(trial)
        return trial.fits

    def _limit(self) -> str:
        return f"{100 * self._share:.0f} % of the free memory ({mebibytes(self._room)} MiB)"

    def _is_too_much(self, taken: float | None) -> bool:
        return taken is not None and self._room is not None and taken > self._room

    def _expected_bytes(self, batch_size: int) -> float | None:
        """Return what a size will take, by the line through the two largest before it."""
        known = [(t.batch_size, t.memory_bytes) for t in self._trials if t.memory_bytes is not None]
        if len(known) < 2:
            return known[0][1] * batch_size / known[0][0] if known else None
        (rows, taken), (fewer, less) = sorted(known)[:-3:-1]
        slope = max(0.0, (taken - less) / max(1, rows - fewer))
        return taken + slope * (batch_size - rows)

    def _attempt(self, batch_size: int) -> Trial | None:
        """Run the step at one size; None where memory ran out."""
        try:
            return self._timed(batch_size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            first_line = str(error).partition("\n")[0]
            self._why = f"{batch_size:,} ran out of memory ({type(error).__name__}: {first_line})"
        # The traceback is gone, and with it what the step had allocated.
        release_memory(self._device)
        return None

    def _timed(self, batch_size: int) -> Trial:
        batch = self._make_batch(batch_size)  # what it takes counts too
        rows = batch_rows(batch)
        batch_size = batch_size if rows is None else min(rows, batch_size)
        best = total = 0.0
        runs = 0
        memory: int | None = None
        while total < _TIMED_S or (runs < _RUNS and total < _LONG_S):
            self._memory.begin()
            begin = time.perf_counter()
            self._step(batch)
            self._wait()
            seconds = time.perf_counter() - begin
            total += seconds
            runs += 1
            best = min(best or seconds, seconds)
            memory = self._memory.taken_bytes(memory)
        return Trial(batch_size, True, best, memory)

    def _wait(self) -> None:
        if self._device.type != "cpu":
            torch.get_device_module(self._device.type).synchronize(self._device)
