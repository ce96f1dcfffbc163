"""What torch's schedulers were made for: for how many steps, and what they leave of the rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch.optim import lr_scheduler as torch_schedulers
from torch.optim.swa_utils import SWALR


@dataclass(frozen=True)
class MadeFor:
    """The steps after which a scheduler has come to where it leads, and the option that says so."""

    steps: int
    option: str
    value: Any

    def line(self, count: int) -> str:
        """Return what to write for ``count`` steps."""
        return f"{self.option}={[count] if isinstance(self.value, list) else count}"


_OPTIONS: dict[type, str] = {
    torch_schedulers.OneCycleLR: "total_steps",
    torch_schedulers.CosineAnnealingLR: "T_max",
    torch_schedulers.CosineAnnealingWarmRestarts: "T_0",
    torch_schedulers.LinearLR: "total_iters",
    torch_schedulers.ConstantLR: "total_iters",
    torch_schedulers.PolynomialLR: "total_iters",
    torch_schedulers.StepLR: "step_size",
    SWALR: "anneal_epochs",
}


def made_for(scheduler: Any) -> MadeFor | None:
    """Return the steps that a scheduler was made for, None where it does not say."""
    for kind, option in _OPTIONS.items():
        if isinstance(scheduler, kind) and getattr(scheduler, option, None) is not None:
            value = getattr(scheduler, option)
            return MadeFor(int(value), option, value)
    for kind, find in _FOUND.items():
        if isinstance(scheduler, kind):
            return find(scheduler)
    return None


def _of_milestones(scheduler: Any) -> MadeFor | None:
    milestones = sorted(scheduler.milestones.elements())
    return MadeFor(milestones[-1], "milestones", milestones) if milestones else None


def _of_a_cycle(scheduler: Any) -> MadeFor:
    up = round(scheduler.total_size * scheduler.step_ratio)
    return MadeFor(up, "step_size_up", up)


def _of_a_chain(scheduler: Any) -> MadeFor | None:
    found = [made for part in scheduler._schedulers if (made := made_for(part)) is not None]
    return max(found, key=lambda made: made.steps, default=None)


def _of_a_sequence(scheduler: Any) -> MadeFor:
    before = scheduler._milestones[-1]
    last = made_for(scheduler._schedulers[-1])
    steps = before + (0 if last is None else last.steps)
    return MadeFor(steps, "milestones", list(scheduler._milestones))


def _of_lambdas(scheduler: Any) -> MadeFor | None:
    # As transformers' get_..._schedule_with_warmup makes them.
    for function in scheduler.lr_lambdas:
        steps = getattr(function, "keywords", {}).get("num_training_steps")
        if isinstance(steps, int):
            return MadeFor(steps, "num_training_steps", steps)
    return None


_FOUND: dict[type, Callable[[Any], MadeFor | None]] = {
    torch_schedulers.CyclicLR: _of_a_cycle,
    torch_schedulers.MultiStepLR: _of_milestones,
    torch_schedulers.LambdaLR: _of_lambdas,
    torch_schedulers.ChainedScheduler: _of_a_chain,
    torch_schedulers.SequentialLR: _of_a_sequence,
}


def swings(scheduler: Any) -> bool:
    """Say whether a scheduler that goes on past its steps takes the rate up again."""
    if isinstance(scheduler, torch_schedulers.SequentialLR):
        return swings(scheduler._schedulers[-1])
    if isinstance(scheduler, torch_schedulers.ChainedScheduler):
        return any(map(swings, scheduler._schedulers))
    return isinstance(scheduler, torch_schedulers.CosineAnnealingLR)


def rate_left(scheduler: Any, count: int) -> float:
    """Return what part of the learning rate is left when ``count`` steps are nearly over."""
    if isinstance(scheduler, torch_schedulers.SequentialLR):
        return rate_left(scheduler._schedulers[-1], count - scheduler._milestones[-1])
    if isinstance(scheduler, torch_schedulers.ChainedScheduler):
        return math.prod(rate_left(part, count) for part in scheduler._schedulers)
    for kind, left in _LEFT.items():
        if isinstance(scheduler, kind):
            return float(left(scheduler, count))
    return 1.0


def _nearly(count: int) -> int:
    return int(count * 0.9)  # a schedule that ends with the training has some of it left here


_LEFT: dict[type, Callable[[Any, int], float]] = {
    torch_schedulers.PolynomialLR: lambda s, count: 0.0 if s.total_iters <= _nearly(count) else 1.0,
    torch_schedulers.LinearLR: lambda s, n: s.end_factor if s.total_iters <= _nearly(n) else 1.0,
    torch_schedulers.LambdaLR: lambda s, count: _largest(s.lr_lambdas, _nearly(count)),
    torch_schedulers.ExponentialLR: lambda s, count: s.gamma**count,
    torch_schedulers.StepLR: lambda s, count: s.gamma ** (count // s.step_size),
    torch_schedulers.MultiStepLR: lambda s, count: (
        s.gamma ** sum(times for step, times in s.milestones.items() if step <= count)
    ),
}


def _largest(functions: list[Callable[[int], float]], step: int) -> float:
    with suppress(Exception):  # a stranger's function, asked for another step than it expects
        return max(float(function(step)) for function in functions)
    return 1.0
