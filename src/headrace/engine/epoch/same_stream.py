"""Notices an iterable dataset that yields the same stream from every worker.

Each worker iterates its own copy of the dataset, so a dataset that does not ask which worker it is
in gives every sample once for each worker. The first batches of workers 0 and 1 tell: where they
are equal, and their content could have differed, the user hears of it, once a loader.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from headrace.data.gatherer import Array
from headrace.notices import warn_user

_PAIRS = 16  # of equal batches that say nothing, then it is constant data


class SameStream:
    """Compares the streams of two workers until they differ, or are known to be the same."""

    def __init__(self) -> None:
        self.over = False
        self.begin()

    def begin(self) -> None:
        """Begin with the first batches of an epoch."""
        self._unpaired: tuple[deque[int], deque[int]] = (deque(), deque())
        self._firsts: list[int] = []  # checksums of the first samples of equal batches

    def leaves(self, worker: int, batch: Any, workers: int) -> None:
        """Look at a batch before the user gets it."""
        if self.over or worker > 1:
            return
        content: list[Array | str] = []
        _collect(batch, content)
        self._unpaired[worker].append(_checksum(content))
        if not self._unpaired[1 - worker]:
            return
        if self._unpaired[0].popleft() != self._unpaired[1].popleft():
            self.over = True
            return
        self._firsts.append(_checksum(map(_first, content)))
        if any(map(_varies, content)) or len(set(self._firsts)) > 1:
            self.over = True
            warn_user(_text(workers))
        elif len(self._firsts) == _PAIRS:
            self.over = True


def _checksum(content: Iterable[Array | str]) -> int:
    key = 0
    for part in content:
        key = zlib.crc32(part.encode() if isinstance(part, str) else part.tobytes(), key)
    return key


def _collect(value: Any, content: list[Array | str]) -> None:
    """Append what can be compared: arrays of bytes, one row a sample, and strings."""
    if isinstance(value, torch.Tensor):
        try:
            flat = value.detach().reshape(-1).contiguous().view(torch.uint8).numpy()
            content.append(_rows(flat, value))
        except (RuntimeError, TypeError, NotImplementedError):
            content.append(f"{type(value)}")  # sparse, nested, on a device: says nothing
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        content.append(_rows(np.frombuffer(value.tobytes(), np.uint8), value))
    elif isinstance(value, Mapping):
        for key, part in value.items():
            content.append(f"{key!r}:")
            _collect(part, content)
    elif isinstance(value, (list, tuple)):
        kinds = {type(part) for part in value}
        if len(kinds) == 1 and kinds <= {str, bytes, int, float}:
            text = [repr(part) for part in value]
            content.append("\n".join(text) if len(set(text)) > 1 else text[0])
            return
        for part in value:
            _collect(part, content)
    elif isinstance(value, (str, bytes, int, float, np.number)):
        content.append(repr(value))


def _rows(flat: Array, value: Any) -> Array:
    """Return bytes as rows that can be compared: samples, or the elements of a single one."""
    if not flat.size:
        return flat.reshape(0, 1)
    samples = len(value) if value.ndim else 1
    return flat.reshape(samples if samples > 1 else flat.nbytes // value.itemsize, -1)


def _first(part: Array | str) -> Array | str:
    return part.split("\n", 1)[0] if isinstance(part, str) else part[:1]


def _varies(part: Array | str) -> bool:
    """Say whether the samples of a batch differ from each other: constants prove nothing."""
    if isinstance(part, str):
        return "\n" in part
    return bool((part[1:] != part[:1]).any())


def _text(workers: int) -> str:
    return (
        f"all workers yield the same stream: the first batches of worker 0 and worker 1 are equal, "
        f"so every sample comes {workers} times an epoch. Let each worker take its share, in the "
        f"dataset's __iter__ over its samples:\n"
        f"    info = torch.utils.data.get_worker_info()\n"
        f"    if info is not None:\n"
        f"        samples = itertools.islice(samples, info.id, None, info.num_workers)"
    )
