"""How a row of lengths, longest first, is cut into batches; and which lengths count as equal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headrace.sampling.permute import permutation
from headrace.sampling.planned import Indices, seeded, spans


@dataclass(frozen=True)
class Limits:
    """What bounds a batch. None does not."""

    batch_size: int | None = None
    max_tokens: int | None = None
    max_ratio: float | None = None
    min_batch_size: int = 1

    def most(self, longest: Indices) -> Indices:
        """Return how many samples a batch may have whose longest has this length."""
        most = np.full(len(longest), np.iinfo(np.int64).max // 2)
        if self.batch_size is not None:
            most = np.minimum(most, self.batch_size)
        if self.max_tokens is not None:
            most = np.minimum(most, self.max_tokens // np.maximum(longest, 1))
        return most


@dataclass(frozen=True)
class LengthClasses:
    """Samples grouped by length, longest class first; those of one class stand for each other.

    `codes[sample]` is its class, of the narrowest unsigned type (NumPy sorts 16 bits by radix);
    `longest` and `shortest` bound the lengths at each place of the row of samples that is sorted
    by class, shape (samples,).
    """

    codes: np.ndarray[tuple[int], np.dtype[np.unsignedinteger]]
    longest: Indices
    shortest: Indices

    @classmethod
    def of(cls, lengths: Indices, spread: float) -> LengthClasses:
        """Group lengths so that within a class the longest is at most 1 + spread times another."""
        values, places = np.unique(lengths, return_inverse=True)
        values = values[::-1]
        starts, i = [], 0
        limits = np.ceil(values / (1 + spread)) if spread else values
        # Where each class would end if it began here: the values fall, so one search does.
        ends = np.searchsorted(-values, -limits, side="right").tolist()
        while i < len(values):
            starts.append(i)
            i = ends[i]
        first = np.array(starts)
        class_of = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(values))))
        codes = class_of[::-1][places]
        counts = np.bincount(codes)
        narrow = np.uint16 if len(first) < 2**16 else np.uint32
        last = np.append(first[1:], len(values)) - 1
        longest, shortest = np.repeat(values[first], counts), np.repeat(values[last], counts)
        return cls(codes.astype(narrow), longest, shortest)

    def in_order(self) -> Indices:
        """Return all samples, class after class, in their own order within a class."""
        return np.argsort(self.codes, kind="stable")

    def shuffled(self, seed: int, leave_out: int = 0) -> Indices:
        """Return all samples but some, class after class, in random order within a class."""
        order = permutation(len(self.codes), seeded(seed))[leave_out:]
        return order[np.argsort(self.codes[order], kind="stable")].astype(np.int64)


def cut(longest: Indices, shortest: Indices, limits: Limits) -> Indices:
    """Cut lengths, longest first, into batches, each as large as the limits allow.

    Args:
        longest: the most that the sample at each place may measure, falling.
        shortest: the least, falling.
        limits: with `max_ratio`, a batch of more than `min_batch_size` samples has none that is
            longer than that many times another.

    Returns:
        Offsets of shape (batches + 1,).
    """
    n = len(longest)
    counts = np.maximum(limits.most(longest), 1)
    if limits.max_ratio is not None:
        # The first place whose sample may be too short to stay with the one here.
        too_short = np.searchsorted(
            -(shortest * limits.max_ratio), -longest.astype(np.float64), side="right"
        )
        near = np.maximum(too_short - np.arange(n), limits.min_batch_size)
        counts = np.minimum(counts, near)
    after = np.minimum(np.arange(n) + counts, n).tolist()
    offsets, at = [0], 0
    while at < n:  # one step a batch, not a sample
        at = after[at]
        offsets.append(at)
    return np.array(offsets)


@dataclass(frozen=True)
class Layout:
    """An epoch's batches as places in the row of samples sorted by length; the same each epoch.

    Batch k has the places `places[offsets[k]:offsets[k + 1]]`; None is place = position. Batches
    `s * ranks` to `(s + 1) * ranks` are handed out together, one to each rank.
    """

    offsets: Indices
    places: Indices | None = None
    ranks: int = 1

    @property
    def steps(self) -> int:
        """Batches that each rank gets."""
        return (len(self.offsets) - 1) // self.ranks

    def deal(self, samples: Indices, seed: int | None, rank: int) -> tuple[Indices, Indices]:
        """Return one rank's batches, indices and offsets; shuffled where there is a seed."""
        if self.places is not None:
            samples = samples[self.places]
        order, turn = np.arange(self.steps), np.zeros(self.steps, np.int64)
        if seed is not None:
            # Another stream than the one that shuffled the samples.
            generator = seeded(seed ^ 0x5DEECE66D)
            order = permutation(self.steps, generator).astype(np.int64)
            # Which rank gets the larger batch of a step is chance too.
            bits = np.random.PCG64(seed & (2**64 - 1)).random_raw(self.steps)
            turn = (bits >> np.uint64(32)).astype(np.int64)
        chosen = order * self.ranks + (rank + turn) % self.ranks
        starts, sizes = self.offsets[chosen], np.diff(self.offsets)[chosen]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        return samples[spans(starts, sizes)], offsets
