"""Which of several values of a metric are the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from headrace.errors import OptionError, TrainingError

Mode = Literal["auto", "min", "max"]

_SMALLER_IS_BETTER = ("loss", "error", "mae", "mse", "rmse", "perplexity", "deviance")
_LARGER_IS_BETTER = ("accuracy", "acc", "auc", "auroc", "f1", "precision", "recall", "iou", "r2")


def sign_of(metric: str, mode: Mode, name: str, line: str) -> int:
    """Return 1 where more of a metric is better, -1 where less is.

    Args:
        metric: its name, which tells where ``mode`` is "auto".
        mode: "auto", "min" or "max".
        name: of the option that ``mode`` was given as.
        line: what to write where the name does not tell.

    Raises:
        OptionError: the name does not tell, or the mode is none.
    """
    if mode in ("min", "max"):
        return 1 if mode == "max" else -1
    if mode != "auto":
        raise OptionError(f"{name}={mode!r}: write {name}='min', 'max' or 'auto'.")
    words = metric.lower().replace("-", "_").split("_")
    for sign, known in ((-1, _SMALLER_IS_BETTER), (1, _LARGER_IS_BETTER)):
        if any(word in known for word in words):
            return sign
    raise OptionError(
        f"whether more of {metric!r} is better cannot be told by its name. Write {line}."
    )


def value_of(metric: str, values: Mapping[str, float], who: str, line: str) -> float:
    """Return a metric of an epoch.

    Args:
        metric: its name.
        values: of the epoch.
        who: looks for it, for the text.
        line: what to write with another name.

    Raises:
        TrainingError: the epoch has none of that name.
    """
    if metric not in values:
        raise TrainingError(
            f"{who} {metric!r}, and an epoch has {', '.join(map(repr, values))}. Write {line} "
            f"with one of these, or give fit a val_loader or Trainer metrics=."
        )
    return values[metric]


@dataclass(frozen=True)
class Best:
    """How many checkpoints are kept for a metric.

    Attributes:
        count: of them.
        metric: its name among the values of an epoch.
        sign: 1 where more is better, -1 where less is.
    """

    count: int
    metric: str
    sign: int

    def of(self, values: Mapping[str, Mapping[str, float]]) -> list[str]:
        """Return the best of some names with their values, best first; of equals the earlier."""
        ranked = {
            name: -self.sign * found[self.metric]
            for name, found in values.items()
            if math.isfinite(found.get(self.metric, math.nan))
        }
        return sorted(ranked, key=ranked.__getitem__)[: self.count]


def best_wanted(count: object, metric: str, mode: Mode) -> Best | None:
    """Return what ``fit(keep_best=, best_by=, best_mode=)`` asks for; None for none.

    Raises:
        OptionError: a value that cannot be.
    """
    if type(count) is not int or count < 0:
        raise OptionError(
            f"keep_best={count!r} is no number of checkpoints. Write keep_best=2, and "
            f"best_by='val_loss' for the metric."
        )
    if not isinstance(metric, str):
        raise OptionError(f"best_by={metric!r} is no name of a metric. Write best_by='val_loss'.")
    line = f"best_by={metric!r}, best_mode='max', or 'min'"
    return Best(count, metric, sign_of(metric, mode, "best_mode", line)) if count else None
