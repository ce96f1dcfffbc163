"""The face: a ``DataLoader`` that is torch's in everything but how it iterates."""

from __future__ import annotations

import inspect
from abc import ABCMeta
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
import torch.utils.data as torch_data
from torch.utils.data import IterableDataset
from torch.utils.data import RandomSampler as TorchRandomSampler

from headrace.carried import Carrier, takes_up, warn_of_lost
from headrace.checks import (
    bytes_of,
    check_arrays,
    check_backend,
    check_given,
    check_indexable,
    check_orderable,
    check_sampler,
    check_threads,
    count_of,
    explained,
    max_errors_of,
    one_of,
    seed_of,
    workers_of,
)
from headrace.data.tables import as_dataset
from headrace.engine.ahead import target_device
from headrace.engine.backends.context import is_forked
from headrace.engine.epoch import Session, choose, trial_batches
from headrace.engine.order import ShardOption, batch_size_of, generators_of, order_sampler
from headrace.engine.shared import AVAILABLE
from headrace.engine.stats import Statistics
from headrace.errors import OptionError
from headrace.iterator import LoaderIterator
from headrace.sampling.groups import shuffle_of
from headrace.sampling.planned import is_planned
from headrace.sampling.random import RandomSampler, uses_bijection
from headrace.sampling.ranks import Uneven
from headrace.sized import length_of
from headrace.spelling import suggests_names
from headrace.wiring import (
    check_shard,
    index_sampler_of,
    options_of,
    shape_of,
    shard_now,
    uses_processes,
    warn_inexact,
)

_T_co = TypeVar("_T_co", covariant=True)


STOCK = torch_data.DataLoader  # kept: headrace.install() puts ours under that name


class LoaderType(ABCMeta):
    """The type of ``DataLoader``: in torch's place, it takes torch's loaders for instances too."""

    in_place = False

    def __instancecheck__(cls, instance: object) -> bool:
        """Say whether something is a loader."""
        if cls is DataLoader and LoaderType.in_place:
            return isinstance(instance, STOCK)
        return super().__instancecheck__(instance)

    def __subclasscheck__(cls, subclass: type) -> bool:
        """Say whether a class is one of loaders."""
        if cls is DataLoader and LoaderType.in_place:
            return issubclass(subclass, STOCK)
        return super().__subclasscheck__(subclass)


class DataLoader(torch_data.DataLoader[_T_co], metaclass=LoaderType):
    """``torch.utils.data.DataLoader`` with another engine: same call, same order, same errors.

    Datasets of arrays and tensors are gathered a block at a time; everything else is fetched
    sample by sample, on leased memory, with random numbers that depend on (seed, epoch, step)
    alone. What differs from PyTorch on purpose is listed in the documentation.

    Args:
        dataset: a map-style dataset (anything with ``__getitem__`` and ``__len__``), an
            ``IterableDataset``, or a table: a pyarrow table, a polars or pandas frame.
        batch_size: samples a batch; None turns batching off.
        shuffle: draw a new order every epoch.
        sampler: iterable of dataset indices, instead of ``shuffle``.
        batch_sampler: iterable of lists of indices, instead of ``batch_size``, ``shuffle``,
            ``sampler`` and ``drop_last``.
        num_workers: worker processes; 0 loads in this process. ``"auto"`` times a few batches when
            the first iterator is asked for, takes this thread, threads or processes (``backend=``
            narrows it down) within the cores there are, and says why in ``statistics().why``. The
            dataset must then bear being read by several threads.
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
        backend: ``"process"`` makes batches in ``num_workers`` processes; ``"thread"`` in as many
            threads of this process, which share the dataset; ``"inline"`` in this thread, whatever
            ``num_workers`` says; ``"auto"`` in processes, but for datasets of columns, which one
            background thread gathers faster than any process could.
        worker_restarts: how many workers that die may be replaced in an epoch before it is an
            error. Their tasks are run again, and make the same batches.
        rng: ``"task"`` seeds torch, NumPy and ``random`` for each batch from (base seed, epoch,
            step), so that batches do not depend on the number of workers; ``"torch"`` leaves them
            as torch does, one stream for each worker.
        seed: what orders and random numbers follow from, instead of ``generator``; the epochs
            count up by themselves.
        shard: ``"auto"``, or ``(rank, world_size)``: this process loads its part of one global
            order, ``batch_size`` samples of every ``world_size * batch_size``. No sampler and no
            ``set_epoch`` is needed.
        uneven: what ranks do when they do not divide the samples. ``"exact"`` gives every sample
            once over all ranks, ``"pad"`` repeats some, ``"drop"`` leaves some out.
        batch_transform: a function of the collated batch, run where the batch is made, on random
            numbers of its own: another augmentation for each batch.
        device: where batches should arrive ("cuda", "cuda:1"): each is copied there on a stream
            of its own while the loop works on the one before. None leaves them on the CPU.
        prefetch_bytes: bound on the bytes of batches that are made before they are asked for, kept
            to within one batch (the largest so far is what one in the making counts for).
        on_error: ``"skip"`` leaves samples that raise out of their batch, which is then shorter; a
            batch that loses all is left out. ``statistics()`` lists them, and a warning at the end
            of the epoch says how many. ``"raise"`` lets the exception through.
        max_errors: how many samples an epoch may skip before it is an error; None for any number.

    Raises:
        ValueError: for options that cannot be, at construction, as torch does.
    """

    @suggests_names
    @takes_up
    def __init__(  # noqa: PLR0917 - torch's order of arguments
        self,
        dataset: torch_data.Dataset[_T_co],
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Any = None,
        batch_sampler: Any = None,
        num_workers: int | Literal["auto"] = 0,
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
        backend: Literal["auto", "process", "thread", "inline"] = "auto",
        worker_restarts: int = 3,
        rng: Literal["task", "torch"] = "task",
        seed: int | None = None,
        shard: ShardOption = None,
        uneven: Uneven = "exact",
        batch_transform: Callable[[Any], Any] | None = None,
        device: str | int | torch.device | None = None,
        prefetch_bytes: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        max_errors: int | None = None,
    ) -> None:
        dataset = as_dataset(dataset)
        measure = num_workers == "auto"
        workers: Any = 1 if measure else workers_of(num_workers)  # 1: with the options of workers
        self.backend: str = backend  # for check_worker_number_rationality(), which torch calls
        try:
            super().__init__(
                dataset,
                batch_size,
                shuffle,
                sampler,
                batch_sampler,
                workers,
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
            raise explained(error, dataset, batch_size) from None
        except TypeError as error:
            if "has no len()" in str(error) and sampler is None and batch_sampler is None:
                check_indexable(dataset)
            check_given(locals())
            raise
        check_given(locals())
        check_backend(backend, workers)
        self.rng = one_of("rng", rng, ("task", "torch"))
        self.worker_restarts = count_of("worker_restarts", worker_restarts)
        target_device(device)  # raises where there is none
        check_arrays(collate_fn, device)
        self._device = device
        self.prefetch_bytes = bytes_of("prefetch_bytes", prefetch_bytes)
        self.on_error = one_of("on_error", on_error, ("raise", "skip"))
        self.max_errors = max_errors_of(max_errors, on_error)
        if measure:
            self.num_workers = 0
        self._auto = self._to_measure = measure
        if backend == "thread" and workers > 1 and isinstance(dataset, IterableDataset):
            check_threads(dataset)
        if type(self.sampler) is TorchRandomSampler and sampler is None:
            self._shuffle_otherwise(self.sampler)
        self.seed = seed_of(seed)
        self.shard = shard
        self.uneven = one_of("uneven", uneven, ("exact", "pad", "drop"))
        self.batch_transform = batch_transform
        check_shard(self)
        check_sampler(sampler, batch_size)
        options = {n: getattr(self, n) for n in _OWN if getattr(self, n) != _OWN[n]}
        if measure:
            options["num_workers"] = "auto"
        if options:
            self.collate_fn = Carrier(self.collate_fn, options)
        self._session = Session()

    def _shuffle_otherwise(self, sampler: TorchRandomSampler) -> None:
        """Order the samples as the dataset wants it; more than 2^24 by arithmetic, not a list."""
        own: Any = shuffle_of(sampler.data_source, sampler.generator)
        if own is None and uses_bijection(len(sampler.data_source)):
            own = RandomSampler(sampler.data_source, generator=sampler.generator)
        if own is None:
            return
        self.__dict__["sampler"] = own
        if self.batch_sampler is not None:
            self.batch_sampler.sampler = own  # type: ignore[attr-defined]

    def statistics(self) -> Statistics:
        """Return what this loader has done so far: batches, samples, bytes, seconds waited."""
        return self._session.totals.snapshot()

    def last_indices(self) -> list[Any] | None:
        """Return the dataset indices of the batch that the present iterator handed out last.

        None before the first batch, for iterable datasets, and when the iterator is gone.
        """
        return self._session.last_indices()

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader stands, as JSON values.

        It covers the batches that were handed out, not those prefetched. Taken inside the loop it
        resumes behind the present batch; taken after the loop, at a full next epoch. For map-style
        datasets it does not depend on the backend or the number of workers.

        Besides the position it holds the generator that orders are drawn from (the loader's own,
        or torch's default one), as it stood at the beginning of the epoch and now.
        """
        if self.rng == "torch":
            warn_inexact(self)
        return self._session.state(shape_of(self), self._generators())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a state was taken: at the next ``iter()``, in this or another process.

        The generator is put back as it stood when the state was taken, torch's default one too if
        the loader draws from that. For map-style datasets no data is read to get there.

        Raises:
            StateError: the state is not ours, newer, damaged, or of another dataset, batch size or
                kind of order; for iterable datasets also of another number of workers.
        """
        self._session.load(state_dict, shape_of(self), self._generators())
        if (persistent := self._iterator) is not None:
            persistent._shutdown_workers()  # type: ignore[attr-defined]
            self.__dict__["_iterator"] = None

    def _generators(self) -> list[Any]:
        return generators_of(self._index_sampler, self.generator, self.seed)

    def __len__(self) -> int:
        """Return the number of batches of an epoch, for this rank if the loader is sharded."""
        shard = shard_now(self)
        if shard is None:
            return super().__len__()
        if is_planned(self._index_sampler):
            return len(index_sampler_of(self))
        return shard.rank_steps(len(self.sampler))  # type: ignore[arg-type]

    def __iter__(self) -> Any:
        """Return the iterator of an epoch."""
        kept: Any = self._iterator
        if isinstance(kept, LoaderIterator) and not kept.can_go_on():
            self.__dict__["_iterator"] = None  # its workers were ended, or this is a fork
        return super().__iter__()

    def check_worker_number_rationality(self) -> None:
        """Warn of more processes than cores. Threads may be many: they are for waiting."""
        if uses_processes(self):
            super().check_worker_number_rationality()

    def _get_iterator(self) -> Any:
        check_orderable(self.dataset, order_sampler(self._index_sampler))
        if isinstance(self.dataset, _DATAPIPES) or (uses_processes(self) and not AVAILABLE):
            self._check_left_to_torch()
            self._session.totals.counters_of(self).path = "torch"
            return super()._get_iterator()
        if self._to_measure:
            self._choose_workers()
        if uses_processes(self):
            self.check_worker_number_rationality()
        elif self.timeout and not self.num_workers and not self._auto:
            raise AssertionError(
                f"timeout={self.timeout} needs workers to wait for. Write DataLoader(..., "
                f"num_workers=1, timeout={self.timeout}), or leave it out."
            )
        if not self._session.pool.is_mine():
            self._session = Session(self._session)  # what is there was inherited by a fork
        return LoaderIterator(self)

    def _choose_workers(self) -> None:
        """Settle ``num_workers="auto"``, once."""
        self._to_measure = False
        length = None if isinstance(self.dataset, IterableDataset) else length_of(self)
        size = batch_size_of(self.batch_sampler) if self.batch_sampler is not None else None
        trial = partial(trial_batches, self.dataset, size or 32 if self._auto_collation else None)
        choice = choose(
            options_of(self).recipe,
            trial,
            length,
            self.backend,
            self.worker_init_fn,
            forked=is_forked(self.multiprocessing_context),
        )
        self.backend, self.num_workers = choice.backend, choice.num_workers
        self._session.totals.why = choice.why

    def _check_left_to_torch(self) -> None:
        """Refuse what torch's own iterator would pass over in silence."""
        wanted = ["device", "prefetch_bytes", "batch_transform", "seed", "shard", "max_errors"]
        given = [name for name in wanted if getattr(self, name) is not None]
        given += ["on_error"] if self.on_error == "skip" else []
        if given:
            what = "A datapipe" if isinstance(self.dataset, _DATAPIPES) else "Worker processes here"
            raise OptionError(
                f"{what} can only be iterated by torch's own loader, which knows no {given[0]}=. "
                f"Leave it out, or write num_workers=0 and a Dataset or an IterableDataset."
            )

    @property
    def device(self) -> str | int | torch.device | None:
        """Where batches arrive. Fixed: the memory that is lent to batches is locked for it."""
        return self._device

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_session", "_iterator")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _iterator=None, _session=Session())

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Give a loader that torch's constructor made what ours would have given it.

            One that was made, or pickled, before headrace was installed in torch's place.
            """
            if name == "_session":
                self.__dict__[name] = Session()
                return self.__dict__[name]
            if name in _DEFAULTS:
                return _DEFAULTS[name]
            if name == "_is_accelerate_prepared" and not LoaderType.in_place:
                # accelerate asks for it before it builds a loader anew from the parts of this one.
                warn_of_lost(getattr(self.collate_fn, "options", {}))
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


_DATAPIPES = (torch_data.IterDataPipe, torch_data.MapDataPipe)

_OF_TORCH = inspect.signature(STOCK).parameters
_OWN = {
    name: parameter.default
    for name, parameter in inspect.signature(DataLoader.__init__).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and name not in _OF_TORCH
}
# Of loaders that our constructor has not seen.
_DEFAULTS = {**_OWN, "_device": None, "_auto": False, "_to_measure": False}
