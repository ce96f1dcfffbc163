"""From a task to a batch: the only place that calls datasets and collate functions.

Every backend uses it, in whichever process it runs.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Iterator, Sized
from contextlib import contextmanager
from itertools import islice, repeat
from operator import length_hint
from types import GeneratorType
from typing import Any

from torch.utils.data import default_collate as torch_default_collate

from headrace import traffic
from headrace.collate.stack import default_collate
from headrace.engine.lease import Pool
from headrace.engine.making.gather import BlockGather
from headrace.engine.making.recipe import Recipe, listed
from headrace.engine.making.skip import odd_one, skipped
from headrace.engine.making.weight import Scale
from headrace.engine.order.streams import knows_its_place
from headrace.engine.stats import Counters
from headrace.engine.task import Done, Exhausted, Failed, Result, SkippedSample, Task
from headrace.errors import CollateError, DatasetStoppedError
from headrace.memory import current, lending
from headrace.rng import NO_TASK, Seeding, begin_generators, end_task, here

_MOST_IN_A_ROW = 10_000  # an iterator that raises for ever


class Fetcher:
    """Makes batches of one dataset, one epoch long."""

    def __init__(
        self,
        recipe: Recipe,
        pool: Pool,
        seeding: Seeding | None,
        worker: int = 0,
    ) -> None:
        self._recipe = recipe
        self._collate = (
            default_collate if recipe.collate is torch_default_collate else recipe.collate
        )
        self._pool = pool
        self._seeding = seeding
        self._worker = worker
        self._iterator: Iterator[Any] | None = None
        self._ended = False
        self._speaks: dict[str, Any] = {}  # of a stream: those that can say where they stand
        self._before: tuple[Any, Any, Any] | None = None  # what stood before the task that runs
        self._gather: BlockGather | None = None
        self.skipped: list[SkippedSample] = []
        self.state: dict[str, Any] | None = None
        self.weigh = Scale(recipe.weigh_all)
        self._made_of: Callable[[Any], tuple[Any, int] | None] = (
            self._next_batch if recipe.iterable else self._indexed
        )
        self._many = getattr(recipe.dataset, "__getitems__", None)
        if recipe.auto_collation and not recipe.iterable and not recipe.skip and not self._many:
            self._made_of = self._plain

    def start(self, seed: int, state: Any = None) -> None:
        """Begin an epoch: ``iter(dataset)`` for an iterable one, under a task's generators.

        ``state`` is what the dataset, or its iterator, said of itself behind an earlier batch.
        """
        if not self._recipe.iterable:
            gatherer = self._recipe.gatherer()
            if gatherer is not None:
                self._gather = BlockGather(
                    gatherer, self._pool, Counters(), arrays=self._recipe.makes_arrays
                )
                self._made_of = self._indexed
            return
        state = state or {}
        # At its end a dataset's state may be that of its beginning: it is not asked again.
        self._ended = state.get("ended", False)
        if state.get("begins"):
            self._begin_again(seed, state["dataset"])
            state = {}
        dataset = self._recipe.dataset
        with self._around_user_code(seed):
            _load(dataset, state.get("dataset"))
            self._iterator = iter(dataset)
            _load(self._iterator, state.get("iterator"))
        # A dataset that is its own iterator speaks as the iterator.
        streams = {"dataset": dataset, "iterator": self._iterator}
        if dataset is self._iterator:
            del streams["dataset"]
        self._speaks = {name: one for name, one in streams.items() if knows_its_place(one)}

    def _begin_again(self, seed: int, state: Any) -> None:
        """Put the dataset back to where it stood before ``iter()``."""
        dataset = self._recipe.dataset
        with self._around_user_code(seed):
            try:
                _load(dataset, state)
            except Exception:
                if not hasattr(dataset, "__next__"):
                    raise
                iter(dataset)  # its own iterator: it has a place to put back only from then on
                _load(dataset, state)

    def __call__(self, task: Task) -> Result:
        """Make the batch of ``task``; what user code raises comes back as :class:`Failed`."""
        started = time.perf_counter()
        try:
            made = self.make(task.indices, task.seed)
        except Exception as error:
            return Failed(task.step, error)
        if made is None:
            return Exhausted(task.step, self._worker, self.state)
        batch, samples = made
        took = time.perf_counter() - started
        weight = self.weigh(batch, samples)
        left_out, read = tuple(self.skipped), traffic.take()
        return Done(task.step, batch, samples, weight, took, self.state, left_out, read)

    def make(self, indices: Any, seed: int) -> tuple[Any, int] | None:
        """Return the batch of a task and its samples, None at the end of an iterable dataset.

        What was left out of it is in ``skipped``, where the dataset stands in ``state``. Raises
        what user code raises.
        """
        if self.skipped:
            self.skipped.clear()
        try:
            self._enter(seed)
            made = self._made_of(indices)
            if self._recipe.transform is not None and made is not None and made[1]:
                made = self._recipe.transformed(made[0]), made[1]
            if self._speaks:
                self.state = self._state()
        except StopIteration as error:
            raise self._stopped(error) from error
        finally:
            self.put_back()
        return made

    def _enter(self, seed: int) -> None:
        """Lend memory and seed generators for a task; what was before is noted first."""
        seeding = self._seeding
        generators = None if seeding is None else seeding.save()
        task = here.seed, here.generators
        self._before = current.lender, task, generators
        current.lender = self._pool
        here.seed = seed
        if task != NO_TASK:
            begin_generators(task)
        if seeding is not None:
            seeding.begin(seed)

    def put_back(self) -> None:
        """Undo what a task has begun; to do it again changes nothing."""
        before = self._before
        if before is None:
            return
        lender, task, generators = before
        if self._seeding is not None:
            self._seeding.end(generators)
        end_task(task)
        current.lender = lender
        self._before = None

    @contextmanager
    def _around_user_code(self, seed: int) -> Iterator[None]:
        try:
            self._enter(seed)
            yield
        finally:
            self.put_back()

    def _state(self) -> dict[str, Any] | None:
        """Return where an iterable dataset stands, if it can say so."""
        said = {name: copy.deepcopy(one.state_dict()) for name, one in self._speaks.items()}
        if all(one is None for one in said.values()):
            return None
        return {"ended": self._ended, "dataset": None, "iterator": None, **said}

    def batch_of(self, indices: Any) -> Any:
        """Make the batch of a list of indices, outside any task: no user code may be in it."""
        with lending(self._pool):
            return self._indexed(indices)[0]

    def _indexed(self, indices: Any) -> tuple[Any, int]:
        if not self._recipe.auto_collation:
            return self._unbatched(indices)
        if not isinstance(indices, Sized):
            indices = listed(indices)  # a generator of the batch sampler's: it can be walked once
        if self._gather is not None:
            return self._gather.due(indices, self._one_by_one), len(indices)
        if self._recipe.skip:
            return self._good_ones(list(indices))
        return self._one_by_one(indices), len(indices)

    def _plain(self, indices: Any) -> tuple[Any, int]:
        """Make a batch of a dataset's samples: what most programs do, for each of their batches."""
        if type(indices) is not list:
            return self._indexed(indices)
        return self._collated(self._each(indices), indices), len(indices)

    def _one_by_one(self, indices: Any) -> Any:
        return self._collated(self._samples(indices), indices)

    def _unbatched(self, index: Any) -> tuple[Any, int]:
        try:
            sample = self._sample(index)
        except Exception as error:
            if not self._recipe.skip:
                raise
            self.skipped.append(skipped(index, error))
            return None, 0
        return self._collated(sample, None), 1

    def _good_ones(self, indices: list[Any]) -> tuple[Any, int]:
        """Make the batch of those samples that neither raise nor fail to fit the others."""
        if not self._many:
            return self._those_that_fit(*self._those_that_do_not_raise(indices))
        try:
            samples = self._samples(indices)
        except Exception:  # which of them: asked for one by one
            samples, indices = self._those_that_do_not_raise(indices)
        return self._those_that_fit(samples, indices)

    def _those_that_fit(self, samples: Any, indices: list[Any] | None) -> tuple[Any, int]:
        """Collate, without what the default collation cannot put beside the others."""
        while len(samples):
            try:
                return self._collated(samples, indices), len(samples)
            except Exception as error:
                samples = list(samples)
                odd = odd_one(error, samples, self._collate) if self._blames_samples else None
                if odd is None or (indices is not None and len(samples) != len(indices)):
                    raise
                index = None if indices is None else indices.pop(odd)
                if isinstance(error, CollateError):
                    error.indices = () if indices is None else (index,)
                self.skipped.append(skipped(index, error))
                del samples[odd]
        return None, 0

    @property
    def _blames_samples(self) -> bool:
        # The default one fails because of samples; a user's may fail for any reason.
        return self._collate is default_collate

    def _those_that_do_not_raise(self, indices: list[Any]) -> tuple[list[Any], list[Any]]:
        samples, good = [], []
        for index in indices:
            try:
                samples.append(self._samples([index])[0])
            except Exception as error:
                self.skipped.append(skipped(index, error))
            else:
                good.append(index)
        return samples, good

    def _stopped(self, error: StopIteration) -> DatasetStoppedError:
        stopped = DatasetStoppedError(
            f"{type(self._recipe.dataset).__name__} or the collate function raised StopIteration, "
            f"which would end the epoch in silence. Raise IndexError for an index that does not "
            f"exist."
        )
        for note in getattr(error, "__notes__", ()):
            stopped.add_note(note)
        return stopped

    def _sample(self, index: Any) -> Any:
        try:
            return self._recipe.dataset[index]
        except Exception as error:
            _add_note(error, f"while fetching dataset index {index!r}")
            raise

    def _samples(self, indices: Collection[Any]) -> Any:
        if not self._many:
            return self._each(list(indices))
        try:
            return self._many(indices)
        except Exception as error:
            _add_note(error, f"while fetching dataset indices {_shorten(indices)}")
            raise

    def _each(self, indices: list[Any]) -> list[Any]:
        dataset, left = self._recipe.dataset, iter(indices)
        try:
            return [dataset[index] for index in left]
        except Exception as error:
            index = indices[len(indices) - length_hint(left) - 1]
            _add_note(error, f"while fetching dataset index {index!r}")
            raise

    def _collated(self, samples: Any, indices: Collection[Any] | None) -> Any:
        try:
            return self._collate(samples)
        except CollateError as error:
            if indices is not None and all(p < len(indices) for p in error.positions):
                places = list(indices)
                error.indices = tuple(places[p] for p in error.positions)
            raise
        except Exception as error:
            if indices is not None:
                _add_note(error, f"while collating dataset indices {_shorten(indices)}")
            raise

    def _next_batch(self, _indices: None = None) -> tuple[Any, int] | None:
        """Return the next batch of an iterable dataset, None at its end."""
        if self._ended:
            return None
        size = self._recipe.batch_size
        if size is None:
            return self._next_sample()
        samples = self._next_samples(size)
        if not samples or (self._ended and self._recipe.drop_last):
            return (None, 0) if self.skipped else None
        if self._recipe.skip:
            return self._those_that_fit(samples, None)
        return self._collated(samples, None), len(samples)

    def _next_sample(self) -> tuple[Any, int] | None:
        """Return the next sample as a batch of its own: ``batch_size=None``."""
        samples = self._next_samples(1)
        if samples:
            return self._collated(samples[0], None), 1
        return (None, 0) if self.skipped else None

    def _next_samples(self, size: int) -> list[Any]:
        """Return so many samples of the stream, fewer at its end."""
        assert self._iterator is not None
        samples: list[Any] = []
        while True:
            try:  # next(), not for: an iterator without __iter__ is enough for torch
                samples += map(next, repeat(self._iterator, size - len(samples)))
            except Exception as error:
                self._skip_or_raise(error)
                continue
            self._ended = len(samples) < size  # a StopIteration of next() ends the map
            return samples

    def _skip_or_raise(self, error: Exception) -> None:
        """Leave out what an iterable dataset could not give, if it can go on behind it."""
        if not self._recipe.skip:
            raise error
        if isinstance(self._iterator, GeneratorType):
            _add_note(error, "on_error='skip' cannot go on: a generator ends when it raises")
            raise error
        if len(self.skipped) >= _MOST_IN_A_ROW:
            _add_note(error, f"on_error='skip' gave up after {_MOST_IN_A_ROW} errors in one batch")
            raise error
        self.skipped.append(skipped(None, error))


def _load(stream: Any, state: Any) -> None:
    if state is not None and knows_its_place(stream):
        stream.load_state_dict(state)


def _shorten(indices: Collection[Any]) -> str:
    shown = ", ".join(map(repr, islice(indices, 8)))
    return f"[{shown}, ... {len(indices)} in all]" if len(indices) > 8 else f"[{shown}]"


def _add_note(error: Exception, note: str) -> None:
    error.add_note(f"headrace: {note}")
