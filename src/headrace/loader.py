"""The face: a ``DataLoader`` that is torch's in everything but how it iterates."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Generic, Literal, NoReturn, TypeVar

import torch
import torch.utils.data as torch_data
from torch.utils.data import IterableDataset
from torch.utils.data._utils.pin_memory import pin_memory as pin

from headrace.engine.fetch import Recipe
from headrace.engine.lease import Pool
from headrace.engine.plan import Engine, Options, worker_context
from headrace.engine.shared import AVAILABLE, Home
from headrace.engine.stats import Counters, Statistics
from headrace.errors import OptionError

_T_co = TypeVar("_T_co", covariant=True)
_TRANSIENT = ("_pool", "_home", "_counters", "_iterator")


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
        backend: ``"process"`` makes batches in ``num_workers`` processes; ``"inline"`` in this
            process, whatever ``num_workers`` says; ``"auto"`` in processes, but for datasets of
            columns, which one background thread gathers faster than any process could.
        worker_restarts: how many workers that die may be replaced in an epoch before it is an
            error. Their tasks are run again, and make the same batches.
        rng: ``"task"`` seeds torch, NumPy and ``random`` for each batch from (base seed, epoch,
            step), so that batches do not depend on the number of workers; ``"torch"`` leaves them
            as torch does, one stream for each worker.

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
        backend: Literal["auto", "process", "inline"] = "auto",
        worker_restarts: int = 3,
        rng: Literal["task", "torch"] = "task",
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
        self.backend = _one_of("backend", backend, ("auto", "process", "inline"))
        self.rng = _one_of("rng", rng, ("task", "torch"))
        self.worker_restarts = _count("worker_restarts", worker_restarts)
        if backend == "process" and not num_workers:
            raise OptionError(
                "backend='process' needs worker processes, but num_workers is 0. "
                "Write DataLoader(..., num_workers=2, backend='process')."
            )
        self._pool, self._home = Pool(), Home()
        self._counters = Counters()

    def statistics(self) -> Statistics:
        """Return what this loader has done so far: batches, samples, bytes, seconds waited."""
        return self._counters.snapshot()

    def __iter__(self) -> Any:
        """Begin an epoch."""
        self._counters.epochs += 1
        return super().__iter__()

    def _get_iterator(self) -> Any:
        if isinstance(self.dataset, _DATAPIPES) or (self._uses_processes and not AVAILABLE):
            self._counters.path = "torch"
            return super()._get_iterator()
        if self.num_workers:
            self.check_worker_number_rationality()
        elif self.timeout:
            raise AssertionError(
                f"timeout={self.timeout} needs workers to wait for. Write DataLoader(..., "
                f"num_workers=1, timeout={self.timeout}), or leave it out."
            )
        if not self._pool.is_mine():
            self._pool, self._home = Pool(), Home()  # inherited by a fork
        return LoaderIterator(self)

    @property
    def _uses_processes(self) -> bool:
        return self.num_workers > 0 and self.backend != "inline"

    def _options(self) -> Options:
        """Return what the engine needs to know, as the attributes are now."""
        iterable = isinstance(self.dataset, IterableDataset)
        return Options(
            recipe=Recipe(
                dataset=self.dataset,
                collate=self.collate_fn,
                iterable=iterable,
                auto_collation=self._auto_collation,
                batch_size=self.batch_size,
                drop_last=self.drop_last,
            ),
            index_sampler=self._index_sampler,
            generator=self.generator,
            num_workers=self.num_workers,
            context=worker_context(self.multiprocessing_context) if self._uses_processes else None,
            prefetch_factor=self.prefetch_factor or 0,
            in_order=self.in_order,
            timeout_s=self.timeout,
            init_fn=self.worker_init_fn,
            backend=self.backend,
            restarts=self.worker_restarts,
            own_rng=self.rng == "task",
            persistent=self.persistent_workers,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _TRANSIENT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(
            state, _pool=Pool(), _home=Home(), _counters=Counters(), _iterator=None
        )


_DATAPIPES = (torch_data.IterDataPipe, torch_data.MapDataPipe)


class LoaderIterator(Generic[_T_co]):
    """One epoch of a loader, or with persistent workers one epoch after the other."""

    def __init__(self, loader: DataLoader[_T_co]) -> None:
        self._sampler = loader._index_sampler
        self._device = _pin_device(loader)
        self._engine = Engine(loader._options(), loader._pool, loader._home, loader._counters)
        self._workers = self._engine.workers
        self._begin(loader)

    def _reset(self, loader: DataLoader[_T_co]) -> None:
        """Begin another epoch with the same workers: what torch calls for persistent ones."""
        self._engine.next_epoch()
        self._begin(loader)

    def _begin(self, loader: DataLoader[_T_co]) -> None:
        self._batches = self._engine.batches
        self._promised = _promised_length(loader)
        self._num_yielded = 0
        # Nothing to do after each batch: hand the inner iterator's batches straight out.
        plain = self._device is None and self._promised is None
        self._finish: Callable[[Any], Any] | None = None if plain else self._pin_and_count

    def __iter__(self) -> Iterator[_T_co]:
        return self

    def __next__(self) -> Any:
        """Return the next batch."""
        try:
            batch = next(self._batches)
        except StopIteration:
            self._engine.end_epoch()
            raise
        return batch if self._finish is None else self._finish(batch)

    def _shutdown_workers(self) -> None:
        """End the workers, as other libraries ask torch's iterators to."""
        self._engine.close()

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


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise OptionError(
            f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}. "
            f"Write DataLoader(..., {name}={allowed[0]!r})."
        )
    return value


def _count(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise OptionError(
            f"{name}={value!r} is no count. Write DataLoader(..., {name}=3), or 0 for none."
        )
    return value


def _has_accelerator() -> bool:
    return bool(torch.accelerator.is_available())


def _promised_length(loader: DataLoader[Any]) -> tuple[Any, int] | None:
    """Return an iterable dataset and the length it gave when the loader's was asked for."""
    length = loader._IterableDataset_len_called
    if length is None or not isinstance(loader.dataset, IterableDataset):
        return None
    return loader.dataset, length
