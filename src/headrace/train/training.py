"""What the loop needs of a training: the Trainer is one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from headrace.train.batch import Weight
from headrace.train.guards import Guards
from headrace.train.ranks import Ranks
from headrace.train.update import Updater


class Training(Protocol):
    """The parts of a training and its settings, and whom to tell of its course."""

    updater: Updater
    ranks: Ranks
    guards: Guards
    device: torch.device
    weight: Weight
    loss_module: nn.Module | None
    accumulate: int
    log_every: int
    schedule_every: Literal["step", "epoch"]
    progress: bool | Literal["auto"]
    stopping: bool
    logger: Any
    log_folder: Path | None  # of the logger, where it is ours to hold
    logs: bool  # there is a logger, and this rank hands it values

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a method of all callbacks."""

    def log(self, values: dict[str, float], step: int, prefix: str = "") -> None:
        """Hand values to the logger."""

    def run_evaluation(
        self, loader: Iterable[Any], after_batch: Callable[[], None]
    ) -> dict[str, float]:
        """Evaluate, and call ``after_batch()`` after each batch."""

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all but the model."""

    def load_state_dict(self, state: dict[str, Any], path: Path) -> None:
        """Put them back; ``path`` is where they were read."""
