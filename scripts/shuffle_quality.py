"""How well windows of shards mix, beside WebDataset's buffer: the table of the guide, in Markdown.

    python scripts/shuffle_quality.py

128 shards of 1,000 samples each, in batches of 256; medians over five epochs.
"""

import random
from collections.abc import Iterator
from statistics import median

import numpy as np
import numpy.typing as npt
import torch

from headrace import GroupSampler

SHARDS, ROWS, BATCH, EPOCHS = 128, 1_000, 256, 5
Order = npt.NDArray[np.int64]


def of_window(window: int, seed: int) -> Order:
    """Shards in random order, mixed so many at a time."""
    sizes = np.full(SHARDS, ROWS)
    sampler = GroupSampler(sizes, window, torch.Generator().manual_seed(seed))
    return np.concatenate([*sampler.index_chunks()])


def of_webdataset(buffer: int, seed: int) -> Order:
    """Shards in random order, through WebDataset's own buffer."""
    from webdataset.filters import _shuffle

    draw = random.Random(seed)
    shards = list(range(SHARDS))
    draw.shuffle(shards)
    rows: Iterator[int] = (shard * ROWS + row for shard in shards for row in range(ROWS))
    return np.array([*_shuffle(rows, buffer, min(buffer, 100), draw)])


def figures(order: Order) -> tuple[float, float, float]:
    """Return distinct shards in a batch, the largest displacement, and the rank correlation.

    A displacement is how far a sample is from its place in the order of the shards as they come,
    in parts of the epoch; the correlation is Spearman's, between the two orders.
    """
    assert np.array_equal(np.sort(order), np.arange(SHARDS * ROWS))
    shards = order // ROWS
    batches = shards[: len(shards) // BATCH * BATCH].reshape(-1, BATCH)
    distinct = float(np.mean([len(np.unique(batch)) for batch in batches]))
    first_seen = np.unique(shards, return_index=True)[1]
    rank = np.empty(SHARDS, np.int64)
    rank[np.argsort(first_seen)] = np.arange(SHARDS)
    unmixed = rank[shards] * ROWS + order % ROWS
    moved = np.abs(unmixed - np.arange(len(order)))
    correlation = float(np.corrcoef(unmixed, np.arange(len(order)))[0, 1])
    return distinct, float(moved.max()) / len(order), correlation


def main() -> None:
    """Print the table."""
    rows = [(f"`shuffle_shards={n}`", of_window, n) for n in (1, 4, 16)]
    rows.append(("all shards: a full shuffle", of_window, SHARDS))
    rows += [(f"WebDataset, a buffer of {n:,}", of_webdataset, n) for n in (1_000, 10_000)]
    print("| | shards in a batch | largest displacement | rank correlation |")
    print("|---|--:|--:|--:|")
    for name, make, size in rows:
        seen = [figures(make(size, seed)) for seed in range(EPOCHS)]
        distinct, moved, correlation = (median(column) for column in zip(*seen, strict=True))
        print(f"| {name} | {distinct:.1f} | {moved:.1%} | {correlation:.3f} |")


if __name__ == "__main__":
    main()
