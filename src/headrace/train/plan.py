"""What one call of ``fit`` was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.train.best import Best
from headrace.train.checkpoint import Checkpoints


@dataclass(frozen=True)
class Plan:
    """The length of a training, and what is written when."""

    epochs: int
    checkpoints: Checkpoints | None
    resume: bool
    every_steps: int | None
    every_s: float | None
    best: Best | None = None  # of which checkpoints are written and kept, whatever else is
