"""Parts of a dataset: at random, with the classes in proportion, one after another in time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch.utils.data import Dataset, Subset
from torch.utils.data import random_split as torch_random_split

from headrace.data.windows import overlap_of
from headrace.sampling.permute import permutation
from headrace.sampling.planned import check_labels, draw_seed, seeded, spans
from headrace.sampling.stratified import Labels, between

T = TypeVar("T")


class LeakWarning(UserWarning):
    """Steps of a time series that are in two parts of a split."""


def random_split(
    dataset: Dataset[T],
    lengths: Sequence[int | float],
    generator: torch.Generator | None = None,
) -> list[Subset[T]]:
    """Split a dataset at random: torch's function, with a warning where windows would leak.

    Args:
        dataset: what to split; it is not read.
        lengths: sizes of the parts, or fractions that add up to 1.
        generator: where the order comes from; None is torch's global generator.

    Warns:
        LeakWarning: `dataset` is `SlidingWindows` that overlap.
    """
    _warn_of_leak(dataset, "random_split")
    return torch_random_split(dataset, lengths, generator)


def stratified_split(
    dataset: Dataset[Any],
    lengths: Sequence[int | float],
    *,
    labels: Labels,
    generator: torch.Generator | None = None,
) -> list[Subset[Any]]:
    """Split a dataset at random so that each part carries the classes in proportion.

    As torch's `random_split`, with labels. With two parts, each class's count in a part is its
    proportional share rounded down or up; with k parts it is less than k - 1 away from it. Which
    classes are rounded up is chance, so that a rare class is not always left out.

    Args:
        dataset: what to split; it is not read.
        lengths: sizes of the parts, or fractions that add up to 1.
        labels: shape (samples,), integers or strings: the class of each sample.
        generator: one int64 is drawn from it; None is torch's global generator.

    Raises:
        ValueError: `labels` and `dataset` of different lengths; `lengths` that do not add up.
    """
    _warn_of_leak(dataset, "stratified_split")
    _, codes = check_labels(labels)
    n = len(dataset)  # type: ignore[arg-type]
    if n != len(codes):
        raise ValueError(
            f"{len(codes)} labels for {n} samples: labels must have one class per sample. "
            f"Write labels=[dataset[i][1] for i in range(len(dataset))], for example."
        )
    sizes = part_sizes(lengths, n)
    chance = seeded(draw_seed(generator))
    shuffled = permutation(n, chance)
    by_class = shuffled[np.argsort(codes[shuffled], kind="stable")]
    left = np.bincount(codes)
    starts = np.cumsum(left) - left
    parts = []
    for size in sizes:
        remaining = int(left.sum())
        share = left * size
        low, high = (share // remaining, -(-share // remaining)) if remaining else (share, share)
        take = between(low, high, size, chance)
        part = by_class[spans(starts, take)]
        parts.append(Subset(dataset, part[permutation(len(part), chance)].tolist()))
        starts, left = starts + take, left - take
    return parts


@overload
def chronological_split(
    n: int, fractions: Sequence[float], gap: int | None = None
) -> list[range]: ...
@overload
def chronological_split(
    n: Dataset[T], fractions: Sequence[float], gap: int | None = None
) -> list[Subset[T]]: ...
def chronological_split(
    n: int | Dataset[T], fractions: Sequence[float], gap: int | None = None
) -> list[range] | list[Subset[T]]:
    """Split samples that are ordered in time into parts that follow each other.

    Args:
        n: number of samples, or a dataset.
        fractions: shares of the parts, which add up to 1, earliest first.
        gap: samples left out between two parts. None is as many as it takes: for `SlidingWindows`
            until no step is in two parts, for everything else 0.

    Returns:
        A range of indices for each part, or for a dataset a `Subset`.

    Raises:
        ValueError: fractions that do not add up to 1; a part without samples; a negative gap.

    Warns:
        LeakWarning: `gap` is too small for windows that overlap.
    """
    total = n if isinstance(n, int) else len(n)  # type: ignore[arg-type]
    windows = None if isinstance(n, int) else overlap_of(n)
    needed = windows.gap if windows is not None else 0
    gap = needed if gap is None else gap
    if gap < 0:
        raise ValueError(f"gap must be 0 or more samples, got {gap}. Write gap=0.")
    if gap < needed:
        warnings.warn(
            f"with gap={gap}, windows of different parts share steps of the series, and what is "
            f"measured on the later part is too good. Write gap={needed}, or leave it out.",
            LeakWarning,
            stacklevel=2,
        )
    left = total - gap * (len(fractions) - 1)
    if not math.isclose(math.fsum(fractions), 1) or min(fractions) <= 0:
        raise ValueError(
            f"fractions must be above 0 and add up to 1, got {list(fractions)}. "
            f"Write fractions=[0.8, 0.2]."
        )
    # Ends are rounded, not sizes: whatever the rounding, the last part ends with the series.
    ends = [round(left * math.fsum(fractions[: k + 1])) for k in range(len(fractions))]
    bounds = pairwise([0, *ends])
    parts = [range(a + k * gap, b + k * gap) for k, (a, b) in enumerate(bounds)]
    if left < 1 or not all(parts):
        raise ValueError(
            f"{total} samples are too few for parts of {list(fractions)} with gap={gap}: they get "
            f"{[len(p) for p in parts]}. Use fewer parts, a smaller gap, or more samples."
        )
    return parts if isinstance(n, int) else [Subset(n, part) for part in parts]


def _warn_of_leak(dataset: object, function: str) -> None:
    windows = overlap_of(dataset)
    if windows is None:
        return
    shared = windows.span - windows.stride
    warnings.warn(
        f"{function} puts windows that overlap (by up to {shared} of {windows.span} steps) into "
        f"different parts: a model is then validated on steps it was trained on. "
        f"Write chronological_split(dataset, [0.8, 0.2]); shuffling within a part is fine.",
        LeakWarning,
        stacklevel=3,
    )


def part_sizes(lengths: Sequence[int | float], n: int) -> list[int]:
    """Return the sizes of the parts of n samples, given as sizes or fractions, as torch rounds.

    Raises:
        ValueError: they are negative, or add up to neither n nor 1.
    """
    if any(not 0 <= length <= n for length in lengths):
        raise ValueError(f"the parts must have sizes from 0 to {n}, got {list(lengths)}.")
    total = math.fsum(lengths)
    if math.isclose(total, 1) and max(lengths) <= 1:
        sizes = [math.floor(n * fraction) for fraction in lengths]
        for i in range(n - sum(sizes)):
            sizes[i % len(sizes)] += 1
        return sizes
    if total != n or any(x != int(x) for x in lengths):
        raise ValueError(
            f"the parts {list(lengths)} add up to {total:g}, which is neither 1 nor the number of "
            f"samples, {n}. Write lengths=[0.8, 0.2], or sizes that add up to {n}."
        )
    return [int(x) for x in lengths]
