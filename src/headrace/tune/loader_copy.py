"""A loader to take batches from without a trace in the one that was given."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from headrace.errors import OptionError
from headrace.loader import DataLoader
from headrace.train.randomness import loader_generators
from headrace.tune.clone import cloned


@contextmanager
def copy_of(loader: Iterable[Any]) -> Iterator[Iterable[Any]]:
    """Give what has a loader's batches, and leave the loader where it stood.

    One of headrace is built again, with copies of its samplers and generators. Another is gone
    through itself; its generators, and its state if it has one, are put back.

    Raises:
        OptionError: it is an iterator without a state, of which nothing can be put back.
    """
    if isinstance(loader, DataLoader):
        yield cloned(loader, loader.backend, loader.num_workers)
        return
    stateful: Any = loader if hasattr(loader, "load_state_dict") else None
    if stateful is None and hasattr(loader, "__next__"):
        raise OptionError(
            f"loader is a {type(loader).__name__}, an iterator: what is taken from it cannot be "
            f"put back. Write list(...) of it, or a DataLoader."
        )
    state = None if stateful is None else copy.deepcopy(stateful.state_dict())
    generators = [(generator, generator.get_state()) for generator in loader_generators(loader)]
    try:
        yield loader
    finally:
        for generator, numbers in generators:
            generator.set_state(numbers)
        if stateful is not None:
            stateful.load_state_dict(state)
