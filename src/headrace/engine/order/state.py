"""Where a loader stands, as a handful of JSON values.

A state covers what was handed out, not what was prefetched. For map-style datasets it counts
samples of the global order, so it is the same for every backend, number of workers and rank. It
holds the generators that orders are drawn from as they stood when the epoch began, from which the
order follows, and as they stood when the state was taken, which is put back.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from headrace.engine.order.checksum import checksum
from headrace.engine.order.facts import Facts, epoch_setter, facts_of
from headrace.engine.order.foreign import Generator
from headrace.engine.order.packing import encode, others
from headrace.engine.order.streams import (
    Stream,
    fresh_streams,
    next_streams,
)
from headrace.engine.task import Done, Exhausted, Result
from headrace.sampling.ranks import Shard

VERSION = 4
KEY = "headrace_state"
FRESH, RUNNING, FINISHED = "fresh", "running", "finished"
_NOTHING = type(None)

FIELDS: dict[str, tuple[type, ...]] = {
    "status": (str,),
    "dataset_length": (int, _NOTHING),
    "global_batch": (int, _NOTHING),
    "sampler": (str,),
    "seeded_by": (str,),
    "order": (dict,),
    "sampler_epoch": (int, _NOTHING),
    "yielded": (int, _NOTHING),
    "others_at_start": (list, _NOTHING),
    "others": (list, _NOTHING),
    "checksum": (str,),
    "rank": (list, _NOTHING),
    "base_seed": (int, _NOTHING),
    "order_seed": (int, _NOTHING),
    "epoch": (int,),
    "round": (int,),
    "steps": (int,),
    "ahead": (list,),
    "drawn": (int,),
    "begun": (bool,),
    "samples": (int, _NOTHING),
    "generators_at_start": (list, _NOTHING),
    "generators": (list,),
    "streams": (list, _NOTHING),
    "next_worker": (int,),
}
SAMPLER_STATE = "sampler_state"  # what a sampler that knows its place said: only where it did
SKIPPED = "skipped"  # samples of this epoch that were left out: only where there were any
_SEALED = (KEY, *FIELDS, SAMPLER_STATE)


@dataclass
class Progress:
    """What a state is made of, as an epoch goes along.

    ``steps`` were handed out, up to position ``start`` of the global order, before this iterator
    began (it resumed). Where batches leave out of order, the first ``prefix`` steps have all left,
    and those of ``ahead`` behind them. ``streams`` are the workers of an iterable dataset: batches
    handed out and the dataset's own state, for each. ``sampler`` is one that can say where it
    stands; ``sampler_states`` holds what it said behind each step it was asked for.
    """

    generators_at_start: list[torch.Tensor]
    base_seed: int
    epoch: int = 0
    round: int = 0
    steps: int = 0
    start: int = 0
    order_seed: int | None = None
    prefix: int | None = None
    ahead: set[int] = field(default_factory=set)
    finished: bool = False
    streams: list[dict[str, Any]] | None = None
    next_worker: int = 0
    sampler: Any = None
    sampler_states: dict[int, Any] = field(default_factory=dict)
    order: Any = None
    facts: Facts | None = None
    restored: bool = False  # the streams are those of a state: the dataset is to be told

    def left(self, step: int) -> None:
        """Note that a step has left, out of order."""
        assert self.prefix is not None
        self.ahead.add(step)
        while self.prefix in self.ahead:
            self.ahead.remove(self.prefix)
            self.prefix += 1

    def stream_left(self, worker: int, result: Result) -> None:
        """Note what the next of a worker's stream was, and what the dataset said behind it."""
        assert self.streams is not None
        stream = self.streams[worker]
        if isinstance(result, Exhausted):
            stream["dataset"] = result.state or stream["dataset"]
            return
        stream["batches"] += 1
        stream["dataset"] = result.state if isinstance(result, Done) else None
        self.next_worker = (worker + 1) % len(self.streams)

    def restore_streams(self, streams: list[Stream] | None, workers: int) -> None:
        """Go on with the streams of a state; one for all where the workers begin alike."""
        if streams is None:
            return
        alike = len(streams) == 1
        self.streams = [copy.deepcopy(streams[0 if alike else w]) for w in range(workers)]
        self.restored = True

    def sampler_state(self, position: int, all_given: bool) -> Any:
        """Return what the sampler said behind ``position`` steps; None where it cannot be known.

        Behind the last one that is what it says at its end: it may count epochs there.
        """
        if self.sampler is None:
            return None
        if all_given and self.order.has_ended():
            return self.sampler.state_dict()
        if not self.finished and position - 1 in self.sampler_states:
            return self.sampler_states[position - 1]
        # Steps that are made when they are due are never noted: it stands where the loop does.
        at_hand = self.finished or self.order.drawn in (0, position)
        return self.sampler.state_dict() if at_hand else None


@dataclass(frozen=True)
class Shape:
    """What must be the same for a state to fit.

    ``sampler`` names the kind of order and ``seeded_by`` what it follows from. ``length`` is that
    of the order, in samples. ``workers`` and ``rank`` count for iterable datasets only, each of
    whose workers has a stream of its own.
    """

    dataset_length: int | None
    global_batch: int | None
    sampler: str
    seeded_by: str
    length: int | None
    shard: Shard | None = None
    workers: int | None = None
    rank: tuple[int, int] | None = None
    index_sampler: Any = None
    dataset: Any = None
    persistent: bool = False
    seed: int | None = None


def describe(
    shape: Shape,
    progress: Progress | None,
    position: int,
    generators: Sequence[Generator],
    skipped: int = 0,
) -> dict[str, Any]:
    """Return the state of a loader: ``position`` steps of this epoch are handed out.

    ``skipped`` samples of it were left out, this iterator's and those before it.
    """
    status = FRESH if progress is None else FINISHED if progress.finished else RUNNING
    state: dict[str, Any] = {
        KEY: VERSION,
        "status": status,
        "dataset_length": shape.dataset_length,
        "global_batch": shape.global_batch,
        "sampler": shape.sampler,
        "seeded_by": shape.seeded_by,
        "rank": None if shape.rank is None else list(shape.rank),
        "order": {},
        "sampler_epoch": _sampler_epoch(shape),
        "yielded": None,
        "others_at_start": None,
        "others": None,
        "base_seed": None if progress is None else progress.base_seed,
        "order_seed": None,
        "epoch": 0 if progress is None else progress.epoch,
        "round": 0 if progress is None else progress.round,
        "steps": 0,
        "ahead": [],
        "drawn": 0,
        "begun": False,
        "samples": 0,
        "generators_at_start": None,
        "generators": [encode(generator.get_state()) for generator in generators],
        "streams": None,
        "next_worker": 0,
    }
    if status != RUNNING and shape.workers is not None:
        state["streams"] = _between_epochs(shape, progress)
    if progress is None:
        return seal(state)
    if status == RUNNING:
        state.update(
            order_seed=progress.order_seed,
            steps=position,
            ahead=sorted(progress.ahead),
            drawn=0 if progress.order is None else progress.order.drawn,
            begun=progress.order is not None and progress.order.begun,
            samples=_samples(shape, progress, position),
            generators_at_start=[encode(start) for start in progress.generators_at_start],
            streams=copy.deepcopy(progress.streams),
            next_worker=progress.next_worker,
        )
        state.update(_of_order(shape, progress, position))
        if skipped:
            state[SKIPPED] = skipped
    all_given = status == RUNNING and state["samples"] == shape.length is not None
    sampler_state = progress.sampler_state(position, all_given)
    if all_given:  # a sampler may draw at its end
        state["generators"] = [encode(generator.get_state()) for generator in generators]
    if sampler_state is not None:
        state[SAMPLER_STATE] = copy.deepcopy(sampler_state)
    return seal(state)


def seal(state: dict[str, Any]) -> dict[str, Any]:
    """Put the checksum of its fields into a state."""
    state["checksum"] = checksum_of(state)
    return state


def checksum_of(state: dict[str, Any]) -> str:
    """Return the checksum that a state of these fields has."""
    # What came later counts only where it is: without it a state is that of older versions.
    return checksum(state, (*_SEALED, SKIPPED) if SKIPPED in state else _SEALED)


def _between_epochs(shape: Shape, progress: Progress | None) -> list[Stream] | None:
    """Return the streams as the next epoch begins: in workers that persist, as they ended."""
    if progress is not None and shape.persistent and progress.streams is not None:
        return next_streams(copy.deepcopy(progress.streams))
    streams = fresh_streams(shape.dataset, 1)
    return None if streams[0]["dataset"] is None else streams


def _sampler_epoch(shape: Shape) -> int | None:
    setter = epoch_setter(shape.index_sampler)
    return None if setter is None else setter.epoch


def _of_order(shape: Shape, progress: Progress, position: int) -> dict[str, Any]:
    """Return what says that an order is the same: all it is a function of, and what came of it."""
    if progress.order is None:
        return {}
    if progress.facts is None:  # once an epoch: there may be many weights to hash
        progress.facts = facts_of(shape.index_sampler)
    found: dict[str, Any] = {"order": dict(progress.facts)}
    found["sampler_epoch"] = progress.order.sampler_epoch
    if progress.sampler is not None:
        return found
    found["yielded"] = progress.order.hash_behind(position)
    if not progress.order.asked:
        return found
    then, now = progress.order.others_at_start, others()
    if now is not None and then not in (None, now):  # somebody drew from them
        found.update(others_at_start=then, others=now)
    return found


def _samples(shape: Shape, progress: Progress, position: int) -> int | None:
    """Return the position in the global order; None for batches of a custom batch sampler."""
    if shape.length is None or shape.global_batch is None:
        return None
    steps = position - progress.steps
    if shape.shard is None or not steps:
        return min(progress.start + steps * shape.global_batch, shape.length)
    # Near its end the steps of an order that ranks share may be smaller.
    steps = min(steps, shape.shard.steps(shape.length, progress.start))
    return shape.shard.bounds(shape.length, steps - 1, progress.start)[1]
