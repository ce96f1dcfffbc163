"""A shuffle that reads each group of samples once: of the groups, then within some at a time.

For data of which a group (a shard, a row group) is cheap to read whole and dear to read in parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from headrace.errors import OptionError
from headrace.rng import mix
from headrace.sampling.bijection import Bijection
from headrace.sampling.order import CHUNK, Chunks
from headrace.sampling.random import draw_seed


class GroupSampler(Sampler[int]):
    """Samples in groups that are shuffled, and mixed within a window of some groups at a time.

    Args:
        group_sizes: how many samples each group has; those of a group follow each other.
        window: how many groups are mixed.
        generator: where the order comes from; None is torch's global generator.

    Each epoch draws one int64, as torch's ``RandomSampler`` does; everything else follows from it
    by arithmetic (:class:`Bijection`), so that an epoch of any size begins, and resumes at any
    position, at once, in memory for the groups only.

    Raises:
        OptionError: a window below 1, or a size below 0.
    """

    def __init__(
        self,
        group_sizes: npt.ArrayLike,
        window: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        self.group_sizes = np.asarray(group_sizes, np.int64)
        if window < 1:
            raise OptionError(f"window= is a number of groups, at least 1, got {window}.")
        if len(self.group_sizes) and self.group_sizes.min() < 0:
            raise OptionError(f"a group cannot have {self.group_sizes.min()} samples.")
        self.window = window
        self.generator = generator

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self.group_sizes.sum())

    def __iter__(self) -> Iterator[int]:
        for chunk in self.index_chunks():
            yield from cast("list[int]", chunk.tolist())

    def order_facts(self) -> dict[str, Any]:
        """Return what the order is a function of, beside the seed."""
        return {"group_sizes": self.group_sizes, "window": self.window, "method": "bijection"}

    def index_chunks(self, start: int = 0) -> Chunks:
        """Yield the order from position ``start`` on."""
        seed = draw_seed(self.generator)
        if not len(self):
            return
        order = Bijection(len(self.group_sizes), mix(seed, 0)).block(0, len(self.group_sizes))
        firsts = np.cumsum(self.group_sizes) - self.group_sizes
        behind = np.cumsum(self.group_sizes[order])
        first_group = int(np.searchsorted(behind, start, side="right"))
        number = first_group // self.window
        for low in range(number * self.window, len(order), self.window):
            groups = order[low : low + self.window]
            before = int(behind[low - 1]) if low else 0
            yield from self._window(groups, firsts, mix(seed, number + 1), start - before)
            number += 1

    def _window(
        self, groups: npt.NDArray[np.int64], firsts: npt.NDArray[np.int64], seed: int, start: int
    ) -> Chunks:
        """Yield the samples of some groups, mixed, from a position among them on."""
        sizes = self.group_sizes[groups]
        behind = np.cumsum(sizes)
        shift = firsts[groups] - (behind - sizes)
        count = int(behind[-1])
        if not count:
            return
        shuffle = Bijection(count, seed)
        for first in range(max(start, 0), count, CHUNK):
            places = shuffle.block(first, min(first + CHUNK, count))
            yield places + shift[np.searchsorted(behind, places, side="right")]


def shuffle_of(dataset: Sized, generator: torch.Generator | None) -> Sampler[int] | None:
    """Return the sampler that a dataset wants for ``shuffle=True``; None where it is torch's.

    A dataset joins by a method ``__shuffle__(generator)`` that returns a sampler of its indices,
    such as a :class:`GroupSampler`, whose randomness comes from ``generator``; or None.

    Raises:
        OptionError: the sampler has another length than the dataset.
    """
    ask = getattr(type(dataset), "__shuffle__", None)
    sampler: Sampler[int] | None = None if ask is None else ask(dataset, generator)
    if sampler is not None and len(sampler) != len(dataset):  # type: ignore[arg-type]
        raise OptionError(
            f"{type(dataset).__name__}.__shuffle__() returned a sampler of "
            f"{len(sampler):,} samples, and there are {len(dataset):,}. "  # type: ignore[arg-type]
            f"Return one that has each index once."
        )
    return sampler
