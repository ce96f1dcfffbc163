"""A model's loss and metrics over a loader, and the mode that it is in meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from headrace.train.batch import Weight, check_weight
from headrace.train.checks import no_batch
from headrace.train.guards import Guards
from headrace.train.metrics import Metrics
from headrace.train.ranks import Ranks
from headrace.train.update import Updater, counted, counts_nothing


class Evaluation:
    """Goes through a loader in evaluation mode and without gradients.

    Args:
        updater: computes the losses.
        metrics: are given the outputs and targets of each batch.
        weight: how much a batch counts in the loss.
        counts: how much it counts in the metrics.
        ranks: each evaluates its part, and all get the values of the whole.
        guards: are told of values that are not finite.
    """

    def __init__(
        self,
        updater: Updater,
        metrics: Metrics,
        *,
        weight: Weight,
        counts: Weight,
        ranks: Ranks,
        guards: Guards,
    ) -> None:
        self._updater, self._metrics, self._ranks = updater, metrics, ranks
        self._weight, self._counts, self._guards = weight, counts, guards

    def run(self, loader: Iterable[Any], after_batch: Callable[[], None]) -> dict[str, float]:
        """Return the mean loss and the metrics; call ``after_batch()`` after each batch.

        Raises:
            TrainingError: the loader gave no batch, or none that counts.
        """
        device = self._updater.device
        kind = torch.float32 if device.type == "mps" else torch.float64  # which has no 64
        total = torch.zeros((), dtype=kind, device=device)
        weights: Any = 0.0
        self._metrics.reset()
        same = self._counts is self._weight
        watch = self._guards.watch_evaluation(loader)
        batches = 0
        with mode(self._updater.model, training=False), torch.inference_mode():
            for batch in loader:
                batches += 1
                weight = self._weight(batch)
                if counts_nothing(weight):
                    continue  # all of its targets are ignored: the mean over none is NaN
                moved = self._updater.moved(batch)
                loss, outputs, targets = self._updater.loss_of(self._updater.model, moved)
                share = loss.to(kind) if self._updater.summed else loss.to(kind) * weight
                share = counted(share, weight)
                watch.look(share, batch)
                total += share
                weights = weights + weight
                counts = weight if same else self._counts(batch)
                self._metrics.update(outputs, targets, counts)
                after_batch()
        loss_sum, weight_sum = self._ranks.sum([total.item(), float(weights)])
        if not weight_sum:
            raise no_batch("the loader", loader, batches, "evaluate")
        check_weight(weight_sum)
        values = {"loss": loss_sum / weight_sum, **self._metrics.compute()}
        watch.check(values, self._ranks)
        return values


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
