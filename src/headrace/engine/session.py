"""What belongs to one loader object in one process: memory, counters, and where it stands.

A copy of a loader, pickled or forked, begins with a new one.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from headrace.engine.lease import Pool
from headrace.engine.plan import Engine, Options
from headrace.engine.shared import Home
from headrace.engine.state import (
    FINISHED,
    FRESH,
    RUNNING,
    Progress,
    Shape,
    check,
    decode,
    describe,
)
from headrace.engine.stats import Counters, Totals
from headrace.sampling.ranks import rank_batch_size


class Session:
    """Begins epochs, and takes and gives the state between them."""

    def __init__(self) -> None:
        self.pool = Pool()
        self.home = Home()
        self.totals = Totals()
        self.kept_global_batch: int | None = None  # of a state that other ranks saved
        self._round = 0  # epochs begun, over all restarts
        self._progress: Progress | None = None
        self._counters = Counters()
        self._loaded: dict[str, Any] | None = None

    def begin(self, iterator: object, options: Options) -> Engine:
        """Return the engine of a new iterator, at the place of a loaded state if there is one."""
        generator = options.generator or torch.default_generator
        saved, self._loaded = self._loaded, None
        if saved is not None and saved["status"] == FRESH:
            generator.set_state(decode(saved["generator"]))
            saved = None
        if saved is not None:
            self._round = saved["round"] + (saved["status"] == FINISHED)
        counters = self.totals.counters_of(iterator)
        engine = Engine(
            options, self.pool, self.home, counters, round_number=self._round, saved=saved
        )
        self._began(engine, counters)
        return engine

    def next_epoch(self, iterator: object, engine: Engine) -> None:
        """Begin another epoch with the workers of an engine."""
        counters = self.totals.counters_of(iterator)
        engine.next_epoch(counters, self._round)
        self._began(engine, counters)

    def _began(self, engine: Engine, counters: Counters) -> None:
        # The loader's state is that of its latest iterator, also when that is gone.
        self._progress, self._counters = engine.progress, counters
        self._round += 1

    def state(
        self, shape: Shape, generator: torch.Generator | None, order_length: int | None
    ) -> dict[str, Any]:
        """Return where the loader stands."""
        if self._loaded is not None:
            return copy.deepcopy(self._loaded)
        now = (generator or torch.default_generator).get_state()
        progress = self._progress
        position = 0 if progress is None else progress.steps + self._counters.position
        return describe(shape, progress, position, order_length, now)

    def keep_global_batch(self, state: Any, world_size: int) -> None:
        """Take over the global batch of a state that another number of ranks saved.

        Raises:
            StateError: ``world_size`` does not divide it.
        """
        saved = state.get("global_batch") if isinstance(state, dict) else None
        if isinstance(saved, int) and saved > 0 and state.get("status") == RUNNING:
            rank_batch_size(saved, world_size)
            self.kept_global_batch = saved

    def load(self, state: Any, shape: Shape) -> None:
        """Keep a state for the next epoch to begin with.

        Raises:
            StateError: it does not fit.
        """
        self._loaded = check(state, shape)
