"""Where the streams of an iterable dataset stand: one for each worker, in the words of the dataset.

A stream is {"batches": handed out of it, "dataset": what the dataset said of itself}. That is
{"ended", "dataset", "iterator"} behind a batch, with "begins" too where it is the dataset's state
before ``iter()``: it is loaded, and then an epoch begins.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any, TypeAlias

from headrace.errors import StateError

Stream: TypeAlias = dict[str, Any]


def knows_its_place(stream: Any) -> bool:
    """Say whether a dataset, an iterator or a sampler can say where it stands and be put back.

    Methods of these names that want other arguments are for somebody else: Mosaic's
    StreamingDataset has a ``state_dict(num_samples, from_beginning)``, for its own loader.
    """
    return _takes(stream, "state_dict", 0) and _takes(stream, "load_state_dict", 1)


def _takes(stream: Any, name: str, count: int) -> bool:
    """Say whether there is a method of a name that can be called with so many arguments."""
    method = getattr(stream, name, None)
    if not callable(method):
        return False
    try:
        inspect.signature(method).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # it does not tell
        return True
    return True


def said_of(stream: Any) -> Any:
    """Return what a dataset, or its iterator, says of itself now; None where it cannot."""
    return copy.deepcopy(stream.state_dict()) if knows_its_place(stream) else None


def state_before(dataset: Any) -> Any:
    """Return what a dataset says of itself before ``iter()``; None where it cannot say it yet."""
    try:
        said = said_of(dataset)
    except Exception:  # a place that exists from iter() on: there is none to go back to
        return None
    if said is None:
        return None
    return {"ended": False, "begins": True, "dataset": said, "iterator": None}


def fresh_streams(dataset: Any, count: int) -> list[Stream]:
    """Return the streams of an epoch that begins with copies of the user's dataset."""
    before = state_before(dataset)
    return [{"batches": 0, "dataset": copy.deepcopy(before)} for _ in range(count)]


def next_streams(ended: list[Stream]) -> list[Stream]:
    """Return the streams of the epoch behind one that has ended, in the same copies."""
    return [{"batches": 0, "dataset": _begins(stream["dataset"])} for stream in ended]


def _begins(state: Any) -> Any:
    if state is None:
        return None
    # Of a dataset that is its own iterator, what the iterator said is what the dataset says.
    said = state["iterator"] if state["dataset"] is None else state["dataset"]
    return {"ended": False, "begins": True, "dataset": said, "iterator": None}


def unreadable(streams: Any) -> bool:
    """Say whether these are no streams."""
    if not isinstance(streams, list) or not streams:
        return True
    for stream in streams:
        known = isinstance(stream, dict) and "dataset" in stream
        if not known or type(stream.get("batches")) is not int or stream["batches"] < 0:
            return True
        dataset = stream["dataset"]
        if dataset is not None and not (
            isinstance(dataset, dict) and {"ended", "dataset", "iterator"} <= {*dataset}
        ):
            return True
    return False


def check_count(streams: list[Stream], workers: int, between_epochs: bool) -> None:
    """Raise where a loader has another number of workers than streams were saved.

    Raises:
        StateError: each worker has its own place in its own stream.
    """
    if len(streams) == workers or (between_epochs and len(streams) == 1):
        return
    count = "0 or 1" if len(streams) == 1 else len(streams)
    raise StateError(
        f"the state was saved with {len(streams)} workers iterating over the dataset, and this "
        f"loader has {workers}: each has its own place in its own stream. "
        f"Write DataLoader(..., num_workers={count})."
    )
