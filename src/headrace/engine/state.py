"""Where a loader stands, as a handful of JSON values, and why a state does not fit.

A state covers what was handed out, not what was prefetched. For map-style datasets it counts
samples of the global order, so it is the same for every backend, number of workers and rank. It
holds the generator that orders are drawn from as it stood when the epoch began, from which the
order follows, and as it stood when the state was taken, which is put back.
"""

from __future__ import annotations

import base64
import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from headrace.errors import StateError

VERSION = 1
_KEY = "headrace_state"
FRESH, RUNNING, FINISHED = "fresh", "running", "finished"

_FIELDS: dict[str, tuple[type, ...]] = {
    "status": (str,),
    "dataset_length": (int, type(None)),
    "global_batch": (int, type(None)),
    "sampler": (str,),
    "base_seed": (int, type(None)),
    "epoch": (int,),
    "round": (int,),
    "steps": (int,),
    "begun": (bool,),
    "samples": (int, type(None)),
    "generator_at_start": (str, type(None)),
    "generator": (str,),
    "streams": (list, type(None)),
    "next_worker": (int,),
}


@dataclass
class Progress:
    """What a state is made of, as an epoch goes along.

    ``steps`` were handed out before this iterator began (it resumed). ``streams`` are the workers
    of an iterable dataset: batches handed out and the dataset's own state, for each.
    """

    generator_at_start: torch.Tensor
    base_seed: int
    epoch: int = 0
    round: int = 0
    steps: int = 0
    finished: bool = False
    streams: list[dict[str, Any]] | None = None
    next_worker: int = 0
    sampler_states: dict[int, Any] = field(default_factory=dict)
    live_sampler: Any = None
    order: Any = None


@dataclass(frozen=True)
class Shape:
    """What must be the same for a state to fit; ``sampler`` names the kind of order."""

    dataset_length: int | None
    global_batch: int | None
    sampler: str


def describe(
    shape: Shape, progress: Progress | None, position: int, order_length: int | None, now: Any
) -> dict[str, Any]:
    """Return the state of a loader: ``position`` steps of this epoch are handed out."""
    samples = None
    if shape.global_batch is not None and order_length is not None:
        samples = min(position * shape.global_batch, order_length)
    status = FRESH if progress is None else FINISHED if progress.finished else RUNNING
    state: dict[str, Any] = {
        _KEY: VERSION,
        "status": status,
        "dataset_length": shape.dataset_length,
        "global_batch": shape.global_batch,
        "sampler": shape.sampler,
        "base_seed": None if progress is None else progress.base_seed,
        "epoch": 0 if progress is None else progress.epoch,
        "round": 0 if progress is None else progress.round,
        "steps": position if status == RUNNING else 0,
        "begun": progress is not None and progress.order is not None and progress.order.begun,
        "samples": samples if status == RUNNING else 0,
        "generator_at_start": None,
        "generator": encode(now),
        "streams": None,
        "next_worker": 0,
    }
    if progress is not None and status == RUNNING:
        state["generator_at_start"] = encode(progress.generator_at_start)
        state["streams"] = copy.deepcopy(progress.streams)
        state["next_worker"] = progress.next_worker
        if progress.live_sampler is not None:
            state["sampler_state"] = copy.deepcopy(progress.live_sampler.state_dict())
        elif position - 1 in progress.sampler_states:
            state["sampler_state"] = copy.deepcopy(progress.sampler_states[position - 1])
    return state


def encode(state: torch.Tensor) -> str:
    """Return a generator's state as text."""
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def decode(text: str) -> torch.Tensor:
    """Return a generator's state from text."""
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
        state = torch.from_numpy(np.frombuffer(raw, np.uint8).copy())
        torch.Generator().set_state(state)
    except (ValueError, RuntimeError, TypeError) as error:
        raise StateError(
            f"the state's generator cannot be read ({error}): it was cut short or changed. "
            f"Load an older checkpoint."
        ) from error
    return state


def check(state: Any, shape: Shape) -> dict[str, Any]:
    """Return a copy of a state that fits a loader.

    Raises:
        StateError: it is not ours, newer, cut short, or of another dataset or batch size.
    """
    if not isinstance(state, dict) or _KEY not in state:
        kind = type(state).__name__
        raise StateError(
            f"this {kind} is no state of a headrace DataLoader: it has no {_KEY!r}. "
            f"Pass what loader.state_dict() returned."
        )
    if not isinstance(state[_KEY], int) or state[_KEY] > VERSION:
        raise StateError(
            f"the state has version {state[_KEY]}, and this headrace reads up to {VERSION}. "
            f"Install the newer one: pip install -U headrace."
        )
    for name, kinds in _FIELDS.items():
        if name not in state or not isinstance(state[name], kinds):
            what = "is missing" if name not in state else f"is {state[name]!r}"
            raise StateError(
                f"the state is damaged: {name!r} {what}. Pass what loader.state_dict() returned, "
                f"unchanged."
            )
    if state["steps"] < 0 or state["status"] not in (FRESH, RUNNING, FINISHED):
        raise StateError("the state is damaged: its position makes no sense. Load an older one.")
    _compare("dataset_length", state, shape.dataset_length, "the same dataset")
    _compare("global_batch", state, shape.global_batch, "the same batch size times ranks")
    _compare("sampler", state, shape.sampler, "the same kind of sampler and shuffle=")
    decode(state["generator"])
    if state["status"] == RUNNING and state["generator_at_start"] is None:
        raise StateError(
            "the state is damaged: 'generator_at_start' is missing. Load an older one."
        )
    return copy.deepcopy(state)


def _compare(name: str, state: dict[str, Any], present: Any, remedy: str) -> None:
    if state["status"] == RUNNING and state[name] != present:
        raise StateError(
            f"the state was saved with {name} {state[name]!r}, and this loader has {present!r}. "
            f"Give the loader {remedy}, or begin a new epoch without load_state_dict()."
        )


def check_workers(state: dict[str, Any], workers: int) -> None:
    """Refuse to go on with an iterable dataset in another number of workers.

    Raises:
        StateError: with both counts.
    """
    streams = state["streams"]
    if streams is not None and len(streams) != workers:
        raise StateError(
            f"the state was saved with {len(streams)} workers iterating over the dataset, and this "
            f"loader has {workers}: each has its own place in its own stream. "
            f"Write DataLoader(..., num_workers={len(streams) if len(streams) > 1 else '0 or 1'})."
        )
