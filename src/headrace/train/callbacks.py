"""What may be called as a training goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.train.trainer import Trainer


class Callback:
    """Base of callbacks: methods that do nothing. They are called on every rank.

    ``trainer.stop()`` ends the training behind the present epoch. A callback with ``state_dict()``
    and ``load_state_dict()`` is part of the checkpoints.
    """

    def on_fit_start(self, trainer: Trainer) -> None:
        """Before the first step, after a checkpoint was loaded."""

    def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        """Before an epoch; they count from 0."""

    def on_log(self, trainer: Trainer, step: int, values: dict[str, float]) -> None:
        """Whenever losses are read, every ``log_every`` steps: the mean since the last time."""

    def on_epoch_end(self, trainer: Trainer, epoch: int, values: dict[str, float]) -> None:
        """After an epoch and its validation."""

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """After a checkpoint was written, on rank 0."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last epoch."""
