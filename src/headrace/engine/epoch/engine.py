"""The epochs of a loader: what is drawn from generators, and where a saved state goes on.

What is drawn, and when, is what torch draws: first the sampler is asked for its iterator, then the
base seed is drawn (once, for workers that persist), and orders are drawn when the first batch is
asked for, or when workers are given their first tasks.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any
from zlib import crc32

import torch

from headrace.engine.doubt import BOOKS, REFUSAL
from headrace.engine.epoch.options import Options
from headrace.engine.epoch.plan import Plan
from headrace.engine.epoch.same_stream import SameStream
from headrace.engine.lease import Pool
from headrace.engine.making.skip import warn_of_skipped
from headrace.engine.order.alike import likeness_of, order_checksum
from headrace.engine.order.order import Order
from headrace.engine.order.packing import decode, set_others
from headrace.engine.order.ranks import agree, seeds_of
from headrace.engine.order.samplers import load_at_end, load_sampler, stateful, with_seed
from headrace.engine.order.state import FINISHED, FRESH, RUNNING, SKIPPED, Progress
from headrace.engine.order.streams import next_streams
from headrace.engine.shared import Home
from headrace.engine.stats import Counters
from headrace.errors import StateError


class Engine:
    """Makes the batches of a loader, one epoch after the other.

    ``batches`` are those of the present epoch.
    """

    def __init__(
        self,
        options: Options,
        pool: Pool,
        home: Home,
        same_stream: SameStream,
        counters: Counters,
        *,
        round_number: int = 0,
        saved: dict[str, Any] | None = None,
    ) -> None:
        self._options = options
        self._counters = counters
        self._begun = False
        self._generators = options.generators
        self.progress = self._new_progress(0, round_number)
        self._plan = Plan(options, pool, home, same_stream, self.progress)
        try:
            self._begin_first(saved)
        except BaseException:
            self.close()
            raise

    def _begin_first(self, saved: dict[str, Any] | None) -> None:
        options = self._options
        workers = max(1, options.num_workers) if options.in_workers else 1
        if saved is not None and saved["status"] != RUNNING and options.recipe.iterable:
            self.progress.restore_streams(saved["streams"], workers)
        if saved is not None and saved["status"] == FRESH:
            saved = None
        if saved is not None and saved["status"] == RUNNING:
            self.batches = self._resume(saved)
        elif saved is not None and saved["status"] == FINISHED and options.persistent:
            self.progress.base_seed = saved["base_seed"]
            self.progress.epoch = self._count(saved["epoch"])
            self.batches = self._begin(self._order(saved=saved))
        else:
            self.batches = self._begin(self._order(first=True, saved=saved))

    def _new_progress(self, base_seed: int, round_number: int, epoch: int = 0) -> Progress:
        states = [generator.get_state() for generator in self._generators]
        return Progress(states, base_seed, epoch, round_number)

    def _count(self, epoch: int) -> int:
        """Return the number of the next epoch since the base seed was drawn: seed= draws each."""
        return epoch + 1 if self._options.seed is None else 0

    @property
    def index_sampler(self) -> Any:
        """Return what the order of an epoch is asked of."""
        return self._options.index_sampler

    @property
    def workers(self) -> list[Any]:
        """Return the processes or threads that make the batches, if there are any."""
        return self._plan.workers

    @property
    def position(self) -> int:
        """Return the steps of this epoch that have left, through this engine."""
        return self._counters.position

    @property
    def gave_nothing(self) -> bool:
        """Whether no step of this epoch has left, before a state was taken either."""
        counters = self._counters
        return not (counters.position or counters.skipped or self.progress.steps)

    @property
    def counters(self) -> Counters:
        """Return the counters of this epoch."""
        return self._counters

    def can_go_on(self) -> bool:
        """Say whether another epoch can begin: not after the workers' end, nor in a fork.

        Nor where an interruption left the workers in doubt: they are ended.
        """
        if self._begun and not self._counters.doubt:
            return self._plan.can_go_on()
        self.close()
        return False

    def go_on(self) -> None:
        """Make a step that was interrupted whole again.

        Raises:
            RuntimeError: it may be lost.
        """
        if self._begun and self._plan.mend():
            self._counters.interrupted = False
            return
        self.close()
        self._counters.doubt = BOOKS
        raise RuntimeError(REFUSAL)

    def next_epoch(self, counters: Counters, round_number: int) -> None:
        """Begin another epoch with the workers there are."""
        self._begun = False
        self._counters = counters
        before = self.progress
        self.progress = self._new_progress(
            before.base_seed, round_number, self._count(before.epoch)
        )
        if before.streams is not None and self._options.in_workers:
            # Whoever left the loop early does not know how far the workers had gone.
            ended = before.streams if before.finished else [{"dataset": None}] * len(before.streams)
            self.progress.streams = next_streams(copy.deepcopy(ended))
        self.batches = self._begin(self._order())

    def _resume(self, saved: dict[str, Any]) -> Iterator[Any]:
        """Go on behind the steps of a state, with the generators as they stood when it was saved.

        The order is drawn again from the generators as they stood when the epoch began. A known
        sampler leaves one of its own where this epoch's orders need it; torch's default one, which
        others draw from too, and whatever a custom sampler draws from, are put back.
        """
        progress = self.progress
        progress.epoch, progress.round = saved["epoch"], saved["round"]
        progress.base_seed, progress.order_seed = saved["base_seed"], saved["order_seed"]
        progress.steps, progress.start = saved["steps"], saved["samples"] or 0
        progress.streams, progress.next_worker = saved["streams"], saved["next_worker"]
        progress.restored = True
        self._counters.skipped_before = saved.get(SKIPPED, 0)
        if saved["ahead"]:
            progress.prefix, progress.ahead = saved["steps"], set(saved["ahead"])
        progress.generators_at_start = [decode(text) for text in saved["generators_at_start"]]
        for generator, state in zip(self._generators, progress.generators_at_start, strict=True):
            generator.set_state(state)
        if saved["others_at_start"] is not None:
            set_others(saved["others_at_start"])
        order = self._order(first=saved["epoch"] == 0, saved=saved)
        progress.base_seed = saved["base_seed"]
        if order is not None:
            progress.facts = saved["order"]
        if order is not None and (saved["begun"] or saved["steps"]):
            order.go_on()
        if order is not None and saved["drawn"] and order.asked:
            self._replay_sampler(order, saved)
        if order is not None and saved["yielded"] not in (None, order.hash_behind(saved["steps"])):
            raise StateError(
                f"{self._options.order_name} gives other indices than those that came before the "
                f"state was saved: it was made from something else, or draws from a generator that "
                f"others draw from too. Make it as then, give it a generator= of its own, or "
                f"state_dict() and load_state_dict()."
            )
        known = order is not None and order.pieces is not None
        for generator, text in zip(self._generators, saved["generators"], strict=True):
            if not known or generator is torch.default_generator:
                generator.set_state(decode(text))
        return self._begin(order)

    def _replay_sampler(self, order: Order, saved: dict[str, Any]) -> None:
        """Bring a custom sampler to where it was; one that knows its place is there already."""
        if self.progress.sampler is None or "sampler_state" not in saved:
            order.replay(max(saved["drawn"], saved["steps"]), saved["steps"])
            if saved["others"] is not None:
                set_others(saved["others"])
            return
        if self._all_given(saved):
            order.end()
        else:
            order.replay(1, 0)  # for what it draws with its first batch
        order.drawn += saved["steps"]

    def _all_given(self, saved: dict[str, Any]) -> bool:
        """Whether a state was taken behind the last sample, where a sampler may have begun anew."""
        if saved["status"] == FINISHED:
            return True
        return saved["samples"] is not None and saved["samples"] == self._options.order_length()

    def _order(self, first: bool = False, saved: dict[str, Any] | None = None) -> Order | None:
        """Return the order of the epoch; ``first`` draws the base seed, as torch does."""
        options, progress = self._options, self.progress
        sampler = options.index_sampler
        progress.sampler = stateful(sampler) if options.shard is None else None
        if progress.sampler is not None and saved is not None and "sampler_state" in saved:
            progress.sampler_states[progress.steps - 1] = saved["sampler_state"]
            if self._all_given(saved):
                load_at_end(sampler, saved["sampler_state"], self._generators)
            else:
                load_sampler(progress.sampler, saved["sampler_state"])
        seeds = None
        if options.seed is not None or options.shard is not None:
            seeds = self._agree(first)
            progress.base_seed, progress.order_seed = seeds
            sampler = with_seed(sampler, seeds[1])
        order = None
        if not options.recipe.iterable:
            auto_collation, steps = options.recipe.auto_collation, progress.steps
            order = Order(sampler, auto_collation, progress.start, options.shard, steps=steps)
        if first and seeds is None:
            draw = torch.empty((), dtype=torch.int64).random_(generator=options.generator)
            progress.base_seed = int(draw.item())
        progress.order = order
        return order

    def _agree(self, first: bool) -> list[int]:
        """Return the base seed and the order's seed that all ranks use."""
        options, progress = self._options, self.progress
        if options.seed is not None:
            seeds = seeds_of(options.seed, progress.round)
        else:
            draws = torch.empty(2, dtype=torch.int64).random_(generator=options.generator)
            seeds = draws.tolist()
            if not first:
                seeds[0] = progress.base_seed
        if progress.order_seed is not None:  # of a state, whichever rank saved it
            seeds = [progress.base_seed, progress.order_seed]
        if options.shard is None:
            return seeds
        if options.seed is not None and not (
            torch.distributed.is_available() and torch.distributed.is_initialized()
        ):
            return seeds
        alike = likeness_of(options.recipe.dataset)
        facts = {
            "the length of the dataset": options.dataset_length or 0,
            "the length of the order": options.order_length() or 0,
            "the global batch": options.shard.global_batch,
            "uneven= (a checksum)": crc32(options.shard.uneven.encode()),
            "drop_last": int(options.shard.drop_last),
            "the kind of sampler (a checksum)": crc32(options.order_name.encode()),
            "what the order follows from (a checksum)": order_checksum(options.index_sampler),
            "the dataset (a checksum of types, shapes and some rows)": alike.checksum,
            "the position in the epoch": progress.start,
            "the number of the epoch": progress.round,
            "seed= (-1 for none)": -1 if options.seed is None else options.seed % 2**63,
        }
        shard = options.shard
        return agree((seeds[0], seeds[1]), facts, alike.total, shard.rank, shard.world_size)

    def _begin(self, order: Order | None) -> Iterator[Any]:
        batches = self._plan.begin(order, self.progress, self._counters)
        self._begun = True
        return batches

    def peek(self) -> Any:
        """Return the batch that leaves next if it is there already, without taking it."""
        return self._plan.peek()

    def last_indices(self) -> list[Any] | None:
        """Return the dataset indices of the batch that was handed out last, where there are any."""
        return self._plan.last_indices() if self._counters.batches else None

    def end_epoch(self) -> None:
        """Called when the batches are used up: workers that do not persist leave."""
        self.progress.finished = True
        if not self._options.persistent:
            self.close()
        if self._counters.skipped:
            counters = self._counters
            warn_of_skipped(counters.skipped, counters.skipped_samples)

    def close(self) -> None:
        """End everything that was started."""
        self._plan.close()
        close = getattr(self.batches, "close", None) if hasattr(self, "batches") else None
        if close is not None:
            close()
