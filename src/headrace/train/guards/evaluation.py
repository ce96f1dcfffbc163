"""Evaluations: values that are not finite, and the batch that they come from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from headrace.train.guards.finding import Finding
from headrace.train.guards.nonfinite import name_of
from headrace.train.ranks import Ranks


class WatchEvaluation:
    """Remembers the first batch whose loss is not finite; asks nothing of a device meanwhile.

    Args:
        loader: says the dataset indices of its batches, where it can.
        describe: says what is wrong with a batch and its indices, while it is there.
        tell: is told of what was found.
    """

    def __init__(
        self,
        loader: Any,
        describe: Callable[[Any, Any], str],
        tell: Callable[[Finding], None],
    ) -> None:
        self._loader, self._describe, self._tell = loader, describe, tell
        self._batches = 0
        self._first: Tensor | None = None  # number of the batch, on the device; -1 for none
        self._source = ""

    def look(self, loss: Tensor, batch: Any) -> None:
        """Look at a batch's part of the loss."""
        self._batches += 1
        if not loss.is_cpu:
            if self._first is None:
                self._first = torch.full((), -1, device=loss.device)
            fine = loss.isfinite() | (self._first >= 0)
            self._first = torch.where(fine, self._first, self._batches)
        elif not self._source and not math.isfinite(loss.item()):
            last = getattr(self._loader, "last_indices", None)
            told = self._describe(batch, None if last is None else last())
            self._source = f"It begins with batch {self._batches}. {told}"

    def check(self, values: dict[str, float], ranks: Ranks) -> None:
        """Tell of values that are not finite, on the first rank, with what each rank has seen."""
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if not wrong:
            return
        if self._first is not None and self._first.item() >= 0:
            self._source = f"It begins with batch {int(self._first)}."
        sources = [part.decode() for part in ranks.gather(self._source.encode())]
        for name in wrong:
            kind = name_of(values[name])
            if name == "loss":
                text = f"the loss of an evaluation is {kind}. {' '.join(filter(None, sources))}"
            else:
                text = (
                    f"the metric {name!r} of an evaluation is {kind}"
                    f"{', as the loss is' if 'loss' in wrong else ''}. Where that is not its "
                    f"meaning, look for a division by 0 in it, or for classes that do not occur."
                )
            self._tell(Finding(f"evaluation {name}", text.rstrip()))


class WatchNothing:
    """What is in its place where nobody wants to be told."""

    def look(self, loss: Tensor, batch: Any) -> None:
        """Do nothing."""

    def check(self, values: dict[str, float], ranks: Ranks) -> None:
        """Do nothing."""
