"""What a loader wants of its engine, and the checks of options that torch does not know."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from typing import Any

import torch

from headrace.engine.fetch import Recipe
from headrace.engine.samplers import generators_of
from headrace.errors import OptionError
from headrace.sampling.ranks import Shard


@dataclass(frozen=True)
class Options:
    """What a loader wants of its engine."""

    recipe: Recipe
    index_sampler: Any
    generator: torch.Generator | None
    num_workers: int
    context: Any
    prefetch_factor: int
    in_order: bool
    timeout_s: float
    init_fn: Callable[[int], None] | None
    backend: str
    restarts: int
    own_rng: bool
    persistent: bool
    seed: int | None = None
    shard: Shard | None = None
    dataset_length: int | None = None
    order_length: Callable[[], int | None] = lambda: None
    order_name: str = ""
    prefetch_bytes: int | None = None
    max_errors: int | None = None

    @property
    def in_workers(self) -> bool:
        """Say whether others than the user's thread make the batches."""
        return self.num_workers > 0 and self.backend != "inline"

    @property
    def generators(self) -> list[torch.Generator]:
        """Return the generators that the epoch draws from: the loader's first."""
        return generators_of(self.index_sampler, self.generator)


def worker_context(given: Any) -> Any:
    """Return the multiprocessing context for workers, with its forkserver told what to import."""
    context = torch.multiprocessing.get_context() if given is None else given
    if context.get_start_method() == "forkserver":
        wanted = ["__main__", "torch", "headrace"]
        modules = [*forkserver._forkserver._preload_modules]  # type: ignore[attr-defined]
        context.set_forkserver_preload(modules + [m for m in wanted if m not in modules])
    return context


def is_forked(given: Any) -> bool:
    """Say whether workers start as forks, without settling the start method of the program."""
    context = torch.multiprocessing.get_context() if given is None else given
    method = context.get_start_method(allow_none=True)
    return (method or multiprocessing.get_all_start_methods()[0]) == "fork"


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> Any:
    """Return an option that is one of a few words, or say which they are."""
    if value not in allowed:
        raise OptionError(
            f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}. "
            f"Write DataLoader(..., {name}={allowed[0]!r})."
        )
    return value


def count_of(name: str, value: Any) -> int:
    """Return an option that is a whole number from 0 on, or say what to write."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise OptionError(
            f"{name}={value!r} is no count. Write DataLoader(..., {name}=3), or 0 for none."
        )
    return value
