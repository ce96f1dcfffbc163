"""Datasets made of datasets: a function of each sample, and the samples that a function picks.

The other ways to compose are torch's own and work on every source: ``Subset``, ``ConcatDataset``,
``ChainDataset``, ``StackDataset``, ``random_split``.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import partial
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, Subset

from headrace.data.gather import find_gatherer
from headrace.data.gatherer import Gatherer, IndexArray
from headrace.data.identity import function_identity, identity_of
from headrace.data.progress import Progress
from headrace.errors import SampleIndexError
from headrace.rng import BorrowedGenerators, ProcessGenerators, begin_task, end_task
from headrace.sampling.groups import part_of, shuffle_of

Function: TypeAlias = Callable[[Any], Any]
Predicate: TypeAlias = Callable[[Any], object]

_STATE = ("state_dict", "load_state_dict")


class Source(Dataset[Any]):
    """Base of the map-style sources: a dataset that can be mapped and filtered."""

    def map(self, fn: Function) -> MappedDataset:
        """Return a dataset whose samples are ``fn(sample)``."""
        return MappedDataset(self, fn)

    def filter(self, fn: Predicate) -> FilteredDataset:
        """Return a dataset of the samples for which ``fn(sample)`` is true, in their order."""
        return FilteredDataset(self, fn)

    def _identity(self) -> str:
        """Return what tells its samples from another's, beside the type."""
        return ""


class StreamSource(IterableDataset[Any]):
    """Base of the iterable sources: a stream that can be mapped and filtered."""

    def map(self, fn: Function) -> MappedStream:
        """Return a stream whose samples are ``fn(sample)``."""
        return MappedStream(self, fn)

    def filter(self, fn: Predicate) -> FilteredStream:
        """Return a stream of the samples for which ``fn(sample)`` is true, in their order."""
        return FilteredStream(self, fn)


class MappedDataset(Source):
    """A function of each sample of a map-style dataset.

    Args:
        dataset: any map-style dataset.
        fn: called with a sample where the sample is fetched, so in the workers. It may draw random
            numbers. With the start method "spawn" it must be a function at the top level of a
            module; a lambda will do with "fork".

    An exception of ``fn`` keeps its type, with a note that names the index.
    """

    def __init__(self, dataset: Dataset[Any], fn: Function) -> None:
        _check(dataset, fn, iterable=False)
        self.dataset = dataset
        self.fn = fn

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: Any) -> Any:
        """Return ``fn(dataset[index])``."""
        return _call(self.fn, self.dataset[index], index)

    def __getitems__(self, indices: Sequence[Any]) -> list[Any]:
        """Return the samples at ``indices``, asking the dataset for all at once if it can."""
        samples = zip(indices, _samples(self.dataset, indices), strict=True)
        return [_call(self.fn, sample, index) for index, sample in samples]

    def __shuffle__(self, generator: torch.Generator | None) -> Sampler[int] | None:
        """Return what the dataset wants ``shuffle=True`` to be."""
        return shuffle_of(self.dataset, generator)

    def _identity(self) -> str:
        return f"{identity_of(self.dataset)} {function_identity(self.fn)}"

    def __repr__(self) -> str:
        return f"{name_of(self.dataset)}.map({name_of(self.fn)})"


class FilteredDataset(Source):
    """The samples of a map-style dataset for which a function is true, in their order.

    Args:
        dataset: any map-style dataset.
        fn: called once with each sample, in one pass: when the length or a sample is first asked
            for, which the loader does before it starts workers. They share the indices found, 8
            bytes each. The generators of torch, NumPy and Python are seeded for the pass and put
            back, so that a dataset that draws random numbers gives the same indices each time.

    Where the dataset gathers, so does this one. An exception of ``fn`` keeps its type, with a note
    that names the index.
    """

    def __init__(self, dataset: Dataset[Any], fn: Predicate) -> None:
        _check(dataset, fn, iterable=False)
        self.dataset = dataset
        self.fn = fn
        self._indices: IndexArray | None = None

    @property
    def indices(self) -> IndexArray:
        """Places in ``dataset`` of the samples that are kept: int64, ascending."""
        if self._indices is None:
            self._indices = self._find()
        return self._indices

    def _find(self) -> IndexArray:
        length = len(self.dataset)  # type: ignore[arg-type]
        kept = np.zeros(length, np.bool_)
        what = f"filtering {name_of(self.dataset)}"
        with Progress(what, length, "samples") as progress, RandomNumbers().seeded(0):
            for index in range(length):
                kept[index] = bool(_call(self.fn, self.dataset[index], index))
                progress.advance()
        return np.flatnonzero(kept).astype(np.int64, copy=False)

    def __len__(self) -> int:
        """Return the number of samples that are kept."""
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        """Return one of the samples that are kept."""
        return self.dataset[self._place(index)]

    def __getitems__(self, indices: Sequence[Any]) -> Any:
        """Return the samples at ``indices``, asking the dataset for all at once if it can."""
        return _samples(self.dataset, [self._place(index) for index in indices])

    def __shuffle__(self, generator: torch.Generator | None) -> Sampler[int] | None:
        """Return the dataset's own order of what is kept; None where that is torch's."""
        whole = shuffle_of(self.dataset, generator)
        return None if whole is None else part_of(whole, self.indices)

    def _place(self, index: Any) -> int:
        try:
            return int(self.indices[index])
        except IndexError:
            raise SampleIndexError(
                f"index {index} is out of range: the filter keeps {len(self)} samples. "
                f"Write an index from 0 to {len(self) - 1}."
            ) from None

    def _identity(self) -> str:
        return f"{identity_of(self.dataset)} {function_identity(self.fn)}"

    def __gather__(self) -> Gatherer | None:
        """Join the gather protocol where the dataset does."""
        if find_gatherer(self.dataset) is None:
            return None
        return find_gatherer(Subset(self.dataset, self.indices))  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"{name_of(self.dataset)}.filter({name_of(self.fn)})"


class _Composed(StreamSource):
    """A stream over another one: it has a state, and parts, where that has them."""

    def __init__(self, dataset: IterableDataset[Any], fn: Function) -> None:
        _check(dataset, fn, iterable=True)
        self.dataset = dataset
        self.fn = fn

    def __getattr__(self, name: str) -> Any:
        if name in _STATE:
            return getattr(self.__dict__["dataset"], name)
        if name == "shard":  # asked for by name: a loader divides what has it
            return partial(self._shard, self.__dict__["dataset"].shard)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _shard(self, shard: Callable[[int, int], Any], index: int, count: int) -> Self:
        return type(self)(shard(index, count), self.fn)


class MappedStream(_Composed):
    """A function of each sample of an iterable dataset.

    Args:
        dataset: any iterable dataset. Where it has a state, so has this one.
        fn: called with each sample.

    An exception of ``fn`` keeps its type, with a note that names the place in the stream.
    """

    def __iter__(self) -> Iterator[Any]:
        """Yield ``fn(sample)`` for each sample."""
        return _MappedIterator(iter(self.dataset), self.fn)

    def __repr__(self) -> str:
        return f"{name_of(self.dataset)}.map({name_of(self.fn)})"


class FilteredStream(_Composed):
    """The samples of an iterable dataset for which a function is true, found as it streams.

    Args:
        dataset: any iterable dataset. Where it has a state, so has this one.
        fn: called with each sample.

    An exception of ``fn`` keeps its type, with a note that names the place in the stream.
    """

    def __iter__(self) -> Iterator[Any]:
        """Yield the samples that are kept."""
        return _FilteredIterator(iter(self.dataset), self.fn)

    def __repr__(self) -> str:
        return f"{name_of(self.dataset)}.filter({name_of(self.fn)})"


class _Iterator:
    """Not a generator: the state of the iterator under it must be in reach."""

    def __init__(self, samples: Iterator[Any], fn: Function) -> None:
        self._samples = samples
        self._fn = fn
        self._drawn = 0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __getattr__(self, name: str) -> Any:
        if name in _STATE:
            return getattr(self.__dict__["_samples"], name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _next(self) -> tuple[Any, Any]:
        sample = next(self._samples)
        self._drawn += 1
        where = f"sample {self._drawn - 1} since the stream was begun or resumed"
        return sample, _call(self._fn, sample, where)


class _MappedIterator(_Iterator):
    def __next__(self) -> Any:
        return self._next()[1]


class _FilteredIterator(_Iterator):
    def __next__(self) -> Any:
        while True:
            sample, keep = self._next()
            if keep:
                return sample


class RandomNumbers:
    """Random numbers for user code that runs once and is remembered: a seed's, not the task's."""

    def __init__(self) -> None:
        self._process = BorrowedGenerators(ProcessGenerators())

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Seed the generators of the process and of the task, and put them back at the end.

        In a thread beside the main one those of the process are left alone: others draw from them.
        """
        task = begin_task(seed)
        borrowed = threading.current_thread() is threading.main_thread()
        saved = self._process.save() if borrowed else None
        try:
            if saved is not None:
                self._process.begin(seed)
            yield
        finally:
            if saved is not None:
                self._process.end(saved)
            end_task(task)


def _check(dataset: Any, fn: Any, *, iterable: bool) -> None:
    if not callable(fn):
        raise TypeError(f"fn must be a function of a sample, got {fn!r}. Write dataset.map(len).")
    if isinstance(dataset, IterableDataset) != iterable:
        wrong, right = ("map-style", "Dataset") if iterable else ("iterable", "Stream")
        raise TypeError(
            f"{type(dataset).__name__} is {wrong}. Write Mapped{right}(dataset, fn) or "
            f"Filtered{right}(dataset, fn)."
        )
    if not iterable and not (hasattr(dataset, "__getitem__") and isinstance(dataset, Sized)):
        raise TypeError(
            f"{type(dataset).__name__} needs __getitem__ and __len__ to be mapped or filtered."
        )


def place_of(index: int, length: int) -> int:
    """Return the place, from 0 on, of an index that may count from the end.

    Raises:
        SampleIndexError: there is no such sample.
    """
    place = operator.index(index)
    if not -length <= place < length:
        raise SampleIndexError(
            f"index {place} is out of range: there are {length:,} samples. "
            f"Write an index from 0 to {length - 1}."
        )
    return place + length if place < 0 else place


def _samples(dataset: Any, indices: Sequence[Any]) -> Any:
    many = getattr(dataset, "__getitems__", None)
    return many(indices) if many else [dataset[index] for index in indices]


def _call(fn: Function, sample: Any, where: Any) -> Any:
    try:
        return fn(sample)
    except Exception as error:
        place = where if isinstance(where, str) else f"the sample at index {where}"
        error.add_note(f"headrace: in {name_of(fn)}, called with {place}")
        raise


def name_of(value: Any) -> str:
    """Name a function as its user wrote it, a dataset by its class or its composition."""
    if isinstance(value, (Source, StreamSource)) and type(value).__repr__ is not object.__repr__:
        text = repr(value)
        return text if "\n" not in text else type(value).__qualname__
    name: str = getattr(value, "__qualname__", None) or type(value).__qualname__
    return name
