"""Metrics of an evaluation: torchmetrics, and functions averaged over samples."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.errors import OptionError, TrainingError
from headrace.extras import import_extra


class Metrics:
    """Metrics by name, updated batch by batch; over several ranks each sample counts once.

    Args:
        given: a torchmetrics ``Metric`` or ``MetricCollection``, a function
            ``(outputs, targets) -> value`` that is a mean over the batch, ``"accuracy"``, a dict of
            these by name, or a list of them.
        device: where they add up.
        loss_fn: says to ``"accuracy"`` what the outputs mean.

    Raises:
        OptionError: something that is neither.
    """

    def __init__(self, given: Any, device: torch.device, loss_fn: Any = None) -> None:
        self._metrics: dict[str, Any] = {}
        self._functions: dict[str, Callable[[Any, Any], Any]] = {}
        for name, metric in _named(given):
            if name == "loss" or name in self._metrics:
                raise OptionError(
                    f"there is a value called {name!r} already. Name the metrics: "
                    f"Trainer(..., metrics={{'error': ..., 'top5': ...}})."
                )
            if isinstance(metric, str) and metric == "accuracy":
                self._metrics[name] = Accuracy(loss_fn, device)
            elif hasattr(metric, "update") and hasattr(metric, "compute"):
                self._metrics[name] = metric.to(device)
            elif callable(metric):
                self._metrics[name] = _Mean(device)
                self._functions[name] = metric
            else:
                raise OptionError(
                    f"the metric {metric!r} is neither 'accuracy', nor a torchmetrics Metric, nor "
                    f"a function. Write Trainer(..., metrics='accuracy'), or metrics={{'f1': "
                    f"torchmetrics.classification.MulticlassF1Score(10)}}."
                )

    def __bool__(self) -> bool:
        return bool(self._metrics)

    def reset(self) -> None:
        """Forget all batches."""
        for metric in self._metrics.values():
            metric.reset()

    def update(self, outputs: Any, targets: Any, weight: float | Tensor) -> None:
        """Take a batch in."""
        for name, metric in self._metrics.items():
            if name in self._functions:
                metric.update(self._functions[name](outputs, targets), weight)
            else:
                metric.update(outputs, targets)

    def compute(self) -> dict[str, float]:
        """Return the values over all batches and ranks; one of several parts as several."""
        values: dict[str, float] = {}
        for name, metric in self._metrics.items():
            _flatten(name, metric.compute(), values)
        return values


class _Mean:
    """A weighted mean over batches and ranks, NaN where a value is.

    torchmetrics' own mean leaves NaN out, and adds up in float32, where 0.94 is 0.9399999976.
    """

    def __init__(self, device: torch.device) -> None:
        kind = torch.float32 if device.type == "mps" else torch.float64  # which has no 64
        new = import_extra("torchmetrics", "train").SumMetric
        self._total, self._weight = (new(nan_strategy="disable").to(device) for _ in range(2))
        self._kind, self._device = kind, device
        self.reset()

    def reset(self) -> None:
        for part in (self._total, self._weight):
            part.reset()
            part.set_dtype(self._kind)  # which a reset forgets

    def update(self, values: Any, weights: Any) -> None:
        device, kind = self._device, self._kind
        values = torch.as_tensor(values, dtype=kind, device=device)
        weights = torch.as_tensor(weights, dtype=kind, device=device)
        self._total.update(torch.where(weights == 0, 0, values * weights))
        self._weight.update(weights.expand(values.shape))

    def compute(self) -> Any:
        return self._total.compute() / self._weight.compute()


class Accuracy:
    """The share of right classes, over all targets that the loss does not ignore.

    With outputs of shape (batch, classes, ...) and class numbers of shape (batch, ...), the class
    of the largest output is held against the target. With ``BCEWithLogitsLoss`` and ``BCELoss``
    each output is a yes above 0, or above a probability of 0.5.

    Args:
        loss_fn: the loss that the model is trained with.
        device: where it adds up.
    """

    def __init__(self, loss_fn: Any, device: torch.device) -> None:
        self._mean = _Mean(device)
        self._ignored = getattr(loss_fn, "ignore_index", -100)
        self._threshold = None
        if isinstance(loss_fn, nn.BCEWithLogitsLoss) or loss_fn is _BINARY_WITH_LOGITS:
            self._threshold = 0.0
        elif isinstance(loss_fn, nn.BCELoss) or loss_fn is functional.binary_cross_entropy:
            self._threshold = 0.5

    def reset(self) -> None:
        """Forget all batches."""
        self._mean.reset()

    def update(self, outputs: Any, targets: Any) -> None:
        """Take a batch in.

        Raises:
            TrainingError: its classes cannot be told.
        """
        if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
            raise _no_classes(type(outputs).__name__, type(targets).__name__)
        shapes = f"shape {tuple(outputs.shape)}", f"{targets.dtype} {tuple(targets.shape)}"
        if self._threshold is not None and outputs.shape == targets.shape:
            right = (outputs > self._threshold) == (targets > 0.5)
            self._mean.update(right, 1.0)
            return
        classes = targets.shape == outputs.shape[:1] + outputs.shape[2:]
        if outputs.ndim < 2 or not classes or targets.is_floating_point():
            raise _no_classes(*shapes)
        counted = targets != self._ignored
        right = outputs.argmax(1) == targets
        self._mean.update(right, counted)

    def compute(self) -> Any:
        """Return the share."""
        return self._mean.compute()


_BINARY_WITH_LOGITS = functional.binary_cross_entropy_with_logits


def _no_classes(outputs: str, targets: str) -> TrainingError:
    return TrainingError(
        f"'accuracy' compares outputs of shape (batch, classes) with class numbers of shape "
        f"(batch,), and the outputs are of {outputs}, the targets {targets}. Write it as a "
        f"function: metrics={{'accuracy': lambda outputs, targets: ((outputs > 0) == (targets > "
        f"0.5)).float().mean()}}."
    )


def _named(given: Any) -> Iterable[tuple[str, Any]]:
    if given is None:
        return ()
    if isinstance(given, Mapping):
        return given.items()
    if isinstance(given, (list, tuple)):
        return [(_name_of(metric), metric) for metric in given]
    return [(_name_of(given), given)]


def _name_of(metric: Any) -> str:
    if isinstance(metric, str):
        return metric
    if not hasattr(metric, "compute"):
        return str(getattr(metric, "__name__", "metric"))
    if hasattr(metric, "keys"):
        return ""  # a collection: its members have names
    name = re.sub("^(Binary|Multiclass|Multilabel)", "", type(metric).__name__)
    return re.sub("(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _flatten(name: str, value: Any, into: dict[str, float]) -> None:
    if isinstance(value, Mapping):
        for key, part in value.items():
            _flatten(f"{name}_{key}" if name else str(key), part, into)
    elif isinstance(value, Tensor) and value.numel() > 1:
        for place, part in enumerate(value.flatten()):
            into[f"{name}_{place}"] = _number(part)
    else:
        into[name] = _number(value)


def _number(value: Any) -> float:
    """Return a value as the number that it shows: a float32 of 0.94 is 0.94, not 0.93999999762."""
    if isinstance(value, Tensor) and value.dtype in (torch.float32, torch.float16, torch.bfloat16):
        return float(str(np.float32(value.item())))
    return float(value)
