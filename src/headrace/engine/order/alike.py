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
_LISTS = (list, tuple, range)
_READ = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_READ |= {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_READ |= {torch.complex64, torch.complex128}


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
        if isinstance(part, np.ndarray) and part.dtype.kind in "fc":
            with np.errstate(all="ignore"):
                sizes = np.abs(part.astype(complex if part.dtype.kind == "c" else float))
                total += float(np.nan_to_num(sizes, posinf=0).sum())
            continue
        raw = part.tobytes() if isinstance(part, np.ndarray) else part.encode(errors="replace")
        checksum = crc32(raw, checksum)
    return Likeness(checksum, total)


def order_checksum(index_sampler: Any) -> int:
    """Return a checksum of what an order is a function of."""
    return crc32(repr(sorted(facts_of(index_sampler).items())).encode())


def _parts(dataset: Any) -> Iterator[Any]:
    """Yield texts, and arrays of some of a dataset's numbers."""
    yield type(dataset).__qualname__
    if type(dataset) in _LISTS:
        yield _some(dataset)
    elif type(dataset) is Subset:
        yield _some(dataset.indices)
        yield from _parts(dataset.dataset)
    elif type(dataset) in (ConcatDataset, StackDataset):
        within = dataset.datasets
        for part in within.values() if isinstance(within, Mapping) else within:
            yield from _parts(part)
    elif type(dataset) is TensorDataset:
        yield from _columns(dataset.tensors)
    elif type(dataset) is ArrayDataset:
        yield from _columns(leaves(dataset.arrays))


def _some(values: Any) -> str:
    """Return the length of a sequence and some of its numbers and texts."""
    if type(values) not in _LISTS and not isinstance(values, (np.ndarray, torch.Tensor)):
        return type(values).__qualname__
    if not isinstance(values, (np.ndarray, torch.Tensor)):
        shown = [_shown(values[place]) for place in _places(len(values))]
        return f"{len(values)} {shown}"
    return " ".join(str(np.asarray(part).tolist()) for part in _columns([values]))


def _shown(value: Any) -> str:
    if isinstance(value, (int, np.integer)):
        return f"{value:x}"  # decimal digits have a limit
    return repr(value) if type(value) is str else type(value).__qualname__


def _columns(columns: Any) -> Iterator[Any]:
    """Yield dtypes, shapes and some rows; of a dtype that cannot be read everywhere, no rows."""
    for column in columns:
        if isinstance(column, torch.Tensor) and column.is_nested:
            continue
        if not isinstance(column, (np.ndarray, torch.Tensor)):
            continue
        yield f"{str(column.dtype).removeprefix('torch.')} {tuple(column.shape)}"
        if not column.shape:
            continue
        places = _places(len(column))
        if isinstance(column, np.ndarray):
            if column.dtype.kind in "biufcSU":
                yield np.asarray(column)[places]
        elif column.dtype in _READ and column.layout is torch.strided and _on_host(column):
            some = column.detach()[torch.tensor(places, dtype=torch.int64)]
            yield (some.double() if some.is_floating_point() else some).numpy(force=True)


def _on_host(column: torch.Tensor) -> bool:
    """Whether its numbers lie in memory; those of a class of the user's own are not asked for."""
    return column.device.type == "cpu" and type(column) in (torch.Tensor, torch.nn.Parameter)


def _places(length: int) -> list[int]:
    """Return places spread evenly, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, length - 1, min(length, _ROWS))})
