"""One epoch of a loader, as its user iterates over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, NoReturn, TypeVar

from torch.autograd import profiler
from torch.utils.data import IterableDataset
from torch.utils.data._utils.pin_memory import pin_memory as pin

from headrace.checks import warn_of_no_batch
from headrace.engine.ahead import Transfer, pin_device, target_device
from headrace.engine.doubt import BOOKS, SETTLED
from headrace.notices import warn_user
from headrace.sampling.planned import is_planned
from headrace.wiring import index_sampler_of, options_of, shard_now

_T_co = TypeVar("_T_co", covariant=True)

# What torch's profiler shows loading as, and what people look for.
_PROFILER_LABEL = "enumerate(DataLoader)#LoaderIterator.__next__"


class LoaderIterator(Generic[_T_co]):
    """One epoch of a loader, or with persistent workers one epoch after the other."""

    def __init__(self, loader: Any) -> None:
        self._sampler = index_sampler_of(loader)
        self._shard = shard_now(loader)
        self._device = target_device(loader.device)
        pinned = loader.pin_memory and self._device is None  # else they are there already
        self._pin_for = pin_device(pinned, loader.pin_memory_device)
        self._engine = loader._session.begin(self, options_of(loader))
        try:
            self._workers = self._engine.workers
            self._begin(loader)
        except BaseException:
            self._engine.close()
            raise

    def _reset(self, loader: Any) -> None:
        """Begin another epoch with the same workers: what torch calls for persistent ones."""
        self._counters.doubt = BOOKS  # the old epoch is over
        loader._session.next_epoch(self, self._engine)
        self._begin(loader)

    def can_go_on(self) -> bool:
        """Say whether there are workers for another epoch, or none are needed."""
        possible: bool = self._engine.can_go_on()
        return possible

    def _begin(self, loader: Any) -> None:
        self._batches = self._engine.batches
        if self._device is not None:
            engine = self._engine
            self._batches = Transfer(
                engine.batches, self._device, engine.peek, counters=engine.counters
            )
        self._promised = _promised_length(loader)
        # Nothing to do after each batch: hand the inner iterator's batches straight out.
        plain = self._pin_for is None and self._promised is None
        self._finish: Callable[[Any], Any] | None = None if plain else self._pin_and_count
        self._counters = self._engine.counters
        loader._session.begun()
        self._counters.doubt = SETTLED

    def __iter__(self) -> Iterator[_T_co]:
        return self

    def __next__(self) -> Any:
        """Return the next batch."""
        counters = self._counters
        if counters.doubt:
            self._engine.go_on()
        counters.doubt = BOOKS  # see headrace.engine.doubt
        try:
            if profiler._is_profiler_enabled:
                with profiler.record_function(_PROFILER_LABEL):
                    batch = next(self._batches)
            else:
                batch = next(self._batches)
            if self._finish is not None:
                batch = self._finish(batch)
            counters.doubt = SETTLED
        except StopIteration:
            counters.doubt = SETTLED
            gave_nothing = self._engine.gave_nothing
            self._engine.end_epoch()
            if gave_nothing:
                warn_of_no_batch(self._sampler)
            raise
        except BaseException:
            counters.interrupted = counters.doubt == BOOKS
            raise
        return batch

    @property
    def _num_yielded(self) -> int:
        """Return the batches of this epoch so far, under the name that torch's iterators have."""
        position: int = self._engine.position
        return position

    def _shutdown_workers(self) -> None:
        """End the workers, as other libraries ask torch's iterators to."""
        self._engine.close()

    def __len__(self) -> int:
        if self._shard is not None and not is_planned(self._sampler):
            steps: int = self._shard.rank_steps(len(self._sampler.sampler))
            return steps
        return len(self._sampler)

    def __getstate__(self) -> NoReturn:
        raise NotImplementedError(
            "an iterator of a DataLoader cannot be pickled or copied. Pickle the loader, and call "
            "iter() on the copy."
        )

    def _pin_and_count(self, batch: Any) -> Any:
        try:
            return self._pinned_and_counted(batch)
        except Exception:  # takes the place of its batch
            self._counters.doubt = SETTLED
            raise

    def _pinned_and_counted(self, batch: Any) -> Any:
        if self._promised is not None and self._num_yielded > self._promised[1]:
            dataset, length = self._promised
            warn_user(
                f"Length of IterableDataset {dataset} was reported to be {length}"
                f"(when accessing len(dataloader)), but {self._num_yielded} samples have been "
                f"fetched. ",
            )
        return batch if self._pin_for is None else pin(batch, self._pin_for)  # type: ignore[no-untyped-call]


def _promised_length(loader: Any) -> tuple[Any, int] | None:
    """Return an iterable dataset and the length it gave when the loader's was asked for."""
    length = loader._IterableDataset_len_called
    if length is None or not isinstance(loader.dataset, IterableDataset):
        return None
    return loader.dataset, length
