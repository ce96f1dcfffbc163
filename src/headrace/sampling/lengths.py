"""Batch samplers that lay out batches by the samples' lengths once, and deal samples to them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import numpy as np
import torch

from headrace.sampling.cutting import Layout, LengthClasses
from headrace.sampling.planned import Indices, PlannedBatchSampler


class LengthBatchSampler(PlannedBatchSampler):
    """What `BucketBatchSampler` and `PackedBatchSampler` share: each has a layout of its own."""

    _classes: LengthClasses
    _layout: Layout
    _leave_out = 0  # samples at random

    def _keep(
        self,
        lengths: object,
        max_tokens: int | None,
        *,
        shuffle: bool,
        drop_last: bool,
        oversize: str,
        generator: torch.Generator | None,
        ranks: tuple[int, int],
    ) -> Indices:
        """Keep the options that all have; return the lengths of the samples that fit."""
        self.num_replicas, self.rank = ranks
        self.lengths = check_lengths(lengths)
        self.shuffle, self.drop_last, self.generator = bool(shuffle), bool(drop_last), generator
        self.oversize = oversize
        self._kept, kept_lengths = fitting(self.lengths, max_tokens, oversize)
        self.skipped = len(self.lengths) - len(kept_lengths)
        return kept_lengths

    @abstractmethod
    def _options(self) -> dict[str, Any]:
        """Return the options of this sampler that not all have."""

    def order_facts(self) -> dict[str, Any]:
        """Return what the batches are a function of, beside the seed."""
        return {
            "lengths": self.lengths,
            **self._options(),
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            "oversize": self.oversize,
            "num_replicas": self.num_replicas,
        }

    def __len__(self) -> int:
        return self._layout.steps

    def plan(self, seed: int) -> tuple[Indices, Indices]:
        """Return the batches of the epoch with this seed: indices and offsets."""
        if self.shuffle:
            samples = self._classes.shuffled(seed, self._leave_out)
            indices, offsets = self._layout.deal(samples, seed, self.rank)
        else:
            indices, offsets = self._layout.deal(self._classes.in_order(), None, self.rank)
        return indices if self._kept is None else self._kept[indices], offsets

    def shard(self, index: int, count: int) -> Self:
        """Return this sampler for rank `index` of `count`; the generator is shared with it.

        Raises:
            ValueError: it is that of one rank already.
        """
        name = type(self).__name__
        if self.num_replicas != 1:
            raise ValueError(
                f"this {name} is that of rank {self.rank} of {self.num_replicas} already. "
                f"Leave num_replicas= and rank= out, or do not shard it."
            )
        make: Any = type(self)
        sampler: Self = make(
            self.lengths,
            **self._options(),
            shuffle=self.shuffle,
            drop_last=self.drop_last,
            oversize=self.oversize,
            generator=self.generator,
            num_replicas=count,
            rank=index,
        )
        return sampler


def check_lengths(lengths: object) -> Indices:
    """Return sequence lengths as int64 of shape (samples,).

    Raises:
        ValueError: not one-dimensional, empty, or one is negative.
        TypeError: not integers.
    """
    array = lengths.numpy(force=True) if isinstance(lengths, torch.Tensor) else np.asarray(lengths)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"lengths must have one number per sample, got an array of shape {array.shape}. "
            f"Write lengths=[len(sample) for sample in dataset]."
        )
    if array.dtype.kind not in "iu":
        raise TypeError(
            f"lengths must be integers, got {array.dtype}. "
            f"Write lengths=np.ceil(lengths).astype(int), in units that are whole."
        )
    array = np.ascontiguousarray(array, np.int64)
    if int(array.min()) < 0:
        at = int(array.argmin())
        raise ValueError(f"a length cannot be negative: sample {at} has {array[at]}.")
    return array


def fitting(
    lengths: Indices, max_tokens: int | None, oversize: str
) -> tuple[Indices | None, Indices]:
    """Return which samples fit into a batch of `max_tokens` (None is all), and their lengths.

    Raises:
        ValueError: one does not, and `oversize` is not "skip".
    """
    if oversize not in ("raise", "skip"):
        raise ValueError(f'oversize must be "raise" or "skip", got {oversize!r}.')
    if max_tokens is None:
        if oversize == "skip":
            raise ValueError('oversize="skip" does nothing without max_tokens=. Leave it out.')
        return None, lengths
    fits = lengths <= max_tokens
    if fits.all():
        return None, lengths
    if oversize == "raise":
        at = int(fits.argmin())
        raise ValueError(
            f"sample {at} alone has {lengths[at]:,} tokens, more than max_tokens={max_tokens:,} "
            f"({int((~fits).sum()):,} samples do). Write max_tokens={int(lengths.max())}, shorten "
            f'the samples, or leave them out with oversize="skip".'
        )
    kept = np.flatnonzero(fits)
    if len(kept) == 0:
        raise ValueError(f"every sample has more than max_tokens={max_tokens:,} tokens.")
    return kept, lengths[kept]
