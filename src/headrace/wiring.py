"""What a loader's attributes mean to the engine, read from them at the moment it is asked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.utils.data as torch_data
from torch.utils.data import IterableDataset
from torch.utils.data.distributed import DistributedSampler

from headrace.carried import alone
from headrace.data.shard import check_divisible, shard_of
from headrace.engine.backends.context import worker_context
from headrace.engine.epoch import Options
from headrace.engine.making import Recipe
from headrace.engine.order import Shape, batch_size_of, order_sampler, which_rank
from headrace.errors import OptionError
from headrace.notices import warn_user
from headrace.sampling.planned import is_planned
from headrace.sampling.ranks import Shard, rank_batch_size
from headrace.sized import length_of


def options_of(loader: Any) -> Options:
    """Return what the engine needs to know."""
    iterable = isinstance(loader.dataset, IterableDataset)
    dataset, rank = loader.dataset, which_rank(loader.shard)
    if iterable and rank is not None:
        dataset = shard_of(dataset, *rank)
    given = loader.multiprocessing_context
    return Options(
        recipe=Recipe(
            dataset=dataset,
            collate=alone(loader.collate_fn),
            iterable=iterable,
            auto_collation=loader._auto_collation,
            batch_size=loader.batch_size,
            drop_last=loader.drop_last,
            transform=loader.batch_transform,
            skip=loader.on_error == "skip",
            weigh_all=loader.prefetch_bytes is not None,
        ),
        index_sampler=index_sampler_of(loader),
        generator=loader.generator,
        num_workers=loader.num_workers,
        context=worker_context(given) if uses_processes(loader) else None,
        prefetch_factor=loader.prefetch_factor or 0,
        in_order=loader.in_order,
        timeout_s=loader.timeout,
        init_fn=loader.worker_init_fn,
        backend=loader.backend,
        restarts=loader.worker_restarts,
        own_rng=loader.rng == "task",
        persistent=loader.persistent_workers,
        seed=loader.seed,
        shard=shard_now(loader),
        dataset_length=_dataset_length(loader),
        order_length=_order_length(loader),
        order_name=_order_name(loader),
        prefetch_bytes=loader.prefetch_bytes,
        max_errors=loader.max_errors,
    )


def shape_of(loader: Any) -> Shape:
    """Return what must be the same for a state to fit."""
    iterable = isinstance(loader.dataset, IterableDataset)
    from_seed = "generator" if loader.shard is None else "ranks"
    return Shape(
        dataset_length=_dataset_length(loader),
        global_batch=_global_batch(loader),
        sampler=_order_name(loader),
        seeded_by=from_seed if loader.seed is None else f"seed {loader.seed}",
        length=_order_length(loader)(),
        shard=shard_now(loader),
        workers=max(1, workers_of(loader)) if iterable else None,
        rank=which_rank(loader.shard) if iterable else None,
        index_sampler=index_sampler_of(loader),
        dataset=_streamed(loader),
        persistent=loader.persistent_workers and workers_of(loader) > 0,
        seed=loader.seed,
    )


def warn_inexact(loader: Any) -> None:
    """Warn, once a loader, where a state cannot bring back what user code draws."""
    recipe = options_of(loader).recipe
    if loader._session.warned_inexact or recipe.quiet or recipe.gatherer() is not None:
        return
    loader._session.warned_inexact = True
    warn_user(
        "with rng='torch' a state brings back the order, not the random numbers that the dataset "
        "and collate_fn draw: they follow from how far each worker's generators have gone. For an "
        "exact resume leave rng= out; if nothing is drawn there, ignore this."
    )


def workers_of(loader: Any) -> int:
    """Return how many workers make the batches; 0 for the user's thread."""
    workers: int = 0 if loader.backend == "inline" else loader.num_workers
    return workers


def uses_processes(loader: Any) -> bool:
    """Say whether worker processes make the batches."""
    return workers_of(loader) > 0 and loader.backend != "thread"


def shard_now(loader: Any) -> Shard | None:
    """Return this process's part of the order, as the ranks are now."""
    rank = which_rank(loader.shard)
    if rank is None or isinstance(loader.dataset, IterableDataset):
        return None
    batch_size = loader.batch_size or 1
    kept = loader._session.kept_global_batch
    if kept is not None:
        batch_size = rank_batch_size(kept, rank[1])
    return Shard(*rank, batch_size, loader.uneven, loader.drop_last)


def index_sampler_of(loader: Any) -> Any:
    """Return the sampler that this process goes through: of a planned order, its rank's part."""
    sampler = loader._index_sampler
    rank = which_rank(loader.shard)
    if rank is None or not is_planned(sampler):
        return sampler
    kept = loader._session.rank_sampler
    if kept is None or kept[:2] != (sampler, rank):
        loader._session.rank_sampler = kept = (sampler, rank, sampler.shard(*rank))
    return kept[2]


def check_shard(loader: Any) -> None:
    """Raise where ranks cannot divide what the loader loads.

    Raises:
        OptionError: it is divided already, or cannot be.
    """
    if loader.shard is None:
        return
    which_rank(loader.shard)
    inner = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if isinstance(inner, DistributedSampler) or isinstance(loader.sampler, DistributedSampler):
        raise OptionError(
            "shard= divides the order among ranks, and so does DistributedSampler: together "
            "they would divide it twice. Write DataLoader(dataset, shuffle=True, shard='auto'); "
            "under Lightning also Trainer(use_distributed_sampler=False), or it adds one by itself."
        )
    if isinstance(loader.dataset, IterableDataset):
        check_divisible(loader.dataset, "ranks")
        return
    planned = is_planned(loader._index_sampler) and hasattr(loader._index_sampler, "shard")
    if not planned and type(loader.batch_sampler) is not torch_data.BatchSampler:
        raise OptionError(
            "shard= divides batches of a fixed size. Leave batch_sampler= out and give "
            "batch_size=, or divide the ranks inside your batch sampler (num_replicas=, rank=). "
            "Where a library divides them, as accelerate's prepare() does, leave shard= out."
        )
    if planned and loader.uneven != "exact":
        name = type(loader._index_sampler).__name__
        raise OptionError(
            f"{name} gives all ranks equally many batches, so uneven={loader.uneven!r} has nothing "
            f"to do. Leave uneven= out; {name}(..., drop_last=True) leaves samples out."
        )


def _streamed(loader: Any) -> Any:
    """Return the dataset whose state a stream begins with; None where each worker has a part."""
    if not isinstance(loader.dataset, IterableDataset):
        return None
    if loader.backend == "thread" and loader.num_workers > 1:
        return None
    rank = which_rank(loader.shard)
    return loader.dataset if rank is None else shard_of(loader.dataset, *rank)


def _dataset_length(loader: Any) -> int | None:
    return None if isinstance(loader.dataset, IterableDataset) else length_of(loader.dataset)


def _global_batch(loader: Any) -> int | None:
    """Return the samples of a step over all ranks; None for batches of a custom sampler."""
    rank, kept = which_rank(loader.shard), loader._session.kept_global_batch
    if rank is not None and kept is not None:
        size: int = kept
        return size
    if loader.batch_size is None and loader.batch_sampler is not None:
        return batch_size_of(loader.batch_sampler)
    return (loader.batch_size or 1) * (1 if rank is None else rank[1])


def _order_name(loader: Any) -> str:
    return type(order_sampler(loader._index_sampler)).__name__


def _order_length(loader: Any) -> Callable[[], int | None]:
    # For states and shards only: asking a custom sampler may cost something. It holds no loader
    # either, or workers that persist would wait for the cycle collector.
    if isinstance(loader.dataset, IterableDataset) or _global_batch(loader) is None:
        return partial(length_of, None)
    return partial(length_of, order_sampler(loader._index_sampler))
