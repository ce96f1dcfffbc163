"""Warnings that point at the user's line, whichever way the call came."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

# With the separator: the name of a user's own package may begin like ours.
_OURS = str(Path(__file__).parent) + "/"
_TORCH_DATA = "/torch/utils/data/"


def warn_user(text: str, category: type[Warning] = UserWarning) -> None:
    """Warn with the first line of the stack that is neither ours nor torch's loader's."""
    frame = sys._getframe(1)
    level = 2
    while frame.f_back is not None and _is_inside(frame.f_code.co_filename):
        frame = frame.f_back
        level += 1
    warnings.warn(text, category, stacklevel=level)


def _is_inside(filename: str) -> bool:
    return filename.startswith(_OURS) or _TORCH_DATA in filename
