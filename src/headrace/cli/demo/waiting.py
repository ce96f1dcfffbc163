"""How long a training loop waits for its data: headrace's loader beside torch's."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.utils.data

from headrace import DataLoader
from headrace.cli.demo.data import Digits
from headrace.cli.demo.settings import Settings

_RUNS = 5
_MAX_EPOCHS = 20


@dataclass(frozen=True)
class Waiting:
    """Median seconds that each loader took to hand out the same epochs."""

    headrace_s: float
    torch_s: float
    epochs: int
    batches: int
    runs: int

    def line(self) -> str:
        """Return what was measured, and what came out, whichever way it went."""
        return (
            f"waiting for data: headrace {self.headrace_s * 1e3:.1f} ms, "
            f"torch's loader {self.torch_s * 1e3:.1f} ms ({self._verdict()}) for the same "
            f"{self.epochs} {'epoch' if self.epochs == 1 else 'epochs'} of {self.batches} shuffled "
            f"{'batch' if self.batches == 1 else 'batches'}; medians of {self.runs} runs "
            "in turn, without the training"
        )

    def _verdict(self) -> str:
        ratio = self.torch_s / self.headrace_s
        if ratio >= 1.05:
            return f"{ratio:.1f} times as long"
        if ratio > 1 / 1.05:
            return "no difference"
        return f"headrace is slower, {1 / ratio:.1f} times as long"


def measure_waiting(digits: Digits, settings: Settings) -> Waiting:
    """Iterate both loaders in turn over the epochs that were trained on, at most 20."""
    epochs = min(settings.epochs, _MAX_EPOCHS)
    ours = _epochs_of(DataLoader, digits, settings)
    theirs = _epochs_of(torch.utils.data.DataLoader, digits, settings)
    # The first batch of a process pays for things that no training would pay twice.
    ours(1), theirs(1)
    times = [(ours(epochs), theirs(epochs)) for _ in range(_RUNS)]
    return Waiting(
        headrace_s=median(pair[0] for pair in times),
        torch_s=median(pair[1] for pair in times),
        epochs=epochs,
        batches=-(-len(digits.train) // settings.batch_size),
        runs=_RUNS,
    )


def _epochs_of(
    loader_class: Callable[..., Iterable[Any]], digits: Digits, settings: Settings
) -> Callable[[int], float]:
    generator = torch.Generator()
    loader = loader_class(
        digits.train, batch_size=settings.batch_size, shuffle=True, generator=generator
    )

    def seconds(epochs: int) -> float:
        generator.manual_seed(settings.seed)
        started = time.perf_counter()
        for _ in range(epochs):
            for _images, _labels in loader:
                pass
        return time.perf_counter() - started

    return seconds
