"""The face: a ``DataLoader`` that is torch's in everything but how it iterates."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Generic, NoReturn, TypeVar

import torch
import torch.utils.data as torch_data
from torch.utils.data import IterableDataset
from torch.utils.data._utils.pin_memory import pin_memory as pin

from headrace.collate.stack import is_default
from headrace.data.gather import find_gatherer
from headrace.engine.backends.inline import InlineBackend
from headrace.engine.fetch import Fetcher, Recipe
from headrace.engine.gather import BlockGather
from headrace.engine.lease import Pool
from headrace.engine.order import Order, Tasks
from headrace.engine.stats import Counters, Statistics
from headrace.engine.window import Window
from headrace.errors import OptionError
from headrace.rng import ProcessGenerators, TaskGenerators, task_seed

_T_co = TypeVar("_T_co", covariant=True)
_TRANSIENT = ("_pool", "_counters", "_iterator")


class DataLoader(torch_data.DataLoader[_T_co]):
    """``torch.utils.data.DataLoader`` with another engine: same call, same order, same errors.

    Datasets of arrays and tensors are gathered a block at a time; everything else is fetched
    sample by sample, on leased memory, with random numbers that depend on (seed, epoch, step)
    alone. What differs from PyTorch on purpose is listed in the documentation.

    Args:
        dataset: a map-style dataset (anything with ``__getitem__`` and ``__len__``), or an
            ``IterableDataset``.
        batch_size: samples a batch; None turns batching off.
        shuffle: draw a new order every epoch.
        sampler: iterable of dataset indices, instead of ``shuffle``.
        batch_sampler: iterable of lists of indices, instead of ``batch_size``, ``shuffle``,
            ``sampler`` and ``drop_last``.
        num_workers: worker processes; 0 loads in this process.
        collate_fn: makes a batch of a list of samples.
        pin_memory: copy batches to page-locked memory, for an accelerator.
        drop_last: leave out a last batch that is smaller.
        timeout: seconds to wait for one batch from workers; 0 waits for ever.
        worker_init_fn: called in each worker with its number, after seeding.
        multiprocessing_context: start method of the workers, by name or as a context.
        generator: the generator that orders and seeds are drawn from.
        prefetch_factor: batches ahead for each worker; 2 by default.
        persistent_workers: keep the workers from epoch to epoch.
        pin_memory_device: deprecated in torch, and handed to it.
        in_order: hand batches out in the order of the sampler, not of completion.

    Raises:
        ValueError: for options that cannot be, at construction, as torch does.
    """

    def __init__(  # noqa: PLR0917 - torch's order of arguments
        self,
        dataset: torch_data.Dataset[_T_co],
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Any = None,
        batch_sampler: Any = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: torch.Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
    ) -> None:
        try:
            super().__init__(
                dataset,
                batch_size,
                shuffle,
                sampler,
                batch_sampler,
                num_workers,
                collate_fn,
                pin_memory,
                drop_last,
                timeout,
                worker_init_fn,
                multiprocessing_context,
                generator,
                prefetch_factor=prefetch_factor,
                persistent_workers=persistent_workers,
                pin_memory_device=pin_memory_device,
                in_order=in_order,
            )
        except ValueError as error:
            if "batch_size should be" not in str(error):
                raise
            raise OptionError(
                f"{error}. Write DataLoader(dataset, batch_size=32), or batch_size=None for single "
                f"samples."
            ) from None
        self._pool = Pool()
        self._counters = Counters()

    def statistics(self) -> Statistics:
        """Return what this loader has done so far: batches, samples, bytes, seconds waited."""
        return self._counters.snapshot()

    def _get_iterator(self) -> Any:
        self._counters.epochs += 1
        if self.num_workers > 0 or isinstance(self.dataset, _DATAPIPES):
            self._counters.path = "torch"
            return super()._get_iterator()
        if self.timeout:
            raise AssertionError(
                f"timeout={self.timeout} needs workers to wait for. Write DataLoader(..., "
                f"num_workers=1, timeout={self.timeout}), or leave it out."
            )
        if not self._pool.is_mine():
            self._pool = Pool()  # inherited by a fork
        return LoaderIterator(self)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _TRANSIENT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _pool=Pool(), _counters=Counters(), _iterator=None)


_DATAPIPES = (torch_data.IterDataPipe, torch_data.MapDataPipe)


class LoaderIterator(Generic[_T_co]):
    """One epoch of a loader."""

    def __init__(self, loader: DataLoader[_T_co]) -> None:
        self._workers: list[Any] = []
        self._sampler = loader._index_sampler
        self._device = _pin_device(loader)
        self._promised = _promised_length(loader)
        self._num_yielded = 0
        self._batches = _batches(loader)
        if self._device is None and self._promised is None:
            # Nothing to do after each batch: hand the inner iterator's batches straight out.
            self._finish: Callable[[Any], Any] | None = None
        else:
            self._finish = self._pin_and_count

    def __iter__(self) -> Iterator[_T_co]:
        return self

    def __next__(self) -> Any:
        """Return the next batch."""
        batch = next(self._batches)
        return batch if self._finish is None else self._finish(batch)

    def __len__(self) -> int:
        return len(self._sampler)

    def __getstate__(self) -> NoReturn:
        raise NotImplementedError(
            "an iterator of a DataLoader cannot be pickled or copied. Pickle the loader, and call "
            "iter() on the copy."
        )

    def _pin_and_count(self, batch: Any) -> Any:
        self._num_yielded += 1
        if self._promised is not None and self._num_yielded > self._promised[1]:
            dataset, length = self._promised
            warnings.warn(
                f"Length of IterableDataset {dataset} was reported to be {length}"
                f"(when accessing len(dataloader)), but {self._num_yielded} samples have been "
                f"fetched. ",
                stacklevel=3,
            )
        return batch if self._device is None else pin(batch, self._device)  # type: ignore[no-untyped-call]


def _batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """Return the batches of one epoch, by the shortest way there is.

    What is drawn from generators here, and when, is what torch draws: first the sampler is asked
    for its iterator, then the base seed is drawn, and orders are drawn with the first batch.
    """
    counters = loader._counters
    recipe = Recipe(
        dataset=loader.dataset,
        collate=loader.collate_fn,
        iterable=isinstance(loader.dataset, IterableDataset),
        auto_collation=loader._auto_collation,
        batch_size=loader.batch_size,
        drop_last=loader.drop_last,
    )
    order = None if recipe.iterable else Order(loader._index_sampler, recipe.auto_collation)
    base_seed = int(torch.empty((), dtype=torch.int64).random_(generator=loader.generator).item())
    seeded = None if recipe.quiet else _seeded
    fetcher = Fetcher(recipe, loader._pool, seeded)
    fetcher.start(task_seed(base_seed, 0, None))

    gatherable = recipe.auto_collation and not recipe.iterable and is_default(recipe.collate)
    gatherer = find_gatherer(recipe.dataset) if gatherable else None
    if gatherer is not None and order is not None:
        counters.path = "gather"
        gather = BlockGather(gatherer, loader._pool, counters)
        if order.chunks is not None:
            return gather.ahead(order.chunks, order.batch_size, order.drop_last)
        # map, not a generator: it goes on after a batch that raised.
        return map(partial(gather.due, otherwise=fetcher.batch_of), order)
    counters.path = "inline"
    indices = itertools.repeat(None) if order is None else iter(order)
    return Window(Tasks(indices, base_seed, 0), InlineBackend(fetcher), counters)


_generators: ProcessGenerators | None = None


def _seeded(seed: int) -> TaskGenerators:
    global _generators
    if _generators is None:
        _generators = ProcessGenerators()
    return TaskGenerators(_generators, seed)


def _pin_device(loader: DataLoader[Any]) -> str | None:
    """Return the accelerator that ``pin_memory`` is for, with torch's warnings if it is none."""
    if not loader.pin_memory:
        return None
    if loader.pin_memory_device:
        warnings.warn(
            f"pin_memory_device is deprecated, the current accelerator will be used as the device,"
            f"ignore pin_memory_device='{loader.pin_memory_device}'.",
            stacklevel=5,
        )
    accelerator = torch.accelerator.current_accelerator() if _has_accelerator() else None
    if accelerator is None or accelerator.type == "mps":
        what = "supported on MPS now" if accelerator is not None else None
        warnings.warn(
            "'pin_memory' argument is set as true but "
            + (f"not {what}, " if what else "no accelerator is found, then ")
            + "device pinned memory won't be used.",
            stacklevel=5,
        )
        return None
    return accelerator.type


def _has_accelerator() -> bool:
    return bool(torch.accelerator.is_available())


def _promised_length(loader: DataLoader[Any]) -> tuple[Any, int] | None:
    """Return an iterable dataset and the length it gave when the loader's was asked for."""
    length = loader._IterableDataset_len_called
    if length is None or not isinstance(loader.dataset, IterableDataset):
        return None
    return loader.dataset, length
