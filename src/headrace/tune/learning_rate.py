"""Which learning rate: the range test, and everything put back as it was."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headrace.data.progress import Progress
from headrace.errors import OptionError, TrainingError
from headrace.train.checks import check_loader, count, no_batch
from headrace.train.trainer import Trainer
from headrace.tune.loader_copy import copy_of
from headrace.tune.rate_curve import FEWEST, draw_rates, judged
from headrace.tune.rate_steps import Steps, StepsByHand, TrainerSteps
from headrace.tune.snapshot import Snapshot
from headrace.tune.table import as_text, number

_DIVERGED = 3.0  # how far above its lowest, in units of that or of its fall, a loss is beyond hope
_REMEMBERED = 0.8  # of the running mean in which that is seen
_WEIGHTLESS = 1000  # groups in a row that may count nothing
_SHOWN = 16  # rows of the table


@dataclass(frozen=True)
class LearningRateRow:
    """One step of the range test.

    Attributes:
        learning_rate: of the step; of several parameter groups, the largest of them.
        loss: of the batch behind it.
    """

    learning_rate: float
    loss: float


@dataclass(frozen=True)
class LearningRateReport:
    """What :func:`find_learning_rate` found; ``float(report)`` is the learning rate.

    Attributes:
        learning_rate: where the loss fell fastest; None where it fell nowhere.
        lowest: the rate at which the loss was lowest: about the largest that can be trained with.
        why: the choice in one sentence.
        rows: the steps, from low rates to high ones.
    """

    learning_rate: float | None
    lowest: float | None
    why: str
    rows: tuple[LearningRateRow, ...]

    def __float__(self) -> float:
        if self.learning_rate is None:
            raise TrainingError(f"there is no learning rate to take: {self.why}")
        return self.learning_rate

    def __str__(self) -> str:
        """Return some of the steps as a table, and the choice."""
        every = max(1, math.ceil(len(self.rows) / _SHOWN))
        rows = [(f"{r.learning_rate:.2e}", number(r.loss)) for r in self.rows[::every]]
        return f"{as_text(('learning rate', 'loss'), rows)}\n{self.why}"

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the loss over the learning rate, and the choice, into a file (.png, .svg).

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        rates, losses = [r.learning_rate for r in self.rows], [r.loss for r in self.rows]
        draw_rates(rates, losses, self.learning_rate, self.lowest, path)


def find_learning_rate(
    step: Trainer | Callable[[Any], Tensor | float],
    loader: Iterable[Any],
    *,
    model: torch.nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    others: Iterable[Any] = (),
    device: torch.device | str | None = None,
    low: float = 1e-7,
    high: float = 10.0,
    steps: int = 100,
) -> LearningRateReport:
    """Train for some steps at larger and larger learning rates, and look where the loss falls.

    ::

        found = find_learning_rate(trainer, loader)
        found.plot("rates.png")
        optimizer = torch.optim.Adam(model.parameters(), lr=float(found))

    The range test of Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), with
    rates that grow by the same factor in each step. It ends early where the loss is no number any
    more, or has grown far above its lowest. The rate that is returned is the one at which the
    smoothed loss falls fastest. It is a start: what trains best may be three times more or less.

    Afterwards everything is what it was, bit for bit: the model (parameters, gradients, buffers,
    modes), a loss that is a module, the optimizer, a gradient scaler, ``others``, the random state,
    the loader with its generators and its position. No callback is called, no schedule moves.

    Args:
        step: a `Trainer`; or a function that trains on a batch and returns its mean loss, as
            ``train_epoch`` takes it, with ``model`` and ``optimizer``.
        loader: as it will be trained with; gone through again where ``steps`` are more.
        model: what a function trains.
        optimizer: whose learning rates are set. Those of several groups keep their proportions.
        others: what else the function changes that has ``state_dict()``.
        device: where the batches are moved to; None is where the model is.
        low: the first learning rate.
        high: the last one.
        steps: of the optimizer, at most.

    Raises:
        OptionError: limits that cannot be; an iterator, which cannot be put back; an optimizer
            without a learning rate.
        TrainingError: the loader gave no batch, the function no loss.
    """
    if not (0 < low < high and math.isfinite(high)):
        raise OptionError(
            f"low={low!r}, high={high!r} is no range of learning rates. Write "
            f"find_learning_rate(trainer, loader, low=1e-7, high=10.0)."
        )
    if count("steps", steps) < FEWEST:
        raise OptionError(f"steps={steps!r} show no curve. Write steps=100.")
    check_loader("loader", loader)
    taken: Steps
    if isinstance(step, Trainer):
        if model is not None or optimizer is not None or device is not None:
            raise OptionError(
                "a Trainer has its own model, optimizer and device. Write "
                "find_learning_rate(trainer, loader)."
            )
        step.ranks.check_alike({"loader": loader}, {"steps": steps, "low": low, "high": high})
        taken = TrainerSteps(step)
    else:
        taken = StepsByHand(step, model, optimizer, device)
    rates = [low * (high / low) ** (at / (steps - 1)) for at in range(steps)]
    snapshot = Snapshot(taken.module, taken.optimizer, [*taken.others, *others], taken.device)
    try:
        with copy_of(loader) as batches, taken.training():
            losses, end = _tried(taken, batches, rates)
    finally:
        snapshot.restore()
    # What a step at a rate did is seen in the loss of the next one.
    rows = tuple(map(LearningRateRow, rates, losses[1:]))
    found, lowest, why = judged([r.learning_rate for r in rows], [r.loss for r in rows])
    return LearningRateReport(found, lowest, f"{why} {end}", rows)


def _tried(steps: Steps, batches: Iterable[Any], rates: list[float]) -> tuple[list[float], str]:
    """Return the losses, one more than the rates that were tried, and what ended the test."""
    groups = _groups(batches, steps.accumulate)
    losses: list[float] = []
    mean = lowest = math.nan
    with Progress("finding a learning rate", len(rates) + 1, "steps") as progress:
        for rate in [*rates, rates[-1]]:
            steps.set_rate(rate)
            loss = _loss_of(steps, groups)
            losses.append(loss)
            progress.advance()
            if not math.isfinite(loss):
                return losses, f"The test ended at {rate:.2g}: the loss was {loss}."
            mean = loss if len(losses) == 1 else _REMEMBERED * mean + (1 - _REMEMBERED) * loss
            lowest = mean if len(losses) == 1 else min(lowest, mean)
            if mean - lowest > _DIVERGED * max(abs(lowest), losses[0] - lowest):
                return losses, f"The test ended at {rate:.2g}: the loss was far above its lowest."
    return losses, f"The test went on to {rates[-1]:.2g}."


def _loss_of(steps: Steps, groups: Iterator[list[Any]]) -> float:
    """Return the loss of the next group that counts; NaN where the model has gone to pieces."""
    for _ in range(_WEIGHTLESS):
        try:
            loss = steps.take(next(groups))
        except (RuntimeError, ValueError):  # some losses refuse what is no probability any more
            if steps.is_whole():
                raise
            return math.nan
        if loss is not None:
            return loss
    raise TrainingError(
        f"{_WEIGHTLESS:,} batches in a row count nothing: all of their targets are ignored, or "
        f"weight= says so. Look at the targets."
    )


def _groups(batches: Iterable[Any], accumulate: int) -> Iterator[list[Any]]:
    """Go through a loader again and again, so many batches at a time."""
    while True:
        group: list[Any] = []
        some = False
        for batch in batches:
            some = True
            group.append(batch)
            if len(group) == accumulate:
                yield group
                group = []
        if group:
            yield group
        if not some:
            raise no_batch("the loader", batches, 0, "train on")
