"""What a loader wants of its engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from headrace.engine.making.recipe import Recipe
from headrace.engine.order.foreign import Generator
from headrace.engine.order.samplers import generators_of
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
    def generators(self) -> list[Generator]:
        """Return the generators that the epoch draws from: the loader's first."""
        return generators_of(self.index_sampler, self.generator, self.seed)
