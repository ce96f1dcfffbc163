"""Checks of a loader's options and dataset that torch does not make: what came, what to write."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import RandomSampler as TorchRandomSampler
from torch.utils.data import SequentialSampler

from headrace.carried import alone
from headrace.collate import numpy_collate
from headrace.errors import OptionError, OptionTypeError
from headrace.notices import warn_user
from headrace.sampling.planned import PlannedBatchSampler
from headrace.sized import length_of


def workers_of(value: Any) -> Any:
    """Return a number of workers, or say that it is none: torch only fails when it is used."""
    if isinstance(value, str) or not (hasattr(value, "__index__") or value == 0):
        raise OptionTypeError(
            f"num_workers={value!r} is no count. Write DataLoader(..., num_workers=2), or "
            f"num_workers='auto'."
        )
    return value


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
    if value is not None and not hasattr(value, "__index__"):
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


def count_of(name: str, value: Any) -> int:
    """Return an option that is a whole number from 0 on, or say what to write."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise OptionError(
            f"{name}={value!r} is no count. Write DataLoader(..., {name}=3), or 0 for none."
        )
    return value
