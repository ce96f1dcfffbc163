"""The average of a model's weights over its steps: evaluated, and what the model has at the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from headrace.errors import OptionError, StateError
from headrace.train.names import own_names
from headrace.train.trainer import Callback, Trainer


class EMA(Callback):
    """Keeps an exponential moving average of the weights, and evaluates the model with it.

    Args:
        decay: what the average keeps of itself at each step of the optimizer, below 1.
        warmup: let it keep less in the first steps, (1 + n) / (10 + n) behind n of them, so that
            the first weights do not outweigh a short training.

    Training goes on with the weights themselves. The average is in the model during validation and
    ``on_epoch_end``, and when ``fit`` has ended. Buffers, such as the means of BatchNorm, are the
    model's own, as in ``torch.optim.swa_utils.AveragedModel``. It takes as much memory on the
    device as the parameters, and twice that during validation. It is part of the checkpoints,
    whose ``model.safetensors`` has the weights themselves.

    Attributes:
        updates: how many steps the average is over.

    Raises:
        OptionError: a decay that is not from 0 up to 1, 1 excluded.
        StateError: as training begins: the average in a checkpoint is of other parameters.

    Source: Polyak and Juditsky 1992; the warm-up as in TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, decay: float = 0.999, *, warmup: bool = True) -> None:
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay < 1:
            raise OptionError(f"decay={decay!r} is not from 0 up to 1. Write EMA(decay=0.999).")
        if not isinstance(warmup, bool):
            raise OptionError(f"warmup={warmup!r}: write warmup=True or warmup=False.")
        self.decay = float(decay)
        self.warmup = warmup
        self._loaded = False
        self._begin()

    def _begin(self) -> None:
        self.updates = 0
        self._average: dict[str, Tensor] = {}
        self._own: list[Tensor] | None = None  # the weights themselves, while the average is in
        self._live: list[Tensor] = []  # the model's parameters, in the average's order

    def on_fit_start(self, trainer: Trainer) -> None:
        """Begin anew, unless a checkpoint was loaded."""
        if not self._loaded:
            self._begin()
        self._loaded = False
        self._live = []
        if self.updates:
            self._find(trainer.model)

    def _find(self, model: nn.Module) -> None:
        """Take hold of the parameters, and have an average for each, on its device."""
        live = {
            name: p.detach()
            for name, p in own_names(dict(model.named_parameters())).items()
            if p.is_floating_point() or p.is_complex()
        }
        if not self.updates:
            self._average = {name: p.clone() for name, p in live.items()}
        shapes = {name: tuple(average.shape) for name, average in self._average.items()}
        if shapes != {name: tuple(p.shape) for name, p in live.items()}:
            raise StateError(
                "the average of weights in the checkpoint is of other parameters than this "
                "model's. Make the model as it was, or give another checkpoint_dir."
            )
        self._average = {name: self._average[name].to(p.device) for name, p in live.items()}
        self._live = list(live.values())

    def on_step_end(self, trainer: Trainer, step: int) -> None:  # noqa: ARG002
        """Take the weights into the average."""
        if not self._live:
            self._find(trainer.model)  # not before: lazy modules have none before the first step
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        if self.updates:
            get_ema_multi_avg_fn(decay)(list(self._average.values()), self._live, 0)  # type: ignore[no-untyped-call]
        self.updates += 1

    def on_evaluation_start(self, trainer: Trainer) -> None:  # noqa: ARG002
        """Put the average into the model."""
        if self.updates:
            self._own = [p.clone() for p in self._live]
            _put(self._live, list(self._average.values()))

    def on_evaluation_end(self, trainer: Trainer) -> None:  # noqa: ARG002
        """Put the weights themselves back."""
        if self._own is not None:
            _put(self._live, self._own)
            self._own = None

    def on_fit_end(self, trainer: Trainer) -> None:  # noqa: ARG002
        """Leave the average in the model."""
        self._own = None

    def state_dict(self) -> dict[str, Any]:
        """Return the average and how many steps it is over."""
        return {"updates": self.updates, "average": dict(self._average)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._begin()
        self.updates, self._average = state["updates"], dict(state["average"])
        self._loaded = True


def _put(parameters: list[Tensor], values: list[Tensor]) -> None:
    # Into their memory: an RNN's parameters lie in one piece, and DDP's gradients know theirs.
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
