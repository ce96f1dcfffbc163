"""A shuffle that reads each group of samples once: of the groups, then within some at a time.

For data of which a group (a shard, a row group) is cheap to read whole and dear to read in parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeGuard, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import ConcatDataset, Sampler, Subset

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
        places: the index of each sample, group by group; None where they are numbered so.
        ahead: called as a window is begun with the numbers of its groups and of those in the next
            one, in their order, in the process that draws the order: to fetch them, say.

    Each epoch draws one int64, as torch's ``RandomSampler`` does; everything else follows from it
    by arithmetic (:class:`Bijection`), so that an epoch of any size begins, and resumes at any
    position, at once, in memory for the groups only.

    Raises:
        OptionError: a window below 1, a size below 0, or another number of places.
    """

    def __init__(
        self,
        group_sizes: npt.ArrayLike,
        window: int = 1,
        generator: torch.Generator | None = None,
        *,
        places: npt.ArrayLike | None = None,
        ahead: Callable[[list[int]], None] | None = None,
    ) -> None:
        self.group_sizes = np.asarray(group_sizes, np.int64)
        if window < 1:
            raise OptionError(f"window= is a number of groups, at least 1, got {window}.")
        if len(self.group_sizes) and self.group_sizes.min() < 0:
            raise OptionError(f"a group cannot have {self.group_sizes.min()} samples.")
        self.window = window
        self.generator = generator
        self.places = None if places is None else np.asarray(places, np.int64)
        self.ahead = ahead
        if self.places is not None and len(self.places) != len(self):
            raise OptionError(
                f"places= has {len(self.places):,} indices, and the groups have {len(self):,} "
                f"samples. Write the index of each sample, group by group."
            )

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self.group_sizes.sum())

    def __iter__(self) -> Iterator[int]:
        for chunk in self.index_chunks():
            yield from cast("list[int]", chunk.tolist())

    def order_facts(self) -> dict[str, Any]:
        """Return what the order is a function of, beside the seed."""
        facts = {"group_sizes": self.group_sizes, "window": self.window, "method": "bijection"}
        return facts if self.places is None else {**facts, "places": self.places}

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
            if self.ahead is not None:
                self.ahead(order[low : low + 2 * self.window].tolist())
            chunks = self._window(groups, firsts, mix(seed, number + 1), start - before)
            yield from chunks if self.places is None else (self.places[chunk] for chunk in chunks)
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


def shuffle_of(dataset: Any, generator: torch.Generator | None) -> Sampler[int] | None:
    """Return the sampler that a dataset wants for ``shuffle=True``; None where it is torch's.

    A dataset joins by a method ``__shuffle__(generator)`` that returns a sampler of its indices,
    such as a :class:`GroupSampler`, whose randomness comes from ``generator``; or None. torch's
    ``Subset`` and ``ConcatDataset`` of such datasets go through their groups too.

    Raises:
        OptionError: the sampler has another length than the dataset.
    """
    if type(dataset) is Subset:
        return part_of(shuffle_of(dataset.dataset, generator), dataset.indices)
    if type(dataset) is ConcatDataset:
        return _joined([shuffle_of(part, generator) for part in dataset.datasets], generator)
    ask = getattr(type(dataset), "__shuffle__", None)
    sampler: Sampler[int] | None = None if ask is None else ask(dataset, generator)
    if sampler is not None and len(sampler) != len(dataset):  # type: ignore[arg-type]
        raise OptionError(
            f"{type(dataset).__name__}.__shuffle__() returned a sampler of "
            f"{len(sampler):,} samples, and there are {len(dataset):,}. "  # type: ignore[arg-type]
            f"Return one that has each index once."
        )
    return sampler


def _has_groups(sampler: object) -> TypeGuard[GroupSampler]:
    """Say whether an order is that of a :class:`GroupSampler`: a subclass may have another."""
    return isinstance(sampler, GroupSampler) and all(
        getattr(type(sampler), name) is getattr(GroupSampler, name)
        for name in ("index_chunks", "__iter__")
    )


def part_of(sampler: Sampler[int] | None, indices: Any) -> GroupSampler | None:
    """Return the order of those samples that are at some indices, by the groups they are in."""
    if not _has_groups(sampler):
        return None
    wanted = np.asarray(indices)
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
        return None  # torch's order, and the dataset says what is wrong with them
    wanted = np.where(wanted < 0, wanted + len(sampler), wanted)
    if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(sampler):
        return None
    places = wanted
    if sampler.places is not None:
        places = np.empty(len(sampler), np.int64)
        places[sampler.places] = np.arange(len(sampler))
        places = places[wanted]
    groups = np.searchsorted(np.cumsum(sampler.group_sizes), places, side="right")
    return GroupSampler(
        np.bincount(groups, minlength=len(sampler.group_sizes)),
        sampler.window,
        sampler.generator,
        places=np.argsort(groups, kind="stable"),
        ahead=sampler.ahead,
    )


def _joined(
    samplers: Sequence[Sampler[int] | None], generator: torch.Generator | None
) -> GroupSampler | None:
    """Return the order of datasets one behind the other, if all of them have groups."""
    parts = [sampler for sampler in samplers if _has_groups(sampler)]
    if len(parts) < len(samplers) or not parts:
        return None
    places = None
    if any(part.places is not None for part in parts):
        each = [np.arange(len(p)) if p.places is None else p.places for p in parts]
        firsts = np.cumsum([0, *map(len, parts)])
        places = np.concatenate([p + first for p, first in zip(each, firsts, strict=False)])
    return GroupSampler(
        np.concatenate([part.group_sizes for part in parts]),
        max(part.window for part in parts),
        generator,
        places=places,
        ahead=_Ahead(parts) if any(part.ahead is not None for part in parts) else None,
    )


class _Ahead:
    """Tells each of several samplers which of its groups come next."""

    def __init__(self, parts: Sequence[GroupSampler]) -> None:
        self._parts = parts
        self._firsts = np.cumsum([0, *(len(part.group_sizes) for part in parts)])

    def __call__(self, groups: list[int]) -> None:
        owners = np.searchsorted(self._firsts, groups, side="right") - 1
        for number, part in enumerate(self._parts):
            first = int(self._firsts[number])
            own = [g - first for g, owner in zip(groups, owners, strict=True) if owner == number]
            if own and part.ahead is not None:
                part.ahead(own)
