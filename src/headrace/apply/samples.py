"""Checksums of a few values, which tell other weights and other data from those of before."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from headrace.tree import leaves

_ROWS = 64
_VALUES = 4096


def checksum_of_weights(module: torch.nn.Module | None) -> int | None:
    """Return a checksum of up to 4,096 values of each parameter and buffer."""
    if module is None:
        return None
    total = 0
    for tensor in (*module.parameters(), *module.buffers()):
        lazy = is_lazy(tensor) or tensor.device.type == "meta"  # it has no values yet
        if tensor.layout == torch.strided and not lazy:
            flat = tensor.detach().reshape(-1)
            total = _add(total, flat[_spread(len(flat), _VALUES)])
    return total


def checksum_of_rows(data: Any) -> int:
    """Return a checksum of up to 64 rows of arrays, up to 4,096 values of each."""
    total = 0
    for leaf in leaves(data):
        for place in _spread(len(leaf), _ROWS):
            row = leaf[int(place)]
            if isinstance(row, torch.Tensor):
                total = _add(total, row.reshape(-1)[:_VALUES])
            elif not np.asarray(row).dtype.hasobject:
                total = zlib.crc32(np.asarray(row).reshape(-1)[:_VALUES].tobytes(), total)
    return total


def _spread(length: int, count: int) -> torch.Tensor:
    return torch.linspace(0, max(0, length - 1), min(length, count), dtype=torch.float64).long()


def _add(total: int, flat: torch.Tensor) -> int:
    here = flat.detach().cpu().contiguous()
    return zlib.crc32(here.view(torch.uint8).numpy().data, total)
