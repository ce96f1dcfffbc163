"""The learning rate's schedule: whether it belongs to this training, and lasts as long."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from headrace.errors import OptionError, StateError
from headrace.sized import length_of
from headrace.train.guards.finding import Finding

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


def steps_of_epoch(loader: Any, accumulate: int) -> int | None:
    """Return the optimizer's steps in an epoch, None where the loader does not know its length."""
    batches = length_of(loader)
    return None if batches is None else -(-batches // accumulate)


def check_duration(scheduler: Any, every: str, steps: int | None, epochs: int) -> Finding | None:
    """Return whether a schedule is over, or at nothing, before the training is.

    Args:
        scheduler: of the training, or None.
        every: "step" or "epoch", after which it is stepped.
        steps: of the optimizer in an epoch; None where that is not known.
        epochs: of the training.
    """
    if steps is None and every == "step":
        return None
    count = epochs if every == "epoch" else epochs * (steps or 0)
    came = f"the training has {epochs:,} epochs of {steps:,} steps" if steps else ""
    if isinstance(scheduler, OneCycleLR) and scheduler.total_steps < count:
        text = (
            f"OneCycleLR is made for {scheduler.total_steps:,} steps, and will be stepped "
            f"{count:,} times: torch ends the training with an error there. Write "
            f"OneCycleLR(..., total_steps={count})."
        )
    elif every == "epoch":
        return None
    elif isinstance(scheduler, CosineAnnealingLR) and scheduler.T_max <= epochs < count:
        text = (
            f"CosineAnnealingLR(T_max={scheduler.T_max}) is stepped after each step of the "
            f"optimizer, and {came}: the learning rate would swing up and down. Write "
            f"Trainer(..., schedule_every='epoch'), or T_max={count}."
        )
    elif _left(scheduler, count) < _NOTHING_LEFT:
        text = (
            f"{type(scheduler).__name__} is stepped after each step of the optimizer, and {came}: "
            f"at its end the learning rate would be {_left(scheduler, count):.0e} of what it was. "
            f"Write Trainer(..., schedule_every='epoch') if it counts epochs."
        )
    else:
        return None
    return Finding("schedule", text)


def _left(scheduler: Any, count: int) -> float:
    """Return what part of the learning rate is left after ``count`` steps of a scheduler."""
    if isinstance(scheduler, ExponentialLR):
        falls = count
    elif isinstance(scheduler, StepLR):
        falls = count // scheduler.step_size
    elif isinstance(scheduler, MultiStepLR):
        falls = sum(times for step, times in scheduler.milestones.items() if step <= count)
    else:
        return 1.0
    return float(scheduler.gamma) ** falls


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
