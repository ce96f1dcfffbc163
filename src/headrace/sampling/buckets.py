"""Batches of sequences of similar length, from a shuffled order."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence, Sized
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from headrace.sampling.balance import share
from headrace.sampling.cutting import Layout, LengthClasses, Limits, cut
from headrace.sampling.lengths import LengthBatchSampler
from headrace.sampling.measure import measure
from headrace.sampling.planned import check_ranks, check_size

SPREAD = 0.04
# Narrower over ranks: what a class leaves open is added to the difference between them.
SPREAD_OVER_RANKS = 0.01
# max_ratio alone may well put half of a dataset into one batch.
LARGE_BATCH = 4096


class BucketBatchSampler(LengthBatchSampler):
    """Batches of samples of similar length: little padding, still a shuffle.

    Lengths within `spread` of each other count as equal. In each epoch all samples are shuffled,
    sorted by these classes of length (the shuffle decides within a class), cut into batches from
    the longest on, and the batches are shuffled. Where the cuts lie depends on the lengths only,
    so `len()` is exact and the same for each epoch, whatever the seed. Within a batch, longer
    samples tend to come first.

    An epoch is a function of one int64 drawn from `generator` when its first batch is asked for.

    Args:
        lengths: shape (samples,), integers: the length of each sample.
        dataset: instead of `lengths`: a dataset that is read once, when the sampler is made.
        key: sample -> its length, for `dataset`.
        cache: a file (`.npz`) that keeps the lengths of `dataset` for the next run.
        batch_size: samples in a batch, at most.
        max_tokens: padded size of a batch, at most: its samples times the longest of them.
        max_ratio: a new batch is started when a sequence is so many times longer than another of
            the batch and the batch has `min_batch_size` samples.
        min_batch_size: samples that a batch has before `max_ratio` may end it.
        shuffle: False sorts by length, the longest batch first, the same in each epoch.
        drop_last: leave out what fills no batch. Which samples these are is chance, or, with
            `max_ratio` or several ranks, they are the shortest.
        oversize: what to do with a sample that alone has more than `max_tokens`: "raise", or
            "skip" it (`skipped` says how many).
        spread: larger mixes the company of a sample more from epoch to epoch, and pads more; 0.04
            pads 2 %. Default 0.04, or 0.01 over ranks.
        generator: where the order comes from; None is torch's global generator. All ranks have to
            draw the same.
        num_replicas: number of ranks. Each gets equally many batches; with `max_tokens`, those of
            one step have padded sizes within 5 % of each other, as long as there are short samples
            to level them out with.
        rank: which of them this is.

    Raises:
        ValueError: options that contradict each other, or that would do nothing together; a sample
            that exceeds `max_tokens`.
        TypeError: lengths that are not integers.
    """

    def __init__(
        self,
        lengths: Sequence[int] | torch.Tensor | npt.NDArray[Any] | None = None,
        *,
        dataset: Sized | None = None,
        key: Callable[[Any], int] | None = None,
        cache: str | os.PathLike[str] | None = None,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        max_ratio: float | None = None,
        min_batch_size: int = 1,
        shuffle: bool = True,
        drop_last: bool = False,
        oversize: Literal["raise", "skip"] = "raise",
        spread: float | None = None,
        generator: torch.Generator | None = None,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        ranks = check_ranks(num_replicas, rank)
        self._limits = check_limits(batch_size, max_tokens, max_ratio, min_batch_size)
        _check_source(lengths, dataset, key, cache)
        _check_order(shuffle, spread, generator)
        if drop_last and batch_size is None and max_tokens is None and min_batch_size == 1:
            raise ValueError(
                "drop_last does nothing with max_ratio alone: no batch is too small. "
                "Add min_batch_size=, or leave drop_last out."
            )
        if dataset is not None and key is not None:
            lengths = measure(dataset, key, cache)
        kept_lengths = self._keep(
            lengths,
            max_tokens,
            shuffle=shuffle,
            drop_last=drop_last,
            oversize=oversize,
            generator=generator,
            ranks=ranks,
        )
        self.spread = spread
        self._classes = LengthClasses.of(kept_lengths, self._spread())
        self._layout, self._leave_out = self._arrange()

    def _options(self) -> dict[str, Any]:
        return {**vars(self._limits), "spread": self.spread}

    def _spread(self) -> float:
        if not self.shuffle:
            return 0.0
        spread = self.spread
        if spread is None:
            spread = SPREAD if self.num_replicas == 1 else SPREAD_OVER_RANKS
        ratio = self._limits.max_ratio
        return spread if ratio is None else min(spread, ratio - 1)

    def _arrange(self) -> tuple[Layout, int]:
        """Cut the row of classes; return the layout and how many samples to leave out at random."""
        limits, classes = self._limits, self._classes
        longest, shortest = classes.longest, classes.shortest
        offsets = cut(longest, shortest, limits)
        unlimited = limits.batch_size is None and limits.max_tokens is None
        if unlimited and int(np.diff(offsets).max()) > LARGE_BATCH:
            warnings.warn(
                f"max_ratio alone makes a batch of {int(np.diff(offsets).max()):,} samples here. "
                f"Add batch_size= or max_tokens= to bound it.",
                stacklevel=3,
            )
        if self.num_replicas > 1:
            drop = self.drop_last
            return share(offsets, longest, shortest, limits, ranks=self.num_replicas, drop=drop), 0
        last = int(offsets[-1] - offsets[-2])
        full = int(limits.most(longest[offsets[-2:-1]])[0])
        if not self.drop_last or last >= (limits.min_batch_size if unlimited else full):
            return Layout(offsets), 0
        if self.shuffle and limits.max_ratio is None:
            # Those behind one that is left out move up, to places for longer ones: no limit is
            # broken, and it need not always be the shortest that are left out.
            return Layout(offsets[:-1]), last
        return Layout(offsets[:-1]), 0


def check_limits(
    batch_size: int | None, max_tokens: int | None, max_ratio: float | None, min_batch_size: int
) -> Limits:
    """Return what bounds a batch.

    Raises:
        ValueError: a bound that cannot be, that has no effect, or no bound at all.
    """
    for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens)):
        if value is not None:
            check_size(name, value)
    check_size("min_batch_size", min_batch_size)
    if batch_size is None and max_tokens is None and max_ratio is None:
        raise ValueError(
            "nothing bounds a batch. Write BucketBatchSampler(lengths, max_tokens=16384), or "
            "batch_size=32, or max_ratio=1.5 with min_batch_size=8."
        )
    if max_ratio is not None and not 1 <= max_ratio < float("inf"):
        raise ValueError(
            f"max_ratio says how many times longer than another a sequence of the batch may be: "
            f"1 or more, got {max_ratio!r}. Write max_ratio=1.5."
        )
    if min_batch_size > 1 and max_ratio is None:
        raise ValueError(
            f"min_batch_size={min_batch_size} does nothing without max_ratio=: it holds back the "
            f"new batches that max_ratio starts. Add max_ratio=1.5, or leave it out."
        )
    if batch_size is not None and min_batch_size > batch_size:
        raise ValueError(
            f"min_batch_size={min_batch_size} is more than batch_size={batch_size}. "
            f"Write min_batch_size={batch_size}, or less."
        )
    return Limits(batch_size, max_tokens, max_ratio, min_batch_size)


def _check_source(lengths: object, dataset: object, key: object, cache: object) -> None:
    if (lengths is None) == (dataset is None):
        raise ValueError(
            f"{'neither' if lengths is None else 'both'} lengths and dataset given: one of them "
            f"says how long the samples are. Write BucketBatchSampler(lengths, ...), or "
            f"BucketBatchSampler(dataset=dataset, key=lambda sample: len(sample[0]), ...)."
        )
    if dataset is not None and not callable(key):
        raise ValueError(
            f"dataset= needs key=, a function from a sample to its length, got {key!r}. "
            f"Write key=lambda sample: len(sample[0])."
        )
    if dataset is None and (key is not None or cache is not None):
        name = "key" if key is not None else "cache"
        raise ValueError(f"{name}= does nothing with lengths=: it measures dataset=. Leave it out.")


def _check_order(shuffle: bool, spread: float | None, generator: object) -> None:
    given = [n for n, v in (("spread", spread), ("generator", generator)) if v is not None]
    if given and not shuffle:
        raise ValueError(f"{given[0]}= does nothing with shuffle=False. Leave one of the two out.")
    if spread is not None and not 0 <= spread <= 1:
        raise ValueError(f"spread must be from 0 to 1, got {spread!r}. Write spread=0.04.")
