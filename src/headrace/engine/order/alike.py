"""What shows that the ranks of a run have the same data, cheaply: never by running user code.

Files have other paths and times on other machines, and augmented samples are other ones at each
reading, so neither is looked at: types, shapes, indices, and some rows of what lies in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from torch.utils.data import ConcatDataset, StackDataset, Subset, TensorDataset

from headrace.data.arrays import ArrayDataset
from headrace.engine.order.facts import facts_of
from headrace.tree import leaves

_ROWS = 64  # looked at in each column


class Likeness(NamedTuple):
    """What must be the same on all ranks: a checksum exactly, the sum but for rounding.

    Numbers that each machine has computed for itself may differ in their last bits.
    """

    checksum: int
    total: float


def likeness_of(dataset: Any) -> Likeness:
    """Return what a dataset shows of itself."""
    checksum, total = 0, 0.0
    for part in _parts(dataset):
        if isinstance(part, np.ndarray) and part.dtype.kind == "f":
            with np.errstate(all="ignore"):
                total += float(np.abs(np.nan_to_num(part, posinf=0, neginf=0), dtype=float).sum())
            continue
        raw = np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else part
        checksum = crc32(raw if isinstance(raw, bytes) else str(raw).encode(), checksum)
    return Likeness(checksum, total)


def order_checksum(index_sampler: Any) -> int:
    """Return a checksum of what an order is a function of."""
    return crc32(repr(sorted(facts_of(index_sampler).items())).encode())


def _parts(dataset: Any) -> Iterator[Any]:
    """Yield texts, and arrays of some of a dataset's numbers."""
    yield type(dataset).__qualname__
    if isinstance(dataset, range):
        yield repr(dataset)
    elif type(dataset) in (list, tuple):
        some = [dataset[place] for place in _places(len(dataset))]
        yield [one if isinstance(one, (int, str)) else type(one).__name__ for one in some]
    elif isinstance(dataset, Subset):
        yield crc32(np.ascontiguousarray(dataset.indices, np.int64).tobytes())
        yield from _parts(dataset.dataset)
    elif isinstance(dataset, (ConcatDataset, StackDataset)):
        within = dataset.datasets
        for part in within.values() if isinstance(within, Mapping) else within:
            yield from _parts(part)
    elif type(dataset) is TensorDataset:
        yield from _columns(dataset.tensors)
    elif type(dataset) is ArrayDataset:
        yield from _columns(leaves(dataset.arrays))


def _columns(columns: Any) -> Iterator[Any]:
    for column in columns:
        if not isinstance(column, (np.ndarray, torch.Tensor)):
            continue
        yield f"{str(column.dtype).removeprefix('torch.')} {tuple(column.shape)}"
        places = _places(len(column))
        if isinstance(column, np.ndarray):
            if column.dtype.kind in "biufSU":
                yield column[places]
        elif column.layout is torch.strided and column.device.type == "cpu":
            some = column.detach()[torch.tensor(places, dtype=torch.int64)]
            yield (some.double() if some.is_floating_point() else some).numpy(force=True)


def _places(length: int) -> list[int]:
    """Return places spread evenly, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, length - 1, min(length, _ROWS))})
