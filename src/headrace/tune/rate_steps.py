"""Steps of a training at a learning rate: a Trainer's, or a function's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from headrace.errors import OptionError, TrainingError
from headrace.train.batch import to_device
from headrace.train.devices import device_of
from headrace.train.evaluation import mode
from headrace.train.ranks import Ranks
from headrace.train.trainer import Trainer
from headrace.train.update import counts_nothing


class Steps(Protocol):
    """What trains, what of it has to be put back, and how to take a step."""

    module: nn.Module | None
    optimizer: torch.optim.Optimizer
    others: list[Any]
    device: torch.device
    accumulate: int

    def training(self) -> AbstractContextManager[Any]:
        """Put the model into training mode for as long as the block lasts."""

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""

    def take(self, group: list[Any]) -> float | None:
        """Train on a group of batches; return its loss over all ranks, None if it counts nothing.

        Raises:
            TrainingError: there is no loss.
        """

    def is_whole(self) -> bool:
        """Say whether all parameters are finite."""


class _Rates:
    """The learning rates of an optimizer, in their proportions.

    Args:
        optimizer: their largest counts as 1.

    Raises:
        OptionError: it has none.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        found: list[Any] = [group.get("lr") for group in optimizer.param_groups]
        if any(rate is None for rate in found):
            raise OptionError(
                f"{type(optimizer).__name__} finds its learning rate itself: lr=None. There is "
                f"nothing to look for, or write lr=0.001 first."
            )
        rates = [float(rate) for rate in found]
        largest = max(rates)
        self._shares = [rate / largest if largest else 1.0 for rate in rates]

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for group, share in zip(self.optimizer.param_groups, self._shares, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * share)
            else:
                group["lr"] = rate * share

    def is_whole(self) -> bool:
        """Say whether all parameters are finite."""
        groups = self.optimizer.param_groups
        return all(bool(p.detach().isfinite().all()) for g in groups for p in g["params"])


class TrainerSteps(_Rates):
    """A Trainer's steps, without its schedule, its callbacks and what its guards say of losses."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(trainer.updater.optimizer)
        self._trainer = trainer
        modules = [m for m in (trainer.model, trainer.loss_module) if m is not None]
        self.module: nn.Module | None = nn.ModuleList(modules)
        precision = trainer.updater.precision
        self.others: list[Any] = [precision] if precision.state_dict() else []
        self.device = trainer.device
        self.accumulate = trainer.accumulate

    def training(self) -> AbstractContextManager[Any]:
        """Put the model into training mode for as long as the block lasts."""
        return mode(self._trainer.model, training=True)

    def take(self, group: list[Any]) -> float | None:
        """Train on a group of batches, as ``fit`` does."""
        trainer = self._trainer
        weights = [trainer.weight(batch) for batch in group]
        total = trainer.ranks.sum([float(sum(weights))])[0]
        if counts_nothing(total):
            return None
        loss = trainer.updater.gradients(group, weights, total, everywhere=True)
        trainer.updater.update()
        return trainer.ranks.sum([loss.item()])[0]


class StepsByHand(_Rates):
    """A function that trains on a batch, and says its loss."""

    def __init__(
        self,
        step: Callable[[Any], Any],
        model: nn.Module | None,
        optimizer: torch.optim.Optimizer | None,
        device: torch.device | str | None,
    ) -> None:
        if not callable(step):
            raise OptionError(
                f"step is a {type(step).__name__}, neither a Trainer nor a function that trains on "
                f"a batch. Write find_learning_rate(trainer, loader), or find_learning_rate(step, "
                f"loader, model=model, optimizer=optimizer) with def step(batch): ... return loss."
            )
        if not isinstance(optimizer, torch.optim.Optimizer) or not isinstance(model, nn.Module):
            raise OptionError(
                "a function does not say what it trains. Write find_learning_rate(step, loader, "
                "model=model, optimizer=optimizer)."
            )
        super().__init__(optimizer)
        self._step = step
        self.module: nn.Module | None = model
        self.others: list[Any] = []
        self.accumulate = 1
        first = optimizer.param_groups[0]["params"][0]
        self.device = first.device if device is None else device_of(device, "find_learning_rate")
        self._ranks = _ranks()

    def training(self) -> AbstractContextManager[Any]:
        """Leave the model's mode to the function."""
        return nullcontext()

    def take(self, group: list[Any]) -> float | None:
        """Train on a batch."""
        loss = self._step(to_device(group[0], self.device))
        if loss is None or (isinstance(loss, Tensor) and loss.numel() != 1):
            raise TrainingError("step has to return its loss, one number. End it with: return loss")
        return self._ranks.sum([float(loss)])[0] / self._ranks.size


def _ranks() -> Ranks:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return Ranks()
