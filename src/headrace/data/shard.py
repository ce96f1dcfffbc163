"""Iterable datasets divided among ranks and worker threads, by their own ``shard`` method."""

from __future__ import annotations

import inspect
from typing import Any

from headrace.errors import OptionError


def shard_of(dataset: Any, index: int, count: int) -> Any:
    """Return part ``index`` of ``count`` of an iterable dataset: ``dataset.shard(index, count)``.

    Hugging Face's ``shard(num_shards, index)`` is called as it wants to be.
    """
    check_divisible(dataset, "ranks or threads")
    try:
        names = inspect.signature(dataset.shard).parameters
    except (TypeError, ValueError):  # a method without a signature, of an extension module
        names = {}  # type: ignore[assignment]
    if "num_shards" in names and "index" in names:
        return dataset.shard(num_shards=count, index=index)
    return dataset.shard(index, count)


def check_divisible(dataset: Any, among: str) -> None:
    """Raise where an iterable dataset has no ``shard`` method."""
    if not hasattr(dataset, "shard"):
        raise OptionError(
            f"{type(dataset).__name__} cannot be divided among {among}: it has no "
            f"shard(index, count) method. Give it one that returns the part of one of them."
        )
