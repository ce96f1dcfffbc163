"""Lengths, of what may have none."""

from __future__ import annotations

from typing import Any


def length_of(sized: Any) -> int | None:
    """Return a length, None where there is none to be had."""
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None
