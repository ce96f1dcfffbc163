"""What belongs to one loader object in one process: memory, counters, and where it stands.

A copy of a loader, pickled or forked, begins with a new one.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from typing import Any

from headrace.engine.epoch.engine import Engine
from headrace.engine.epoch.options import Options
from headrace.engine.epoch.same_stream import SameStream
from headrace.engine.lease import Pool
from headrace.engine.order.epochs import EpochCount
from headrace.engine.order.facts import set_epoch
from headrace.engine.order.fit import check
from headrace.engine.order.foreign import Generator
from headrace.engine.order.packing import decode
from headrace.engine.order.state import FINISHED, FRESH, Progress, Shape, describe
from headrace.engine.shared import Home
from headrace.engine.stats import Counters, Totals
from headrace.errors import StateError


class Session:
    """Begins epochs, and takes and gives the state between them.

    ``inherited`` is the session of the process that this one was forked from: its memory and
    counters stay behind, what was loaded and not begun goes on here.
    """

    def __init__(self, inherited: Session | None = None) -> None:
        self.pool = Pool()
        self.home = Home()
        self.same_stream = SameStream()
        self.totals = Totals()
        self._progress: Progress | None = None
        self._counters = Counters()
        self.kept_global_batch: int | None = None  # of a state that other ranks saved
        self._engine: weakref.ref[Engine] | None = None  # workers end with their iterator
        self._round = 0  # epochs begun, over all restarts
        self._loaded: dict[str, Any] | None = None
        self._epochs = EpochCount()
        self.warned_inexact = False
        self.rank_sampler: tuple[Any, ...] | None = None  # a planned order's part, as it was made
        self._before: tuple[Any, ...] | None = None  # an epoch that is beginning, and may not
        if inherited is not None:
            self.kept_global_batch = inherited.kept_global_batch
            self._round, self._loaded = inherited._round, inherited._loaded
            self._epochs = inherited._epochs

    def begin(self, iterator: object, options: Options) -> Engine:
        """Return the engine of a new iterator, at the place of a loaded state if there is one."""
        self._beginning()
        saved = self._loaded
        if saved is not None:
            self._round = saved["round"] + (saved["status"] == FINISHED)
            for generator, text in zip(options.generators, saved["generators"], strict=True):
                generator.set_state(decode(text))
            if saved["status"] != FRESH:
                finished = saved["status"] == FINISHED
                self._epochs.resume(saved["sampler_epoch"], finished, options.index_sampler)
        else:
            self._epochs.next(options.index_sampler)
        counters = self.totals.counters_of(iterator)
        engine = Engine(
            options,
            self.pool,
            self.home,
            self.same_stream,
            counters,
            round_number=self._round,
            saved=saved,
        )
        self._began(engine, counters)
        return engine

    def next_epoch(self, iterator: object, engine: Engine) -> None:
        """Begin another epoch with the workers of an engine."""
        self._beginning()
        self._epochs.next(engine.index_sampler)
        counters = self.totals.counters_of(iterator)
        engine.next_epoch(counters, self._round)
        self._began(engine, counters)

    def _began(self, engine: Engine, counters: Counters) -> None:
        # The loader's state is that of its latest iterator, also when that is gone.
        self._progress, self._counters, self._loaded = engine.progress, counters, None
        self._engine = weakref.ref(engine)
        self._round += 1

    def _beginning(self) -> None:
        self._forget_interrupted()
        self._before = self._progress, self._counters, self._loaded, self._engine, self._round

    def begun(self) -> None:
        """Note that the epoch has begun: its iterator is there."""
        self._before = None

    def _forget_interrupted(self) -> None:
        """Go back before an epoch whose beginning was interrupted: a loaded state is still due."""
        if self._before is not None:
            progress, counters, self._loaded, self._engine, self._round = self._before
            self._progress, self._counters = progress, counters
            self._before = None

    def last_indices(self) -> list[Any] | None:
        """Return the dataset indices of the batch handed out last, where they are known."""
        engine = None if self._engine is None else self._engine()
        return None if engine is None else engine.last_indices()

    def state(self, shape: Shape, generators: Sequence[Generator]) -> dict[str, Any]:
        """Return where the loader stands.

        Raises:
            StateError: a step was interrupted, and may be lost.
        """
        self._forget_interrupted()
        if self._loaded is not None:
            return copy.deepcopy(self._loaded)
        if self._counters.interrupted:
            raise StateError(
                "the loader was interrupted in the middle of a step: whether its batch was handed "
                "out cannot be told. Use the state that was taken before, or call iter(loader)."
            )
        progress = self._progress
        position = 0
        if progress is not None:
            position = progress.steps + self._counters.position
            if progress.prefix is not None:
                position = progress.prefix
        skipped = self._counters.skipped_in_epoch
        return describe(shape, progress, position, generators, skipped)

    def load(self, state: Any, shape: Shape, generators: Sequence[Generator]) -> None:
        """Keep a state for the next epoch to begin with.

        Raises:
            StateError: it does not fit; nothing has changed then.
        """
        self._forget_interrupted()
        self._loaded, kept = check(state, shape, generators)
        set_epoch(self._loaded["sampler_epoch"], shape.index_sampler)
        if kept is not None:
            self.kept_global_batch = kept
