"""``headrace bench batching``: how much of a batch is padding, and what planning an epoch costs."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import BatchSampler, RandomSampler

from headrace.bench.harness import (
    Report,
    Row,
    Say,
    Size,
    Spread,
    System,
    at_least,
    at_most,
    environment,
    in_turn,
    spread,
)
from headrace.sampling.buckets import BucketBatchSampler
from headrace.sampling.packing import PackedBatchSampler
from headrace.sampling.planned import PlannedBatchSampler
from headrace.sampling.weighted import TORCH_WEIGHTS, WeightedRandomSampler

Lengths = npt.NDArray[np.int64]

_MAX_TOKENS = 16_384
_LONGEST = 4_096
_RANKS = 8
_OURS = "headrace"

_MEANING = (
    "1,000,000 log-normal lengths, mean 200, sigma 1, cut at 4,096; max_tokens=16,384; another "
    "seed in each round",
    "padding: the share of a batch's places that hold none, over an epoch; fixed batches are 32 "
    "samples of a shuffle; the 1.5 rule starts a batch when a sequence is 1.5 times longer than "
    "the first and the batch has 8, over all lengths sorted, and bounds no batch",
    "planning: from the seed to all batches of the epoch; torch's BatchSampler(RandomSampler) "
    "makes batches of 32 without looking at a length",
    "correlations are those of a sample's batch number with its length and with its index, in "
    "standard deviations of a shuffle: 1 / sqrt(batches) for the length, as those of a batch are "
    "alike, 1 / sqrt(samples) for the index",
    f"over {_RANKS} ranks: the largest difference of padded tokens within a step",
    "weights: 100,000,000 Pareto weights, with replacement, once the table stands; torch refuses "
    "more than 2^24; the other system searches the running sum of the weights",
)


def measure(size: Size, say: Say) -> Report:
    """Measure all rows; takes about a minute and 4 GB, some seconds when quick."""
    where = environment()
    samples = size.choose(1_000_000, 50_000)
    lengths = log_normal_lengths(samples)
    say(f"{samples:,} lengths")
    buckets = BucketBatchSampler(lengths, max_tokens=_MAX_TOKENS)
    packed = PackedBatchSampler(lengths, _MAX_TOKENS)
    rows = [
        _padding_row(lengths, buckets, size),
        _fill_row(lengths, packed, size),
        *_planning_rows(lengths, buckets, packed, size),
        *_shuffle_rows("buckets", lengths, buckets, size),
        *_shuffle_rows("packed rows", lengths, packed, size),
        _ranks_row(lengths, size),
        _weights_row(size, say),
    ]
    return Report("batching", _MEANING, tuple(rows), size, where)


def log_normal_lengths(samples: int) -> Lengths:
    """Return lengths with mean 200 and sigma 1, from 1 to 4,096."""
    drawn = np.random.default_rng(0).lognormal(np.log(200) - 0.5, 1.0, samples)
    return np.clip(np.round(drawn), 1, _LONGEST).astype(np.int64)


def _padded_sizes(lengths: Lengths, plan: tuple[Lengths, Lengths]) -> Lengths:
    """Return the places of each batch: its samples times the longest of them."""
    indices, offsets = plan
    longest = np.maximum.reduceat(lengths[indices], offsets[:-1])
    return np.asarray(longest * np.diff(offsets))


def _padding_percent(lengths: Lengths, plan: tuple[Lengths, Lengths]) -> float:
    tokens = int(lengths[plan[0]].sum())
    return 100 * (1 - tokens / int(_padded_sizes(lengths, plan).sum()))


def _padding_row(lengths: Lengths, buckets: BucketBatchSampler, size: Size) -> Row:
    n = len(lengths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the sizes of its batches
        rule = BucketBatchSampler(lengths, max_ratio=1.5, min_batch_size=8, spread=0.0)

    def fixed(seed: int) -> tuple[Lengths, Lengths]:
        shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).numpy()
        return shuffled, np.append(np.arange(0, n, 32), n)

    plans: dict[str, Callable[[int], tuple[Lengths, Lengths]]] = {
        _OURS: buckets.plan,
        "fixed batches of 32": fixed,
        "the 1.5 rule": rule.plan,
    }
    percent = {
        name: spread([_padding_percent(lengths, plan(seed)) for seed in range(size.rounds)])
        for name, plan in plans.items()
    }
    largest = int(_padded_sizes(lengths, buckets.plan(0)).max())
    return Row(
        work=f"buckets, max_tokens={_MAX_TOKENS:,}",
        figure="padding",
        value=percent[_OURS],
        unit="%",
        target=at_most(3.0),
        systems=tuple(System(name, value, "%") for name, value in percent.items()),
        note=f"largest batch {largest:,} tokens",
    )


def _fill_row(lengths: Lengths, packed: PackedBatchSampler, size: Size) -> Row:
    fills = []
    for seed in range(size.rounds):
        indices, offsets = packed.plan(seed)
        fills.append(100 * int(lengths[indices].sum()) / ((len(offsets) - 1) * _MAX_TOKENS))
    return _row_of_ours("packed rows", "fill", fills, "%", at_least(98.0))


def _planning_rows(
    lengths: Lengths, buckets: BucketBatchSampler, packed: PackedBatchSampler, size: Size
) -> list[Row]:
    theirs = BatchSampler(RandomSampler(range(len(lengths))), 32, drop_last=False)

    def timed(work: Callable[[], Any]) -> Callable[[], float]:
        def run() -> float:
            started = time.perf_counter()
            work()
            return time.perf_counter() - started

        return run

    seconds = in_turn(
        {
            "buckets": timed(lambda: buckets.plan(1)),
            "packed rows": timed(lambda: packed.plan(1)),
            "torch": timed(lambda: list(theirs)),
            "new buckets": timed(lambda: BucketBatchSampler(lengths, max_tokens=_MAX_TOKENS)),
            "new packed rows": timed(lambda: PackedBatchSampler(lengths, _MAX_TOKENS)),
        },
        size.rounds,
    )
    return [
        Row(
            work=name,
            figure="planning an epoch",
            value=spread(seconds[name]),
            unit="s",
            target=at_most(1.5),
            systems=(
                System(_OURS, spread(seconds[name]), "s"),
                System("torch BatchSampler", spread(seconds["torch"]), "s"),
            ),
            note=f"once, for the lengths: {spread(seconds[f'new {name}']).median:.2g} s",
        )
        for name in ("buckets", "packed rows")
    ]


def _shuffle_rows(
    name: str, lengths: Lengths, sampler: PlannedBatchSampler, size: Size
) -> list[Row]:
    with_length, with_index = [], []
    for seed in range(size.rounds):
        indices, offsets = sampler.plan(seed)
        batch = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        of_length = np.corrcoef(batch, lengths[indices])[0, 1]
        with_length.append(abs(of_length) * np.sqrt(len(offsets) - 1))
        with_index.append(abs(np.corrcoef(batch, indices)[0, 1]) * np.sqrt(len(indices)))
    return [
        _row_of_ours(name, f"correlation of batch and {other}", values, "sd", at_most(3.0))
        for other, values in (("length", with_length), ("index", with_index))
    ]


def _ranks_row(lengths: Lengths, size: Size) -> Row:
    samplers = [
        BucketBatchSampler(lengths, max_tokens=_MAX_TOKENS, num_replicas=_RANKS, rank=rank)
        for rank in range(_RANKS)
    ]
    largest = []
    for seed in range(size.rounds):
        tokens = np.array([_padded_sizes(lengths, sampler.plan(seed)) for sampler in samplers])
        largest.append(100 * float((1 - tokens.min(0) / tokens.max(0)).max()))
    return _row_of_ours(
        f"buckets over {_RANKS} ranks", "tokens of a step, apart", largest, "%", at_most(5.0)
    )


def _weights_row(size: Size, say: Say) -> Row:
    n = size.choose(100_000_000, TORCH_WEIGHTS + 1)
    draws = size.choose(20_000_000, 1_000_000)
    say(f"{n:,} weights")
    weights = torch.from_numpy(np.random.default_rng(0).pareto(2.0, n))
    sampler = WeightedRandomSampler(weights, draws)
    started = time.perf_counter()
    next(sampler.index_chunks())
    first_s = time.perf_counter() - started
    sums = torch.cumsum(weights, 0)
    fewer = draws // 20  # it takes a microsecond for each

    def ours() -> float:
        started = time.perf_counter()
        for _ in sampler.index_chunks():
            pass
        return draws / (time.perf_counter() - started) / 1e6

    def searched() -> float:
        started = time.perf_counter()
        torch.searchsorted(sums, torch.rand(fewer, dtype=torch.float64) * sums[-1])
        return fewer / (time.perf_counter() - started) / 1e6

    rates = in_turn({_OURS: ours, "search of the running sum": searched}, size.rounds)
    return Row(
        work=f"{n:,} weights",
        figure="draws with replacement",
        value=spread(rates[_OURS]),
        unit="M/s",
        target=at_least(10.0),
        systems=tuple(System(name, spread(rate), "M/s") for name, rate in rates.items()),
        note=f"first draw, with the table: {first_s:.2g} s",
    )


def _row_of_ours(work: str, figure: str, values: list[float], unit: str, target: Any) -> Row:
    value: Spread = spread([float(v) for v in values])
    return Row(work, figure, value, unit, target, (System(_OURS, value, unit),))
