"""A model's loss and metrics over a loader, and the mode that it is in meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from headrace.errors import TrainingError
from headrace.train.batch import Weight, to_device
from headrace.train.metrics import Metrics
from headrace.train.ranks import Ranks
from headrace.train.update import Updater


class Evaluation:
    """Goes through a loader in evaluation mode and without gradients.

    Args:
        updater: computes the losses.
        metrics: are given the outputs and targets of each batch.
        weight: how much a batch counts in the loss.
        counts: how much it counts in the metrics.
        ranks: each evaluates its part, and all get the values of the whole.
    """

    def __init__(
        self, updater: Updater, metrics: Metrics, weight: Weight, counts: Weight, ranks: Ranks
    ) -> None:
        self._updater, self._metrics, self._ranks = updater, metrics, ranks
        self._weight, self._counts = weight, counts

    def run(self, loader: Iterable[Any], after_batch: Callable[[], None]) -> dict[str, float]:
        """Return the mean loss and the metrics; call ``after_batch()`` after each batch.

        Raises:
            TrainingError: the loader gave no batch.
        """
        device = self._updater.device
        kind = torch.float32 if device.type == "mps" else torch.float64  # which has no 64
        total = torch.zeros((), dtype=kind, device=device)
        weights: Any = 0.0
        self._metrics.reset()
        same = self._counts is self._weight
        with mode(self._updater.model, training=False), torch.inference_mode():
            for batch in loader:
                weight = self._weight(batch)
                if isinstance(weight, (int, float)) and not weight:
                    continue  # all of its targets are ignored: the mean over none is NaN
                moved = to_device(batch, device)
                loss, outputs, targets = self._updater.loss_of(self._updater.model, moved)
                share = loss.to(kind) * (1 if self._updater.summed else weight)
                if isinstance(weight, Tensor):
                    share = torch.where(weight == 0, 0, share)
                total += share
                weights = weights + weight
                counts = weight if same else self._counts(batch)
                self._metrics.update(outputs, targets, counts)
                after_batch()
        loss_sum, weight_sum = self._ranks.sum([total.item(), float(weights)])
        if not weight_sum:
            raise TrainingError("the loader gave no batch: there is nothing to evaluate.")
        return {"loss": loss_sum / weight_sum, **self._metrics.compute()}


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put a model into training or evaluation mode, and each of its parts back after it.

    A model in training mode is left as it is: parts of it may be frozen on purpose.
    """
    before = [(module, module.training) for module in model.modules()]
    if not (training and model.training):
        model.train(training)
    try:
        yield
    finally:
        for module, was in before:
            module.training = was
