"""What all fetches of a loader have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import default_collate as torch_default_collate
from torch.utils.data import default_convert as torch_default_convert

from headrace.collate import numpy_collate
from headrace.collate.stack import default_collate, is_default
from headrace.data.arrays import ArrayDataset
from headrace.data.gather import find_gatherer
from headrace.data.gatherer import Gatherer
from headrace.errors import OptionTypeError
from headrace.tree import NUMPY_DTYPES, leaves


def listed(indices: Any) -> list[Any]:
    """Return what a batch sampler yielded, of no length, as a list.

    Raises:
        OptionTypeError: it is a single index.
    """
    try:
        return list(indices)
    except TypeError:
        if hasattr(indices, "__iter__") or hasattr(indices, "__getitem__"):
            raise
        raise OptionTypeError(
            f"batch_sampler= yielded {indices!r}, and a batch is made of a list of indices. Yield "
            f"lists, or write sampler= for batch_sampler=, with batch_size=."
        ) from None


# Datasets and functions whose code is known and draws no random numbers.
_QUIET_DATASETS = (torch.utils.data.TensorDataset, ArrayDataset, list, tuple, range, torch.Tensor)
_QUIET_COLLATES = (torch_default_collate, torch_default_convert, default_collate, numpy_collate)


@dataclass(frozen=True)
class Recipe:
    """What every fetch of a loader has in common; it travels to a worker once.

    ``batch_size`` is None where the loader does not batch. ``iterable`` says that the dataset is
    iterated, not indexed. ``transform`` is applied to each batch where it is made. ``skip`` leaves
    samples that raise out of their batch; ``weigh_all`` counts the bytes of each batch.
    """

    dataset: Any
    collate: Callable[[Any], Any]
    iterable: bool
    auto_collation: bool
    batch_size: int | None
    drop_last: bool
    transform: Callable[[Any], Any] | None = None
    skip: bool = False
    weigh_all: bool = False

    @property
    def quiet(self) -> bool:
        """Whether no user code can run, so that there is nothing to seed."""
        return (
            type(self.dataset) in _QUIET_DATASETS
            and self.collate in _QUIET_COLLATES
            and is_default(default_collate)  # not with functions of the user's in torch's table
            and self.transform is None
        )

    def transformed(self, batch: Any) -> Any:
        """Return what ``batch_transform`` makes of a batch.

        Raises:
            OptionTypeError: nothing, as a function does that changes its batch and forgets it.
        """
        changed = batch if self.transform is None else self.transform(batch)
        if changed is None:
            raise OptionTypeError(
                "batch_transform returned None, which would take the batch's place. End it with "
                "return batch."
            )
        return changed

    def gatherer(self) -> Gatherer | None:
        """Return the gatherer of a dataset of columns, where nothing but it makes the batch."""
        if self.iterable or not self.auto_collation:
            return None
        if not self.makes_arrays and not is_default(self.collate):
            return None
        gatherer = find_gatherer(self.dataset)
        if gatherer is None or not self.makes_arrays:
            return gatherer
        known = all(leaf.dtype in NUMPY_DTYPES for leaf in leaves(gatherer.spec))
        return gatherer if known else None  # the collation says what NumPy has nothing for

    @property
    def makes_arrays(self) -> bool:
        """Whether batches are of NumPy arrays, not of tensors."""
        return self.collate is numpy_collate
