"""What is read from stores: counted in the thread that reads, taken by who made a batch of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from headrace.memory import current


class Traffic(NamedTuple):
    """Bytes that came from stores, samples whose shard was kept here, seconds of waiting."""

    fetched_bytes: int = 0
    hits: int = 0
    wait_s: float = 0.0


class _Here(threading.local):
    """What this thread has read since it was taken; None for nothing."""

    traffic: Traffic | None = None


here = _Here()
_beside: Callable[[], int] | None = None


def add(fetched_bytes: int = 0, hits: int = 0, wait_s: float = 0.0) -> None:
    """Count what this thread has read for the batch that it makes; else it is no loader's."""
    if current.lender is None:
        return
    before = here.traffic or Traffic()
    here.traffic = Traffic(
        before.fetched_bytes + fetched_bytes, before.hits + hits, before.wait_s + wait_s
    )


def count_beside(taken: Callable[[], int] | None) -> None:
    """Name what returns the bytes that another process has fetched for this one since it said."""
    global _beside
    _beside = taken


def beside() -> int:
    """Return the bytes that were fetched beside this process since it was asked."""
    return 0 if _beside is None else _beside()


def take() -> Traffic | None:
    """Return what was read here since it was taken, None for nothing."""
    found, here.traffic = here.traffic, None
    if fetched := beside():
        found = found or Traffic()
        found = found._replace(fetched_bytes=found.fetched_bytes + fetched)
    return found
