"""The order of an epoch as a stream of index arrays instead of Python integers.

A custom sampler is code and must be iterated as it stands. The samplers known here are
arithmetic: what they yield, and what they draw from which generator at which moment, is
reproduced exactly, 16,384 indices at a time. Two rules hold throughout:

- Nothing is drawn before the first `next`. torch draws when the first index is asked for,
  and a program may seed in between.
- From a generator that someone else can see, each chunk draws when torch would, for its
  first index. From a private one pieces of any size are drawn: nobody can tell.
"""

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from headrace.sampling.permute import IndexArray, permutation

CHUNK = 16_384
# torch draws indices with replacement in pieces of this many.
REPLACEMENT_PIECE = 32

Chunks = Iterator[IndexArray]


def index_chunks(sampler: object, start: int = 0) -> Chunks | None:
    """Return the sampler's order as arrays, or None where it has to be iterated.

    The arrays have shape (any number,), dtype int64 or int32, and are contiguous; together
    they are `list(sampler)[start:]`. Every generator is left as torch's iteration leaves it,
    at each chunk and at the end: ask until `StopIteration`, as torch may draw once more there.

    Known are torch's own samplers (these exact types, as a subclass may do anything), as
    far as they draw on the CPU, and any class that itself defines
    `index_chunks(self, start)`; one that inherits it may have changed `__iter__` only.

    Raises:
        ValueError: `start` is negative.
    """
    if start < 0:
        raise ValueError(f"start is a position in the order and must be >= 0, got {start}")
    known = _KNOWN.get(type(sampler))
    if known is not None:
        return known(sampler, start)
    own = type(sampler).__dict__.get("index_chunks")
    return None if own is None else cast("Chunks | None", own(sampler, start))


def is_exact(sampler: object) -> bool:
    """Whether `index_chunks` knows this sampler's order; draws nothing."""
    return index_chunks(sampler) is not None


def exact_batches(batch_sampler: object) -> tuple[object, int, bool] | None:
    """Take torch's own `BatchSampler` over a known sampler apart.

    Returns its sampler, batch size and drop_last, or None for anything else.
    """
    if type(batch_sampler) is not BatchSampler or not is_exact(batch_sampler.sampler):
        return None
    return batch_sampler.sampler, batch_sampler.batch_size, batch_sampler.drop_last


def sequential_chunks(start: int, stop: int, step: int = 1) -> Chunks:
    """Yield `range(start, stop, step)` in pieces: 10^10 items cost no memory."""
    for low in range(start, stop, step * CHUNK):
        yield np.arange(low, min(low + step * CHUNK, stop), step, dtype=np.int64)


def private_generator() -> torch.Generator:
    """Make a generator as torch's `RandomSampler` does: one int64 from the global one seeds it."""
    seed = int(torch.empty((), dtype=torch.int64, device="cpu").random_().item())
    return torch.Generator().manual_seed(seed)


def draws_on_cpu(generator: object) -> bool:
    """Whether torch would draw an order from this generator (or None) on the CPU."""
    if torch.get_default_device().type != "cpu":
        return False
    if generator is None:
        return True
    return isinstance(generator, torch.Generator) and generator.device.type == "cpu"


def skip(chunks: Chunks, count: int) -> Chunks:
    """Leave out the first `count` positions, drawing what they draw."""
    for chunk in chunks:
        if count < len(chunk):
            yield chunk[count:]
            break
        count -= len(chunk)
    yield from chunks


def random_chunks(sampler: RandomSampler, start: int = 0) -> Chunks:
    """Yield the order of torch's `RandomSampler` from position `start` on.

    Only `data_source`, `replacement`, `num_samples` and `generator` are read, and when torch
    reads them: a dataset may grow during the epoch.
    """
    n = len(sampler.data_source)
    private = sampler.generator is None
    generator = private_generator() if private else sampler.generator
    if sampler.replacement:
        return (yield from _with_replacement(sampler, n, generator, private, start))
    return (yield from skip(_without_replacement(sampler, n, generator, private), start))


def _with_replacement(
    sampler: RandomSampler, n: int, generator: torch.Generator, private: bool, start: int
) -> Chunks:
    whole = sampler.num_samples // REPLACEMENT_PIECE * REPLACEMENT_PIECE
    position = min(start // REPLACEMENT_PIECE * REPLACEMENT_PIECE, whole)
    # One call for many pieces takes the same numbers from the generator, in the same order.
    for low in range(0, position, CHUNK):
        _randint(n, min(CHUNK, position - low), generator)
    piece = CHUNK if private else REPLACEMENT_PIECE
    ahead = start - position
    for low in range(position, whole, piece):
        yield _randint(n, min(piece, whole - low), generator)[ahead:]
        ahead = 0
    rest = _randint(n, sampler.num_samples % REPLACEMENT_PIECE, generator)
    if ahead < len(rest):
        yield rest[ahead:]


def _randint(n: int, count: int, generator: torch.Generator) -> IndexArray:
    return torch.randint(n, (count,), dtype=torch.int64, generator=generator).numpy()


def _without_replacement(
    sampler: RandomSampler, n: int, generator: torch.Generator, private: bool
) -> Chunks:
    for _ in range(sampler.num_samples // n):
        yield permutation(n, generator)
    rest = sampler.num_samples % n
    # torch draws one more permutation at the end and uses none of it when rest is 0:
    # the next epoch's order depends on it if the generator is the user's.
    if rest or not private:
        last = permutation(n, generator)[:rest]
        if rest:
            yield last


def subset_chunks(indices: IndexArray, generator: torch.Generator | None) -> Chunks:
    """Yield `indices` in the order of torch's `SubsetRandomSampler`."""
    order = permutation(len(indices), generator)
    for low in range(0, len(order), CHUNK):
        yield indices[order[low : low + CHUNK]]


def distributed_chunks(sampler: DistributedSampler[Any], start: int = 0) -> Chunks | None:
    """Yield the order of torch's `DistributedSampler` from position `start` on.

    None if the dataset's length changed since the sampler was made: torch's own iteration
    says so. Epoch, seed and length are read at the call, as torch reads them at `iter`.
    """
    n = len(cast("Any", sampler.dataset))
    total = sampler.total_size
    fits = total <= n if sampler.drop_last else n <= total and (n > 0 or total == 0)
    if not fits or (sampler.shuffle and not draws_on_cpu(None)):
        return None
    seed = sampler.seed + sampler.epoch if sampler.shuffle else None
    ranks = sampler.num_replicas
    return _every_rankth(sequential_chunks(sampler.rank + start * ranks, total, ranks), n, seed)


def _every_rankth(positions: Chunks, n: int, seed: int | None) -> Chunks:
    order = None
    for piece in positions:
        if order is None and seed is not None:
            order = permutation(n, torch.Generator().manual_seed(seed))
        # What torch appends to fill the last rank repeats the order from its beginning.
        wrapped = piece % n if piece[-1] >= n else piece
        yield wrapped if order is None else order[wrapped]


def _sequential(sampler: SequentialSampler, start: int) -> Chunks:
    return sequential_chunks(start, len(sampler.data_source))


def _random(sampler: RandomSampler, start: int) -> Chunks | None:
    return random_chunks(sampler, start) if draws_on_cpu(sampler.generator) else None


def _subset(sampler: SubsetRandomSampler, start: int) -> Chunks | None:
    indices = _as_indices(sampler.indices)
    if indices is None or not draws_on_cpu(sampler.generator):
        return None
    return skip(subset_chunks(indices, sampler.generator), start)


def _as_indices(indices: object) -> IndexArray | None:
    """The indices as an array, or None if one of them is no plain integer of 64 bits."""
    if type(indices) is torch.Tensor and indices.device.type == "cpu":
        indices = indices.detach().numpy() if indices.layout is torch.strided else None
    elif type(indices) is range:
        indices = np.arange(indices.start, indices.stop, indices.step, dtype=np.int64)
    elif type(indices) in (list, tuple):
        try:
            indices = np.asarray(indices) if indices else np.empty(0, dtype=np.int64)
        except (ValueError, OverflowError):  # ragged, or something else's index
            return None
    if type(indices) is not np.ndarray or indices.ndim != 1 or indices.dtype.kind not in "iu":
        return None
    if indices.dtype in (np.int64, np.int32):
        return cast("IndexArray", indices)
    return None if indices.dtype == np.uint64 else indices.astype(np.int64)


def _weighted(sampler: WeightedRandomSampler, start: int) -> Chunks | None:
    generator = sampler.generator
    if generator is not None and not isinstance(generator, torch.Generator):
        return None
    return skip(_weighted_chunks(sampler), start)


def _weighted_chunks(sampler: WeightedRandomSampler) -> Chunks:
    drawn = torch.multinomial(
        sampler.weights, sampler.num_samples, sampler.replacement, generator=sampler.generator
    )
    yield drawn.cpu().numpy()


_KNOWN: dict[type, Callable[[Any, int], Chunks | None]] = {
    SequentialSampler: _sequential,
    RandomSampler: _random,
    SubsetRandomSampler: _subset,
    WeightedRandomSampler: _weighted,
    DistributedSampler: distributed_chunks,
}
