"""Does a state fit a loader? What does not is said with both values and the line to write."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from headrace.engine.order.facts import compare_facts, facts_of
from headrace.engine.order.foreign import ForeignGenerator, Generator
from headrace.engine.order.packing import decode, is_others
from headrace.engine.order.ranks import seeds_of
from headrace.engine.order.state import (
    FIELDS,
    FINISHED,
    FRESH,
    KEY,
    RUNNING,
    SKIPPED,
    VERSION,
    Shape,
    checksum_of,
)
from headrace.engine.order.streams import check_count, unreadable
from headrace.errors import StateError
from headrace.sampling.ranks import rank_batch_size

_OLDER = {
    1: "did not say what its order was a function of",
    2: "drew other random numbers in datasets",
    3: "drew other random numbers in datasets",
}
_LIMIT = 2**63


def check(
    state: Any, shape: Shape, generators: Sequence[Generator]
) -> tuple[dict[str, Any], int | None]:
    """Return a copy of a state that fits a loader, and the global batch to take over from it.

    Raises:
        StateError: it is not ours, newer, cut short, or of another dataset or batch size.
    """
    if not isinstance(state, dict) or KEY not in state:
        kind = type(state).__name__
        raise StateError(
            f"this {kind} is no state of a headrace DataLoader: it has no {KEY!r}. "
            f"Pass what loader.state_dict() returned."
        )
    version = state[KEY]
    if type(version) is int and version in _OLDER:
        raise StateError(
            f"the state has version {version}, of an older headrace, which {_OLDER[version]}. "
            f"Finish the epoch with that one, or begin a new epoch without load_state_dict()."
        )
    if type(version) is not int or not 1 <= version <= VERSION:
        raise StateError(
            f"the state has version {version!r}, and this headrace reads up to {VERSION}. "
            f"Install the newer one: pip install -U headrace."
        )
    for name, kinds in FIELDS.items():
        if name not in state:
            raise _damaged(f"{name!r} is missing")
        value = state[name]
        if type(value) not in kinds or (type(value) is int and not 0 <= value < _LIMIT):
            raise _damaged(f"{name!r} is {value!r}")
    skipped = state.get(SKIPPED, 0)
    if type(skipped) is not int or not 0 <= skipped < _LIMIT:
        raise _damaged(f"{SKIPPED!r} is {skipped!r}")
    if state["checksum"] != checksum_of(state):
        raise _damaged("its checksum does not fit")
    if state["status"] not in (FRESH, RUNNING, FINISHED):
        raise _damaged(f"'status' is {state['status']!r}")
    _check_counts(state)
    if len(state["generators"]) != len(generators):  # a seed draws from none of torch's
        _compare_seeds(state, shape)
    _check_generators(state["generators"], generators)
    _check_others(state)
    kept = None
    if state["status"] == RUNNING:
        kept = _check_running(state, shape, generators)
    else:
        _check_between_epochs(state, shape)
    return copy.deepcopy(state), kept


# What a state holds between epochs, whatever came before.
_AT_AN_END = {
    "steps": 0,
    "samples": 0,
    "ahead": [],
    "drawn": 0,
    "begun": False,
    "next_worker": 0,
    "order_seed": None,
    "generators_at_start": None,
    "yielded": None,
    "others_at_start": None,
    "others": None,
}
_AT_THE_BEGINNING = {**_AT_AN_END, "base_seed": None, "epoch": 0, "round": 0}


def _check_counts(state: dict[str, Any]) -> None:
    """Refuse numbers that no epoch has side by side, also where a checksum was made for them."""
    status, steps = state["status"], state["steps"]
    wanted = {FRESH: _AT_THE_BEGINNING, FINISHED: _AT_AN_END, RUNNING: {}}[status]
    for name, value in wanted.items():
        if state[name] != value:
            raise _damaged(f"{name!r} is {state[name]!r} where 'status' is {status!r}")
    if status != FRESH and state["base_seed"] is None:
        raise _damaged("'base_seed' is None")
    if state["epoch"] > state["round"]:
        raise _damaged(f"it is in epoch {state['epoch']} of {state['round'] + 1}, counted from 0")
    rank = state["rank"]
    if rank is not None and [type(number) for number in rank] != [int, int]:
        raise _damaged(f"'rank' is {rank!r}")
    if steps and state["streams"] is None and not state["begun"]:
        raise _damaged(f"{steps} steps were handed out of an order that has not begun")


def _check_between_epochs(state: dict[str, Any], shape: Shape) -> None:
    streams = state["streams"]
    if streams is None or shape.workers is None:
        return
    if unreadable(streams):
        raise _damaged(f"'streams' is {streams!r}")
    check_count(streams, shape.workers, between_epochs=True)


def _check_running(
    state: dict[str, Any], shape: Shape, generators: Sequence[Generator]
) -> int | None:
    _compare("dataset_length", state, shape.dataset_length, "the same dataset")
    _compare("sampler", state, shape.sampler, "the same kind of sampler and shuffle=")
    _compare_seeds(state, shape)
    _check_seeds(state, shape)
    if shape.workers is None:
        compare_facts(state["order"], facts_of(shape.index_sampler), shape.sampler)
    _check_streams(state, shape)
    if shape.workers is None and state["next_worker"]:
        raise _damaged(f"'next_worker' is {state['next_worker']!r}, and its workers take no turns")
    kept = None
    if shape.shard is not None and state["global_batch"]:
        rank_batch_size(state["global_batch"], shape.shard.world_size)
        kept = state["global_batch"]
    else:
        _compare("global_batch", state, shape.global_batch, "the same batch size")
    _check_position(state, shape)
    if state["generators_at_start"] is None:
        raise _damaged("'generators_at_start' is missing")
    _check_generators(state["generators_at_start"], generators)
    return kept


def _compare_seeds(state: dict[str, Any], shape: Shape) -> None:
    _compare(
        "seeded_by", state, shape.seeded_by, "the same seed= and shard= (one process is (0, 1))"
    )


def _check_seeds(state: dict[str, Any], shape: Shape) -> None:
    """Refuse seeds that do not follow from the loader's ``seed=``, or that nothing draws."""
    if shape.seed is None:
        drawn = state["order_seed"] is not None
        if drawn != (shape.shard is not None):
            raise _damaged(f"'order_seed' is {state['order_seed']!r}")
        return
    seeds = [state["base_seed"], state["order_seed"]]
    if seeds != seeds_of(shape.seed, state["round"]):
        raise _damaged(f"its seeds {seeds} are not those of seed={shape.seed}")


def _compare(name: str, state: dict[str, Any], present: Any, remedy: str) -> None:
    if state[name] != present:
        raise StateError(
            f"the state was saved with {name} {state[name]!r}, and this loader has {present!r}. "
            f"Give the loader {remedy}, or begin a new epoch without load_state_dict()."
        )


def _check_position(state: dict[str, Any], shape: Shape) -> None:
    ahead, steps, length = state["ahead"], state["steps"], shape.length
    if any(type(step) is not int or not steps < step < _LIMIT for step in ahead):
        raise _damaged(f"'ahead' is {ahead!r}")
    if (length is None or not state["global_batch"]) != (state["samples"] is None):
        raise _damaged(f"'samples' is {state['samples']!r}")
    if length is None or state["samples"] is None:
        return
    most = -(-length // state["global_batch"])
    if shape.shard is None and state["samples"] != min(steps * state["global_batch"], length):
        raise _damaged(
            f"{steps} steps of {state['global_batch']} are not {state['samples']} samples"
        )
    if state["samples"] > length or steps > most or (ahead and max(ahead) >= most):
        raise _damaged(
            f"it is {state['samples']} samples and {steps} steps into an epoch of {length} samples"
        )


def _check_streams(state: dict[str, Any], shape: Shape) -> None:
    """Refuse to go on with an iterable dataset in another number of workers or ranks."""
    streams = state["streams"]
    if (streams is None) != (shape.workers is None):
        raise _damaged(f"'streams' is {streams!r}")
    if streams is None:
        return
    if unreadable(streams):
        raise _damaged(f"'streams' is {streams!r}")
    assert shape.workers is not None
    check_count(streams, shape.workers, between_epochs=False)
    if state["rank"] != (None if shape.rank is None else list(shape.rank)):
        was = state["rank"] or ["no shard", 1]
        now = shape.rank or ("no shard", 1)
        raise StateError(
            f"the state was saved by rank {was[0]} of {was[1]}, and this is rank {now[0]} of "
            f"{now[1]}: the ranks of an iterable dataset have a stream each. Start as many ranks "
            f"again, and give each the state it saved itself."
        )
    known_steps = sum(stream["batches"] for stream in streams) == state["steps"]
    if not known_steps or state["next_worker"] >= len(streams):
        raise _damaged("its streams and its steps do not agree")


def _check_generators(saved: list[Any], generators: Sequence[Generator]) -> None:
    if len(saved) != len(generators):
        raise StateError(
            f"the state was saved with {len(saved)} generators, and the order of this loader is "
            f"drawn from {len(generators)}. Give its sampler a generator= of its own, or none, as "
            f"before."
        )
    for text, generator in zip(saved, generators, strict=True):
        try:
            if isinstance(generator, ForeignGenerator):
                generator.check(decode(text))
            else:
                torch.Generator(device=generator.device).set_state(decode(text))
        except (ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise _damaged(f"a generator cannot be read ({error})") from error


def _check_others(state: dict[str, Any]) -> None:
    for name in ("others_at_start", "others"):
        if state[name] is not None and not is_others(state[name]):
            raise _damaged(f"{name!r} cannot be read")


def _damaged(what: str) -> StateError:
    return StateError(
        f"the state is damaged: {what}. Pass what loader.state_dict() returned, unchanged, or load "
        f"an older checkpoint."
    )
