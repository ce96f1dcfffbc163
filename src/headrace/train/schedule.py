"""The learning rate's schedule: whether it belongs to this training, and lasts as long."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
)

from headrace.errors import OptionError, StateError
from headrace.sized import length_of
from headrace.train.guards.finding import Finding
from headrace.train.schedules import made_for, rate_left, swings

_NOTHING_LEFT = 1e-7  # of the learning rate: smaller steps than float32 can tell from none


def check_scheduler(scheduler: Any, optimizer: Optimizer) -> None:
    """Check that a scheduler can be the one of a training.

    Raises:
        OptionError: it cannot.
    """
    if scheduler is None:
        return
    if not isinstance(scheduler, (LRScheduler, ReduceLROnPlateau)):
        what = f"the class {scheduler.__name__}" if isinstance(scheduler, type) else repr(scheduler)
        raise OptionError(
            f"scheduler is {what}, not one of torch.optim.lr_scheduler's. Write scheduler = "
            f"torch.optim.lr_scheduler.StepLR(optimizer, step_size=1000), and give it here."
        )
    if scheduler.optimizer is not optimizer:
        raise OptionError(
            "the scheduler was made for another optimizer, whose learning rate it would change. "
            "Write scheduler = torch.optim.lr_scheduler."
            f"{type(scheduler).__name__}(optimizer, ...) with the optimizer that is given here."
        )
    if isinstance(scheduler, ReduceLROnPlateau) and scheduler.mode != "min":
        raise OptionError(
            f"ReduceLROnPlateau(mode={scheduler.mode!r}) waits for something that grows, and it is "
            f"given the loss. Write ReduceLROnPlateau(optimizer, mode='min', ...)."
        )


def steps_taken(scheduler: Any) -> int | None:
    """Return how often a scheduler was stepped; None where it does not count."""
    found: int | None = getattr(scheduler, "last_epoch", None)  # ChainedScheduler has none
    return found


def steps_of_epoch(loader: Any, accumulate: int) -> int | None:
    """Return the optimizer's steps in an epoch, None where the loader does not know its length."""
    batches = length_of(loader)
    return None if batches is None else -(-batches // accumulate)


@dataclass(frozen=True)
class Length:
    """How long a training is.

    Attributes:
        every: "step" or "epoch", after which the scheduler is stepped.
        steps: of the optimizer in an epoch; None where that is not known.
        epochs: of the training.
        accumulate: batches for each step.
        before: steps of the scheduler before the training.
        total: steps of the scheduler, where they are known from its end.
    """

    every: str
    steps: int | None
    epochs: int
    accumulate: int = 1
    before: int = 0
    total: int | None = None

    @property
    def count(self) -> int | None:
        """Steps of the scheduler at the end; None where that is not known."""
        if self.total is not None:
            return self.total
        if self.every == "epoch":
            return self.before + self.epochs
        return None if self.steps is None else self.before + self.epochs * self.steps

    def taken(self, total: int) -> Length:
        """Return the length of a training that is over."""
        return replace(self, total=total)

    def __str__(self) -> str:
        if self.total is not None:
            return f"the training had {self.total:,} steps"
        if self.every == "epoch":
            return f"the training has {self.epochs:,} epochs"
        batches = f" of {self.accumulate} batches each" if self.accumulate > 1 else ""
        return f"the training has {self.epochs:,} epochs of {self.steps:,} steps{batches}"


def check_duration(scheduler: Any, length: Length) -> Finding | None:
    """Return whether a schedule is over, or at nothing, before the training is, or long after it.

    Args:
        scheduler: of the training, or None.
        length: of the training.
    """
    count = length.count
    if scheduler is None or count is None or isinstance(scheduler, ReduceLROnPlateau):
        return None
    name, made = type(scheduler).__name__, made_for(scheduler)
    stepped = f"{name} is stepped after each {_AFTER[length.every]}, and {length}"
    if isinstance(scheduler, OneCycleLR) and scheduler.total_steps < count:
        text = (
            f"OneCycleLR is made for {scheduler.total_steps:,} steps, and will be stepped "
            f"{count:,} times: torch ends the training with an error there. Write "
            f"OneCycleLR(..., total_steps={count})."
        )
    elif made is not None and made.steps * _NEARLY > count:
        text = (
            f"{name} is made for {made.steps:,} steps ({made.option}={made.value}), and is stepped "
            f"{count:,} times: {length}. So the learning rate never comes to where the schedule "
            f"leads. Count steps of the optimizer, not batches, and write {made.line(count)}."
        )
    elif length.every == "epoch":
        return None
    elif swings(scheduler) and made is not None and made.steps <= length.epochs < count:
        text = (
            f"{name}({made.option}={made.value}) is stepped after each step of the optimizer, and "
            f"{length}: the learning rate would swing up and down. Write Trainer(..., "
            f"schedule_every='epoch'), or {made.line(count)}."
        )
    elif (left := rate_left(scheduler, count)) < _NOTHING_LEFT:
        line = "" if made is None else f", or {made.line(count)} if it counts steps"
        text = (
            f"{stepped}: at its end the learning rate would be {left:.0e} of what it was. "
            f"Write Trainer(..., schedule_every='epoch') if it counts epochs{line}."
        )
    else:
        return None
    return Finding("schedule", text)


_AFTER = {"step": "step of the optimizer", "epoch": "epoch"}
_NEARLY = 0.95  # of a schedule: what is left of it then is next to nothing


def load_schedule(scheduler: Any, state: dict[str, Any], where: str) -> None:
    """Put a schedule back to where it stood.

    Raises:
        StateError: it was made for another number of steps.
    """
    for name in ("total_steps", "T_max"):
        now, before = getattr(scheduler, name, None), state.get(name)
        if now != before:
            raise StateError(
                f"{where} was written with {name}={before}, and this schedule has {name}={now}: "
                f"one that is under way cannot be made longer or shorter. Write {name}={before}, "
                f"or begin with its weights (model.safetensors) in another checkpoint_dir."
            )
    scheduler.load_state_dict(state)


def not_compared(loss: float) -> Finding:
    """Return the finding for a loss that ReduceLROnPlateau is not given."""
    return Finding(
        "plateau",
        f"ReduceLROnPlateau is not stepped where the loss is {loss}: nothing is better or worse "
        f"than that. Mend what makes it.",
    )
