"""What a guard found, and how it is told: once, as an error or as a warning at the user's line."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed

from headrace.errors import TrainingError, TrainingWarning

_OURS = (str(Path(__file__).parents[2]), str(Path(torch.__file__).parent))


@dataclass(frozen=True)
class Finding:
    """One mistake: ``kind`` is told once, ``is_error`` says whether the training can go on."""

    kind: str
    text: str
    is_error: bool = False


def tell(finding: Finding) -> None:
    """Raise what is an error, warn of the rest: on the first of several processes only.

    Raises:
        TrainingError: the finding is an error.
    """
    if finding.is_error:
        raise TrainingError(finding.text)
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not several or torch.distributed.get_rank() == 0:
        warn(finding.text)


def warn(text: str) -> None:
    """Warn at the line of the user's program that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, TrainingWarning, stacklevel=level)


def listing(names: list[str], most: int = 5) -> str:
    """Return names as text: "'a', 'b' and 3 more"."""
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
