"""Batch samplers that plan an epoch at once, as arrays: a seed in, all batches out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

Indices = npt.NDArray[np.int64]


def draw_seed(generator: torch.Generator | None) -> int:
    """Draw one int64, as torch's `RandomSampler` does, from `generator` or the global one."""
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())


class PlannedBatchSampler(Sampler[list[int]]):
    """A batch sampler whose epoch is a pure function of one seed.

    Each `iter()` draws one int64 from `generator`, or from torch's global one, when its first
    batch is asked for; everything else follows from that seed. So an epoch can be replayed from
    the generator's state at its start, and any of its batches reached at once. A sampler that
    does not shuffle draws nothing.
    """

    generator: torch.Generator | None = None
    shuffle: bool = True

    @abstractmethod
    def plan(self, seed: int) -> tuple[Indices, Indices]:
        """Return the batches of the epoch with this seed.

        Returns:
            `indices`, int64 of shape (samples,), and `offsets`, int64 of shape (batches + 1,):
            batch k is `indices[offsets[k]:offsets[k + 1]]`.
        """

    def draw_seed(self) -> int:
        """Draw the seed of the next epoch, as `iter()` does first; 0 without shuffle."""
        return draw_seed(self.generator) if self.shuffle else 0

    def __iter__(self) -> Iterator[list[int]]:
        indices, offsets = self.plan(self.draw_seed())
        bounds = offsets.tolist()
        for k in range(len(bounds) - 1):
            yield indices[bounds[k] : bounds[k + 1]].tolist()


def is_planned(sampler: object) -> bool:
    """Whether a sampler's epoch is its plan: not where a subclass iterates its own way."""
    if not isinstance(sampler, PlannedBatchSampler) or hasattr(sampler, "state_dict"):
        return False
    return type(sampler).__iter__ is PlannedBatchSampler.__iter__


def seeded(seed: int) -> torch.Generator:
    """Make a private CPU generator for the epoch with this seed."""
    return torch.Generator().manual_seed(seed)


def check_size(name: str, value: object) -> int:
    """Return a positive integer option, or say what it should have been.

    Raises:
        ValueError: it is not an integer, or below 1.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}. Write {name}=32.")
    return value


def check_ranks(num_replicas: object, rank: object) -> tuple[int, int]:
    """Return the number of ranks and which one this is.

    Raises:
        ValueError: `rank` is not in [0, num_replicas).
    """
    replicas = check_size("num_replicas", num_replicas)
    if not isinstance(rank, int) or isinstance(rank, bool) or not 0 <= rank < replicas:
        raise ValueError(
            f"rank must be an integer from 0 to {replicas - 1} with num_replicas={replicas}, "
            f"got {rank!r}. Write num_replicas=dist.get_world_size(), rank=dist.get_rank()."
        )
    return replicas, rank


def check_labels(labels: object) -> tuple[npt.NDArray[np.generic], Indices]:
    """Return the distinct labels, sorted, and for each sample which of them it has.

    Raises:
        ValueError: not one-dimensional, or empty.
        TypeError: labels that cannot be sorted, as numbers mixed with strings.
    """
    array = labels.numpy(force=True) if isinstance(labels, torch.Tensor) else np.asarray(labels)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"labels must have one class per sample, got an array of shape {array.shape}. "
            f"Write labels=[label for _, label in dataset]."
        )
    try:
        classes, codes = np.unique(array, return_inverse=True)
    except TypeError as error:
        raise TypeError(
            f"labels must be all numbers or all strings: {error}. Write labels=list(map(str, ...))."
        ) from None
    if array.dtype.kind == "f" and np.isnan(array).any():
        at = int(np.isnan(array).argmax())
        raise ValueError(f"sample {at} has no label (NaN). Leave it out, or give it a class.")
    return classes, codes.astype(np.int64, copy=False)


def spans(starts: Indices, sizes: Indices) -> Indices:
    """Concatenate the ranges [starts[k], starts[k] + sizes[k])."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    places: Indices = np.arange(total) + np.repeat(starts - (ends - sizes), sizes)
    return places
