"""What ``map_batches`` is applied to, as a loader."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.utils.data as torch_data
from torch.utils.data import RandomSampler as TorchRandomSampler

from headrace.data.arrays import ArrayDataset
from headrace.data.columns import columns
from headrace.data.gatherer import Gatherer
from headrace.errors import ArrayMismatchError, OptionError
from headrace.loader import DataLoader
from headrace.sampling import RandomSampler
from headrace.sized import length_of
from headrace.tree import is_namedtuple, leaves, map_leaves

_BATCH_BYTES = 1 << 20
_FEWEST_ROWS, _MOST_ROWS, _UNKNOWN_ROWS = 32, 4096, 64
_CHANGE_ORDER = ("shuffle", "sampler", "batch_sampler", "drop_last", "shard")


@dataclass(frozen=True)
class Feed:
    """Batches in the order of the input.

    Attributes:
        loader: yields them.
        batch_size: rows of one, None where the loader was the user's.
        length: rows in all, where that is known.
        rows_look_like: type and shape of a row for each array; None for what is no array.
        arrays: whether NumPy arrays went in, and shall come out.
        empty: for data in memory without a row, the empty batch.
    """

    loader: torch_data.DataLoader[Any]
    batch_size: int | None
    length: int | None
    rows_look_like: list[str] | None = None
    arrays: bool = False
    empty: Any = None


def feed(
    data: Any, batch_size: int | Literal["auto"], pin_memory: bool, options: dict[str, Any]
) -> Feed:
    """Return a loader over arrays, tensors, a dataset, an iterable of samples, or a loader.

    Raises:
        OptionError: options that would change the order or leave rows out.
        TypeError: something that has no rows.
    """
    if isinstance(data, torch_data.DataLoader):
        return _given(data, batch_size, options)
    _check_options(batch_size, options)
    options = {"pin_memory": pin_memory, **options}
    if "generator" not in options:
        options.setdefault("seed", 0)  # or the loader would draw from torch's default generator
    if _is_columns(data):
        return _over_columns(data, batch_size, options)
    size = _UNKNOWN_ROWS if batch_size == "auto" else batch_size
    if isinstance(data, (str, bytes, Path)):
        raise TypeError(
            f"map_batches was given the text {data!r}, not data. If it is a file, open it: "
            f"map_batches(fn, np.load({str(data)!r}, mmap_mode='r'))."
        )
    if isinstance(data, Mapping) or not hasattr(data, "__iter__" if _streams(data) else "__len__"):
        raise TypeError(
            f"map_batches cannot read rows from a {type(data).__name__}. Give it an array, a "
            f"tensor, a tuple or dict of them, a dataset, an iterable of samples or a DataLoader."
        )
    if not _streams(data):
        return Feed(DataLoader(data, size, **options), size, len(data))
    if not isinstance(data, torch_data.IterableDataset):
        if options.get("num_workers"):
            raise OptionError(
                f"each worker would go through all of a {type(data).__name__}. Leave num_workers= "
                f"out, or write an IterableDataset that shares its samples among workers."
            )
        data = _Stream(data)
    return Feed(DataLoader(data, size, **options), size, None)


def _streams(data: Any) -> bool:
    return isinstance(data, torch_data.IterableDataset) or not hasattr(data, "__getitem__")


def _given(loader: Any, batch_size: Any, options: dict[str, Any]) -> Feed:
    if batch_size != "auto" or options:
        named = ["batch_size"] * (batch_size != "auto") + list(options)
        raise OptionError(
            f"{', '.join(named)} would have to be given to the DataLoader that is there already. "
            f"Write map_batches(fn, DataLoader(dataset, ...)), or map_batches(fn, dataset, ...)."
        )
    if isinstance(loader.sampler, (TorchRandomSampler, RandomSampler)):
        raise OptionError(
            "the loader shuffles, so the results would not be in the order of the dataset. "
            "Write DataLoader(dataset, shuffle=False)."
        )
    if loader.drop_last or not loader.in_order:
        raise OptionError(
            "the loader leaves rows out, or hands batches out as they come. Write "
            "DataLoader(dataset, drop_last=False, in_order=True)."
        )
    plain = type(loader.batch_sampler) is torch_data.BatchSampler
    return Feed(loader, None, length_of(loader.sampler) if plain else None)


def _check_options(batch_size: Any, options: dict[str, Any]) -> None:
    if batch_size != "auto" and (
        not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1
    ):
        raise OptionError(
            f"batch_size={batch_size!r} is no number of rows. Write batch_size=256, or 'auto'."
        )
    wrong = [name for name in _CHANGE_ORDER if options.get(name)]
    if not options.get("in_order", True):
        wrong.append("in_order")
    if wrong:
        raise OptionError(
            f"{', '.join(wrong)}= would change the rows or their order, and results come in the "
            f"order of the input. Leave it out, or choose rows first: Subset(dataset, indices)."
        )


def _is_columns(data: Any) -> bool:
    if isinstance(data, (torch.Tensor, np.ndarray)):
        return True
    if not isinstance(data, (Mapping, tuple)):
        return False  # a list is a dataset of samples
    found = leaves(data)
    return bool(found) and all(isinstance(leaf, (torch.Tensor, np.ndarray)) for leaf in found)


def _over_columns(data: Any, batch_size: int | Literal["auto"], options: dict[str, Any]) -> Feed:
    found = leaves(data)
    arrays = all(isinstance(leaf, np.ndarray) for leaf in found)
    flat = not isinstance(data, Mapping) or all(isinstance(v, np.ndarray) for v in data.values())
    use_arrays = arrays and flat and not is_namedtuple(data)
    dataset: Any = ArrayDataset(data) if use_arrays else _Rows(data)
    rows = len(dataset)
    row_bytes = sum(leaf.nbytes for leaf in found) / max(rows, 1)
    size = rows_for(row_bytes) if batch_size == "auto" else batch_size
    looks = [f"{leaf.dtype} {list(leaf.shape[1:])}" for leaf in found]
    if any(isinstance(leaf, torch.Tensor) and leaf.device.type != "cpu" for leaf in found):
        # Rows one by one from a device would take a copy each: slices are views.
        cuts = [slice(start, start + size) for start in range(0, rows, size)]
        options = {**options, "batch_size": None, "sampler": cuts, "pin_memory": False}
        loader: Any = DataLoader(dataset, **options)
    else:
        loader = DataLoader(dataset, size, **options)
    empty = None if rows else dataset[slice(0, 0)]
    if empty is not None:
        empty = map_leaves(torch.as_tensor, empty)
    return Feed(loader, size, rows, looks, arrays, empty)


def rows_for(row_bytes: float) -> int:
    """Return the rows of a batch for ``batch_size="auto"``: about 1 MiB of them, a power of two.

    It depends on the data alone, so that a run that is repeated, or goes on after a kill, makes the
    same batches and the same results to the bit.
    """
    rows = _BATCH_BYTES / max(row_bytes, 1)
    power = 1 << max(0, math.floor(math.log2(rows))) if rows >= 1 else 1
    return min(max(power, _FEWEST_ROWS), _MOST_ROWS)


class _Rows(torch_data.Dataset[Any]):
    """The rows of tensors and arrays, in any nesting."""

    def __init__(self, tree: Any) -> None:
        self._tree = map_leaves(_plain, tree)
        lengths = [len(leaf) if leaf.ndim else None for leaf in leaves(tree)]
        if len(set(lengths)) != 1 or None in lengths:
            raise ArrayMismatchError(
                f"the data need one row for each sample, but have {lengths} rows. Cut them to one "
                f"length: (x[:n], y[:n])."
            )
        self._length: Any = lengths[0]

    def __len__(self) -> int:
        return int(self._length)

    def __getitem__(self, index: Any) -> Any:
        return map_leaves(lambda leaf: leaf[index], self._tree)

    def __gather__(self) -> Gatherer | None:
        return columns(self._tree)


def _plain(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, torch.Tensor) else leaf


class _Stream(torch_data.IterableDataset[Any]):
    """The samples of a plain iterable, once; to go on, those that were taken are passed over."""

    def __init__(self, samples: Iterable[Any]) -> None:
        self._samples = samples
        self._taken = 0

    def __iter__(self) -> Iterator[Any]:
        for sample in islice(self._samples, self._taken, None):
            self._taken += 1
            yield sample

    def state_dict(self) -> dict[str, int]:
        """Return how many samples were taken."""
        return {"taken": self._taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Pass over the samples that were taken before."""
        self._taken = state["taken"]
