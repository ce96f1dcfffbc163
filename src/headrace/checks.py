"""Checks of a loader's options and dataset that torch does not make: what came, what to write."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from os import PathLike
from typing import Any

import numpy as np
import torch
import torch.utils.data as torch_data
from torch.utils.data import RandomSampler as TorchRandomSampler
from torch.utils.data import SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from headrace.carried import alone
from headrace.collate import numpy_collate
from headrace.errors import OptionError, OptionTypeError
from headrace.notices import warn_user
from headrace.sampling.planned import PlannedBatchSampler
from headrace.sized import length_of

_OF_INDICES = (
    SequentialSampler,
    TorchRandomSampler,
    torch_data.SubsetRandomSampler,
    torch_data.WeightedRandomSampler,
    DistributedSampler,
)


def workers_of(value: Any) -> Any:
    """Return a number of workers, or say that it is none: torch only fails when it is used."""
    if isinstance(value, str) or not (hasattr(value, "__index__") or value == 0):
        raise OptionTypeError(
            f"num_workers={value!r} is no count. Write DataLoader(..., num_workers=2), or "
            f"num_workers='auto'."
        )
    return value


# Options that are True, False or None; that are called; numbers, by what makes them one.
_FLAGS = ("shuffle", "pin_memory", "drop_last", "persistent_workers", "in_order")
_FUNCTIONS = ("collate_fn", "worker_init_fn", "batch_transform")
_NUMBERS = {"timeout": "__float__", "prefetch_factor": "__index__"}


def check_given(options: dict[str, Any]) -> None:
    """Raise for what torch takes and then fails over, or takes for something else in silence.

    Args:
        options: a loader's, by name.

    Raises:
        OptionError: it names the option, what came, and the line to write.
    """
    for name in _FLAGS:
        value = options[name]
        if value is None or isinstance(value, (bool, np.bool_)) or value in (0, 1):
            continue  # any text would be true
        line = f"seed={value}" if name == "shuffle" and type(value) is int else f"{name}=True"
        raise OptionError(
            f"{name}={value!r} is neither True nor False. Write DataLoader(..., {line}), or leave "
            f"{name}= out."
        )
    for name in _FUNCTIONS:
        value = options[name]
        if value is not None and not callable(value):
            line = "headrace.numpy_collate" if value == "numpy" else "function"
            raise OptionTypeError(
                f"{name}={value!r} is no function. Write DataLoader(..., {name}={line}), without "
                f"calling it."
            )
    for name, method in _NUMBERS.items():
        value = options[name]
        if value is not None and not hasattr(value, method):
            what = "number" if method == "__float__" else "whole number"
            raise OptionTypeError(
                f"{name}={value!r} is no {what}. Write DataLoader(..., {name}=2)."
            )
    dataset, generator = options["dataset"], options["generator"]
    if generator is not None and not isinstance(generator, torch.Generator):
        raise OptionTypeError(
            f"generator={generator!r} is no torch.Generator. Write DataLoader(..., seed=42), or "
            f"generator=torch.Generator().manual_seed(42)."
        )
    if generator is not None and options["seed"] is not None:
        warn_user(
            "generator= is not drawn from where seed= is given: orders and random numbers follow "
            "from the seed. Leave one of the two out."
        )
    _check_no_path(dataset)
    _check_not_columns(dataset)
    for name in ("sampler", "batch_sampler"):
        if options[name] is not None:
            _check_yields(name, options[name])
    sampler = options["sampler"]
    _check_no_mask("sampler", sampler)
    if isinstance(sampler, torch_data.SubsetRandomSampler):
        _check_no_mask("SubsetRandomSampler.indices", sampler.indices)
    while isinstance(dataset, torch_data.Subset):
        _check_no_mask("Subset.indices", dataset.indices)
        dataset = dataset.dataset


def _check_no_path(dataset: Any) -> None:
    if isinstance(dataset, (str, bytes, PathLike)):
        raise OptionTypeError(
            f"{dataset!r} is no dataset. For the file or directory of that name, write what reads "
            f"it: DataLoader(headrace.data.CSVDataset(path)), ImageFolder, ParquetDataset, "
            f"TextLines, JSONLines or TarDataset."
        )


def _check_not_columns(dataset: Any) -> None:
    """Warn of ``DataLoader((x, y))``, whose samples are x and y."""
    if type(dataset) is not tuple or not 1 < len(dataset) <= 8:
        return
    if not all(isinstance(column, (torch.Tensor, np.ndarray)) for column in dataset):
        return
    rows = {len(column) if column.ndim else 0 for column in dataset}
    if len(rows) == 1 and (count := rows.pop()) > len(dataset):
        kind = "TensorDataset" if isinstance(dataset[0], torch.Tensor) else "ArrayDataset"
        warn_user(
            f"the dataset is a tuple of {len(dataset)} arrays of {count:,} rows each: as in torch "
            f"that is {len(dataset)} samples. For a row of each as a sample, write "
            f"DataLoader(headrace.{kind}(*arrays))."
        )


def _check_yields(name: str, value: Any) -> None:
    kind = value if isinstance(value, type) else type(value)
    if isinstance(value, type) or not (hasattr(kind, "__iter__") or hasattr(kind, "__getitem__")):
        line = f"{name}={kind.__name__}(...)" if isinstance(value, type) else f"{name}=[...]"
        raise OptionTypeError(
            f"{name}={value!r} yields nothing: it has no __iter__, or is a class. Write "
            f"DataLoader(..., {line})."
        )
    flat = isinstance(value, (*_OF_INDICES, range)) or getattr(value, "ndim", 0) == 1
    if name == "batch_sampler" and flat:
        raise OptionTypeError(
            f"batch_sampler= is given a {kind.__name__}, which yields indices, and no lists of "
            f"them. Write sampler= for batch_sampler=: DataLoader(..., sampler=..., batch_size=32)."
        )


def _check_no_mask(name: str, value: Any) -> None:
    """Raise for True and False in the place of indices, which would be 1 and 0."""
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    if isinstance(value, bool) or getattr(value, "dtype", None) in (torch.bool, np.dtype(bool)):
        raise OptionTypeError(
            f"{name} holds a mask of True and False, which count as the indices 1 and 0. Write the "
            f"indices: torch.as_tensor(mask).nonzero().flatten().tolist()."
        )


def explained(error: ValueError, dataset: Any, value: Any) -> ValueError:
    """Return torch's complaint about a batch size or an empty dataset, with what to write."""
    if "num_samples should be" in str(error) and length_of(dataset) == 0:
        return OptionError(
            f"{error}. The dataset ({type(dataset).__name__}) is empty, and there is nothing to "
            f"shuffle: look at the path, the filter or the split that it comes from; or write "
            f"shuffle=len(dataset) > 0 where that may be."
        )
    if "batch_size should be" not in str(error):
        return error
    what = f", which is the text {value!r}" if isinstance(value, str) else ""
    return OptionError(
        f"{error}{what}. Write DataLoader(dataset, batch_size=32), or batch_size=None for single "
        f"samples."
    )


def warn_of_no_batch(batches: Any) -> None:
    """Say that an epoch gave nothing, because its batch sampler leaves smaller batches out.

    Args:
        batches: the loader's batch sampler.
    """
    for name, given in (("batch_sampler", batches), ("sampler", getattr(batches, "sampler", None))):
        if isinstance(given, Iterator):
            warn_user(
                f"the epoch gave no batch: {name}= is an iterator, which an epoch uses up. Write "
                f"{name}=list(...), or a class with __iter__."
            )
            return
    if not getattr(batches, "drop_last", False):
        return
    size, samples = getattr(batches, "batch_size", None), getattr(batches, "sampler", None)
    count = length_of(samples)
    if size is None or count == 0:
        return
    if count is None:
        came = "no stream had as many samples as"
    elif count < size:
        came = f"{count:,} samples are fewer than"
    else:
        came = f"this rank's part of {count:,} samples has fewer than"
    warn_user(
        f"the epoch gave no batch: {came} batch_size={size}, and drop_last=True leaves them out. "
        f"Write drop_last=False, or a smaller batch_size=."
    )


def max_errors_of(value: Any, on_error: str) -> int | None:
    """Return how many samples may be skipped, or say that none are counted."""
    if value is not None and on_error != "skip":
        raise OptionError(
            f"max_errors={value} counts skipped samples, and on_error={on_error!r} skips none. "
            f"Write DataLoader(..., on_error='skip', max_errors={value})."
        )
    return value and count_of("max_errors", value)


def seed_of(value: Any) -> Any:
    """Return a seed, or say that it is none."""
    if isinstance(value, bool) or not (value is None or hasattr(value, "__index__")):
        raise OptionError(f"seed={value!r} is no integer. Write DataLoader(..., seed=0).")
    return value


def check_arrays(collate: Any, device: Any) -> None:
    """Raise where arrays are asked for on a device of torch's."""
    if device is not None and alone(collate) is numpy_collate:
        raise OptionError(
            f"device={device!r} takes tensors there, and numpy_collate makes none. Leave device= "
            f"out and write jax.device_put(batch), or leave collate_fn= out."
        )


def check_indexable(dataset: Any) -> None:
    """Raise for a dataset that cannot be indexed from 0 on, as the loader's own order does."""
    kind = type(dataset)
    if isinstance(dataset, torch_data.DataLoader):
        raise OptionTypeError(
            "a DataLoader is no dataset: its batches have no indices. Write DataLoader(loader."
            "dataset, ...), or headrace.iter_batches(loader, ...) for batches of another size."
        )
    indexed = hasattr(dataset, "__getitem__") or hasattr(dataset, "__getitems__")
    if hasattr(kind, "__len__") and not indexed:
        raise OptionTypeError(
            f"{kind.__name__!r} has no __getitem__(index), so it is no map-style dataset. Write "
            f"DataLoader(list(dataset)), or a class with __len__ and __getitem__."
        )
    if not hasattr(kind, "__len__"):
        todo = (
            "Add def __len__(self), which returns the number of samples"
            if hasattr(kind, "__getitem__")
            else "Write a class with __len__ and __getitem__"
        )
        raise OptionTypeError(
            f"object of type {kind.__name__!r} has no len(), so it is no map-style dataset. "
            f"{todo}; or, for a stream, an IterableDataset with def __iter__(self), which yields "
            f"the samples."
        ) from None  # torch's TypeError says less
    if kind is dict and dataset and 0 not in dataset:
        arrays = all(isinstance(value, np.ndarray) for value in dataset.values())
        line = "ArrayDataset({...})" if arrays else "StackDataset(**{...})"
        shown = ", ".join(map(repr, islice(dataset, 3)))
        raise OptionError(
            f"a dict is no dataset: its keys are {shown}, not indices. For one row of each "
            f"column as a sample, write DataLoader(headrace.{line})."
        )


def check_orderable(dataset: Any, order: Any) -> None:
    """Raise where the order is the loader's own, and the dataset cannot be indexed in it."""
    own = type(order) in (SequentialSampler, TorchRandomSampler)
    if own and order.data_source is dataset:
        check_indexable(dataset)


def check_sampler(sampler: Any, batch_size: int | None) -> None:
    """Raise for a batch sampler in a sampler's place; torch's own ones nest lists, as there."""
    if batch_size is not None and isinstance(sampler, PlannedBatchSampler):
        raise OptionError(
            f"sampler={type(sampler).__name__}(...) yields batches, and batch_size={batch_size} "
            f"would make batches of those. Write batch_sampler= for sampler=, and leave "
            f"batch_size= out."
        )


def check_threads(dataset: Any) -> None:
    """Raise where an iterable dataset cannot be divided among threads, which share it."""
    if not hasattr(dataset, "shard"):
        raise OptionError(
            f"{type(dataset).__name__} cannot be divided among threads, which share it: it has no "
            f"shard(index, count) method. Give it one that returns the part of one of them, as in "
            f"return {type(dataset).__name__}(self.files[index::count]), or leave backend= out."
        )


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> Any:
    """Return an option that is one of a few words, or say which they are."""
    if value not in allowed:
        raise OptionError(
            f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}. "
            f"Write DataLoader(..., {name}={allowed[0]!r})."
        )
    return value


def bytes_of(name: str, value: Any) -> int | None:
    """Return an option that is a number of bytes or None, or say what to write."""
    if isinstance(value, (str, float)):
        raise OptionError(
            f"{name}={value!r} is no number of bytes. Write DataLoader(..., {name}=1 << 30) for 1 "
            f"GiB, or None for no bound."
        )
    return value and count_of(name, value)


def check_backend(backend: str, workers: Any) -> None:
    """Raise for a backend that is none, or has nobody to work."""
    one_of("backend", backend, ("auto", "process", "thread", "inline"))
    if backend in ("process", "thread") and not workers:
        kind = "processes" if backend == "process" else "threads"
        raise OptionError(
            f"backend={backend!r} needs worker {kind}, but num_workers is 0. "
            f"Write DataLoader(..., num_workers=2, backend={backend!r})."
        )


def count_of(name: str, value: Any) -> int:
    """Return an option that is a whole number from 0 on, or say what to write."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise OptionError(
            f"{name}={value!r} is no count. Write DataLoader(..., {name}=3), or 0 for none."
        )
    return value
