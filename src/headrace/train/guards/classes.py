"""Class numbers, held against the number of classes while they are still on the host.

A number out of range ends a kernel on a GPU with an assertion, behind which nothing runs there any
more in this process. On the host it costs microseconds to see it before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from headrace.errors import TrainingError
from headrace.train.batch import parts_of
from headrace.train.guards.finding import Finding
from headrace.train.guards.losses import class_range


class ClassNumbers:
    """What the targets of a training may be, once a loss over classes has been seen with them."""

    def __init__(self) -> None:
        self._seen: tuple[Callable[..., Any], int, int] | None = None

    def learn(self, function: Callable[..., Any], outputs: Tensor, ignored: int) -> None:
        """Take in a call of a loss whose targets were those of the batch."""
        if outputs.ndim:
            self._seen = function, outputs.shape[1 if outputs.ndim > 1 else 0], ignored

    def check(self, batch: Any, device: torch.device) -> Finding | None:
        """Return what is wrong with the targets of a batch that is about to go to a device."""
        if self._seen is None or device.type == "cpu":
            return None  # there torch itself says it
        try:
            targets = parts_of(batch)[1]
        except TrainingError:
            return None
        if not isinstance(targets, Tensor) or not targets.is_cpu or targets.is_floating_point():
            return None
        function, classes, ignored = self._seen
        return class_range(function, targets, classes, ignored)
