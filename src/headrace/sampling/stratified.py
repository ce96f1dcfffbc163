"""Batches, and parts of a dataset, that carry the classes in proportion."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from headrace.sampling.permute import permutation
from headrace.sampling.planned import (
    Indices,
    PlannedBatchSampler,
    check_labels,
    check_size,
    seeded,
    spans,
)
from headrace.sampling.ranks import Shard

Labels = Sequence[Any] | torch.Tensor | npt.NDArray[Any]


class StratifiedBatchSampler(PlannedBatchSampler):
    """Batches that carry each class in proportion; each sample once an epoch.

    A class with a share p of the samples has floor(batch_size * p) or ceil(batch_size * p) places
    in every batch, the last and shorter one likewise. Which samples, which of the two counts and
    where in the batch is shuffled anew in each epoch, as a function of one int64 drawn from
    `generator`.

    The places above the floors are dealt as McNaughton's wrap-around rule deals work to machines
    ("Scheduling with deadlines and loss functions", 1959): class after class to batch after batch,
    so that no batch gets two of one class.

    Args:
        labels: shape (samples,), integers or strings: the class of each sample.
        batch_size: samples in a batch.
        drop_last: leave out the last batch when it is shorter (its samples are others in each
            epoch, and carry the classes in proportion too).
        generator: where the order comes from; None is torch's global generator.

    Raises:
        ValueError: labels that are empty or not one-dimensional; `batch_size` below 1.
    """

    def __init__(
        self,
        labels: Labels,
        batch_size: int,
        *,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        self.classes, self._codes = check_labels(labels)
        self.batch_size = check_size("batch_size", batch_size)
        self.drop_last = bool(drop_last)
        self.generator = generator
        self._counts = np.bincount(self._codes)
        self._part = Shard(0, 1, self.batch_size, drop_last=self.drop_last)

    def __len__(self) -> int:
        if self._part.world_size > 1:
            return self._part.rank_steps(len(self._codes))
        whole, rest = divmod(len(self._codes), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def order_facts(self) -> dict[str, Any]:
        """Return what the batches are a function of, beside the seed."""
        facts = {"labels": self._codes, "batch_size": self.batch_size, "drop_last": self.drop_last}
        ranks = self._part.world_size
        return facts if ranks == 1 else {**facts, "num_replicas": ranks}

    def shard(self, index: int, count: int) -> Self:
        """Return this sampler for rank `index` of `count`; the generator is shared with it.

        The ranks deal the batches of one plan out among them. What fills no step of theirs is
        divided evenly, or left out with `drop_last`.

        Raises:
            ValueError: it is that of one rank already.
        """
        if self._part.world_size > 1:
            raise ValueError(
                f"this {type(self).__name__} is that of rank {self._part.rank} of "
                f"{self._part.world_size} already. Shard the sampler that it was made from."
            )
        sampler = copy.copy(self)
        sampler._part = Shard(index, count, self.batch_size, drop_last=self.drop_last)
        return sampler

    def plan(self, seed: int) -> tuple[Indices, Indices]:
        """Return the batches of the epoch with this seed: indices and offsets."""
        generator = seeded(seed)
        n, size = len(self._codes), self.batch_size
        whole, rest = divmod(n, size)
        shuffled = permutation(n, generator)
        by_class = shuffled[np.argsort(self._codes[shuffled], kind="stable")]
        in_last = _last_batch(self._counts, size, generator)
        batch = _deal(self._counts - in_last, in_last, whole, generator)
        # Sorted by batch from a shuffled order: the classes lie mixed within each batch.
        mixed = permutation(n, generator)
        order = mixed[np.argsort(batch[mixed], kind="stable")]
        indices = by_class[order].astype(np.int64)
        offsets = np.arange(whole + 1) * size
        if self._part.world_size > 1:
            return _part_of(indices, self._part)
        if rest and not self.drop_last:
            offsets = np.append(offsets, n)
        return indices[: offsets[-1]], offsets


def _part_of(indices: Indices, part: Shard) -> tuple[Indices, Indices]:
    """Return a rank's batches of an epoch's, and their offsets."""
    batches = list(part.batches(iter([indices]), len(indices)))
    offsets = np.cumsum([0, *map(len, batches)])
    return np.concatenate([indices[:0], *batches]), offsets


def _last_batch(counts: Indices, size: int, generator: torch.Generator) -> Indices:
    """Return how many samples of each class the last, shorter batch takes."""
    n = int(counts.sum())
    rest = n % size
    # Whichever of the two it is, what stays lies between whole * floor(counts * size / n) and
    # whole * ceil(counts * size / n), so the whole batches can share it by floors and ceilings.
    return between(counts * rest // n, -(-counts * rest // n), rest, generator)


def between(low: Indices, high: Indices, total: int, generator: torch.Generator) -> Indices:
    """Choose integers from `low` to `high` (at most one apart) that add up to `total`."""
    chosen = low.copy()
    free = np.flatnonzero(high > low)
    free = free[permutation(len(free), generator)]
    chosen[free[: total - int(low.sum())]] += 1
    return chosen


def _deal(counts: Indices, in_last: Indices, whole: int, generator: torch.Generator) -> Indices:
    """Return the batch of each sample, samples sorted by class; the last batch is `whole`."""
    each = counts // whole if whole else np.zeros_like(counts)
    over = counts - each * whole
    # The order of the classes and the numbers of the batches are shuffled: who gets the odd
    # sample is chance.
    classes = permutation(len(counts), generator)
    names = permutation(whole, generator)
    starts = np.empty_like(over)
    starts[classes] = np.cumsum(over[classes]) - over[classes]
    # One class: `each` for every batch, then the odd ones, then those of the last batch.
    sizes = np.stack([each * whole, over, in_last], axis=1)
    firsts = np.stack([np.zeros_like(over), starts, np.zeros_like(over)], axis=1)
    dealt = spans(firsts.ravel(), sizes.ravel())
    in_whole = np.repeat(np.tile([True, True, False], len(counts)), sizes.ravel())
    batch = np.full(len(dealt), whole)
    if whole:
        batch[in_whole] = names[dealt[in_whole] % whole]
    return batch
