"""Ends a training that gets no better, and gives back the best model that there was."""

from __future__ import annotations

import math
from typing import Any

import torch

from headrace.errors import OptionError
from headrace.train.best import Mode, sign_of, value_of
from headrace.train.names import names_for, own_names
from headrace.train.trainer import Callback, Trainer


class EarlyStopping(Callback):
    """Ends a training whose metric has not got better for some epochs.

    Args:
        metric: one of the values of an epoch: "val_loss", "val_accuracy", "loss".
        patience: how many epochs in a row may be no better.
        mode: "min", if less is better, or "max"; "auto" tells by the name.
        min_delta: what counts as better is better by more than this.
        restore_best: at the end, give the model the weights of its best epoch.

    A value that is no number is no better. The best weights and the epochs that were waited are
    part of the checkpoints, so that a run that is resumed ends where it would have, with the same
    model. They take as much memory on the CPU as the model.

    Attributes:
        best: the best value so far; None before the first epoch.
        best_epoch: its epoch, from 0.

    Raises:
        OptionError: a value that cannot be, or a name that does not tell which way is better.
        TrainingError: as an epoch ends: there is no such metric.
    """

    def __init__(
        self,
        metric: str = "val_loss",
        patience: int = 5,
        *,
        mode: Mode = "auto",
        min_delta: float = 0.0,
        restore_best: bool = True,
    ) -> None:
        if type(patience) is not int or patience < 1:
            raise OptionError(f"patience={patience!r} is no number of epochs. Write patience=5.")
        if not min_delta >= 0:
            raise OptionError(f"min_delta={min_delta!r} is below 0. Write min_delta=0.001.")
        self.metric = metric
        self.patience = patience
        self.min_delta = float(min_delta)
        self.restore_best = restore_best
        line = f"EarlyStopping({metric!r}, mode='max'), or mode='min'"
        self._sign = sign_of(metric, mode, "mode", line)
        self._loaded = False
        self._begin()

    def _begin(self) -> None:
        self.best: float | None = None
        self.best_epoch = -1
        self._waited = 0
        self._weights: dict[str, torch.Tensor] | None = None

    def on_fit_start(self, trainer: Trainer) -> None:  # noqa: ARG002
        """Begin anew, unless a checkpoint was loaded."""
        if not self._loaded:
            self._begin()
        self._loaded = False

    def on_epoch_end(self, trainer: Trainer, epoch: int, values: dict[str, float]) -> None:
        """Look whether the epoch was better than the best; stop if none was for too long."""
        line = "EarlyStopping(metric=...)"
        value = value_of(self.metric, values, "EarlyStopping watches", line)
        if self._is_better(value):
            self.best, self.best_epoch, self._waited = value, epoch, 0
            if self.restore_best:
                state = own_names(trainer.model.state_dict())
                self._weights = {name: t.detach().cpu().clone() for name, t in state.items()}
            return
        self._waited += 1
        if self._waited >= self.patience:
            trainer.stop()

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        return self.best is None or self._sign * (value - self.best) > self.min_delta

    def on_fit_end(self, trainer: Trainer) -> None:
        """Give the model its best weights."""
        if self._weights is not None:
            trainer.model.load_state_dict(names_for(trainer.model, self._weights))

    def state_dict(self) -> dict[str, Any]:
        """Return where it stands, and the best weights."""
        return {
            "metric": self.metric,
            "sign": self._sign,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "waited": self._waited,
            "weights": self._weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; a best epoch that cannot be compared or given back is forgotten."""
        self._begin()
        same = state["metric"] == self.metric and state.get("sign", self._sign) == self._sign
        kept = not self.restore_best or state["best"] is None or state["weights"] is not None
        if same and kept:
            self.best, self.best_epoch = state["best"], state["best_epoch"]
            self._waited = state["waited"]
            self._weights = state["weights"] if self.restore_best else None
        self._loaded = True
