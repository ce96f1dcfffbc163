"""Metrics of an evaluation: torchmetrics, and functions averaged over samples."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from headrace.errors import OptionError
from headrace.extras import import_extra


class Metrics:
    """Metrics by name, updated batch by batch; over several ranks each sample counts once.

    Args:
        given: a torchmetrics ``Metric`` or ``MetricCollection``, a function
            ``(outputs, targets) -> value`` that is a mean over the batch, a dict of these by
            name, or a list of them.
        device: where they add up.

    Raises:
        OptionError: something that is neither.
    """

    def __init__(self, given: Any, device: torch.device) -> None:
        self._metrics: dict[str, Any] = {}
        self._functions: dict[str, Callable[[Any, Any], Any]] = {}
        for name, metric in _named(given):
            if hasattr(metric, "update") and hasattr(metric, "compute"):
                self._metrics[name] = metric.to(device)
            elif callable(metric):
                mean = import_extra("torchmetrics", "train").MeanMetric()
                self._metrics[name] = mean.to(device)
                self._functions[name] = metric
            else:
                raise OptionError(
                    f"the metric {name!r} is a {type(metric).__name__}, neither a torchmetrics "
                    f"Metric nor a function. Write Trainer(..., metrics={{'accuracy': "
                    f"torchmetrics.classification.MulticlassAccuracy(10)}})."
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


def _named(given: Any) -> Iterable[tuple[str, Any]]:
    if given is None:
        return ()
    if isinstance(given, Mapping):
        return given.items()
    if isinstance(given, (list, tuple)):
        return [(_name_of(metric), metric) for metric in given]
    return [(_name_of(given), given)]


def _name_of(metric: Any) -> str:
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
        for place, part in enumerate(value.flatten().tolist()):
            into[f"{name}_{place}"] = part
    else:
        into[name] = float(value)
