"""Samples drawn with given probabilities: torch's draws, and a table for more than 2^24."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import WeightedRandomSampler as TorchWeightedRandomSampler

from headrace.sampling.order import Chunks, skip
from headrace.sampling.planned import Indices, draw_seed

# torch.multinomial refuses more categories.
TORCH_WEIGHTS = 2**24
# Indices drawn together: large enough for NumPy, small enough for the second-level cache.
BLOCK = 2**16
# The weights become integers that add up to a little less than 2^63, so that a random number of
# 63 bits is hardly ever above their sum (and is then drawn again).
SCALE = float(2**63 - 2**43)

Weights = npt.NDArray[np.float64]


class WeightedRandomSampler(TorchWeightedRandomSampler):
    """Draws indices with given weights, with or without replacement, of any number.

    With up to 2^24 weights these are torch's draws for the same generator. Beyond that torch
    refuses; here one int64 from the generator seeds NumPy's PCG64, and

    - with replacement, a draw is a random 63-bit integer looked up in the weights' running sum
      through a cutpoint table (Chen and Asau, "On generating random variates from an empirical
      distribution", 1974): two or three memory accesses, whatever the number of weights. Weights
      are rounded to 53 bits, and to 2^-63 of their sum, nothing else is approximate;
    - without replacement, the `num_samples` smallest of -log(u) / weight are taken in order
      (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006).

    Args:
        weights: shape (samples,), not negative; they need not add up to 1.
        num_samples: indices in an epoch.
        replacement: whether an index may come more than once.
        generator: where the draws come from; None is torch's global generator.

    Raises:
        ValueError: a weight that is negative, infinite or NaN; all weights 0; without
            replacement, fewer weights above 0 than `num_samples`.
    """

    def __init__(
        self,
        weights: Sequence[float] | torch.Tensor | npt.NDArray[Any],
        num_samples: int,
        replacement: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(weights, num_samples, replacement, generator)  # type: ignore[arg-type]
        _check(self.weights, num_samples, replacement)
        self._table: CutpointTable | None = None
        self._table_of: tuple[torch.Tensor, int] | None = None

    def index_chunks(self, start: int = 0) -> Chunks:
        """Yield the order from position `start` on as int64 arrays; draws like `iter()`."""
        if len(self.weights) <= TORCH_WEIGHTS:
            return skip(self._torch_chunks(), start)
        return self._table_chunks(start) if self.replacement else skip(self._smallest(), start)

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(
            piece.tolist()
            for chunk in self.index_chunks()
            for piece in np.array_split(chunk, -(-len(chunk) // BLOCK))
        )

    def _torch_chunks(self) -> Chunks:
        drawn = torch.multinomial(
            self.weights, self.num_samples, self.replacement, generator=self.generator
        )
        yield drawn.cpu().numpy()

    def _table_chunks(self, start: int) -> Chunks:
        bits = np.random.PCG64(draw_seed(self.generator) & (2**64 - 1))
        table = self._current_table()
        left = self.num_samples
        while left > 0:
            numbers = table.numbers(bits, min(BLOCK, left))
            left -= len(numbers)
            if start < len(numbers):
                yield table.find(numbers[start:])
            start = max(0, start - len(numbers))

    def _smallest(self) -> Chunks:
        bits = np.random.PCG64(draw_seed(self.generator) & (2**64 - 1))
        yield smallest_keys(self.weights.numpy(force=True), self.num_samples, bits)

    def _current_table(self) -> CutpointTable:
        """Build the table once, and again when someone changed the weights."""
        known = (self.weights, self.weights._version)
        if self._table is None or self._table_of is None or not _same(self._table_of, known):
            self._table = CutpointTable(self.weights.numpy(force=True))
            self._table_of = known
        return self._table

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None, "_table_of": None}  # large, and quickly rebuilt


def _same(one: tuple[torch.Tensor, int], other: tuple[torch.Tensor, int]) -> bool:
    return one[0] is other[0] and one[1] == other[1]


def _check(weights: torch.Tensor, num_samples: int, replacement: bool) -> None:
    if weights.numel() == 0:
        raise ValueError("weights are empty: there is nothing to draw from.")
    low, high = (float(v) for v in weights.aminmax())
    if not (low >= 0 and high < float("inf")):  # NaN compares false
        wrong = ~((weights >= 0) & (weights < float("inf")))
        at = int(wrong.nonzero()[0])
        raise ValueError(
            f"weights must be finite and not negative, but weights[{at}] is {float(weights[at])}. "
            f"Write weights=1 / class_counts[labels], for example."
        )
    if high == 0:
        raise ValueError("all weights are 0: give at least one sample a weight above 0.")
    if not replacement:
        possible = int(torch.count_nonzero(weights))
        if possible < num_samples:
            raise ValueError(
                f"num_samples={num_samples} without replacement, but only {possible} of "
                f"{len(weights)} weights are above 0. Write num_samples={possible}, or "
                f"replacement=True."
            )


class CutpointTable:
    """The running sum of the weights, and where to start looking in it.

    `_sums[i]` is the sum of the first i + 1 integer weights. `_starts[j]` is the first i whose sum
    is above j << shift: the answer for every number in that bucket lies between `_starts[j]` and
    `_starts[j + 1]`, and with about as many buckets as weights it is one or two steps away.
    """

    def __init__(self, weights: Weights) -> None:
        n = len(weights)
        highest = float(weights.max())
        total = sum(float((weights[a : a + BLOCK] / highest).sum()) for a in range(0, n, BLOCK))
        sums = np.empty(n, np.uint64)
        for a in range(0, n, BLOCK):  # in blocks: no temporaries of the size of the weights
            piece = weights[a : a + BLOCK]
            whole = np.rint(piece / highest * (SCALE / total)).astype(np.uint64)
            sums[a : a + BLOCK] = np.where((piece > 0) & (whole == 0), 1, whole)
        np.cumsum(sums, out=sums)
        self._sums = sums
        self._total = int(sums[-1])
        self._shift = np.uint64(max(0, self._total.bit_length() - n.bit_length()))
        self._starts = self._build_starts()

    def _build_starts(self) -> npt.NDArray[Any]:
        n, shift = len(self._sums), self._shift
        buckets = (self._total >> int(shift)) + 2
        starts: npt.NDArray[Any] = np.zeros(buckets, np.int32 if n < 2**31 else np.int64)
        up = np.uint64((1 << int(shift)) - 1)
        for a in range(0, n, BLOCK):
            # The first bucket that begins at or above each sum: from there on it is passed.
            passed = ((self._sums[a : a + BLOCK] + up) >> shift).astype(np.int64)
            low = int(passed[0])
            counts = np.bincount(passed - low)
            starts[low : low + len(counts)] += counts.astype(starts.dtype)
        np.cumsum(starts, out=starts)
        np.minimum(starts, n - 1, out=starts)
        return starts

    def numbers(self, bits: np.random.PCG64, count: int) -> npt.NDArray[np.uint64]:
        """Draw about `count` numbers below the weights' sum, uniformly; `count` at most."""
        drawn = bits.random_raw(count) >> np.uint64(1)
        return drawn[drawn < np.uint64(self._total)]

    def find(self, numbers: npt.NDArray[np.uint64]) -> Indices:
        """Return for each number the first index whose running sum is above it."""
        buckets = numbers >> self._shift
        found: Indices = self._starts[buckets].astype(np.int64)
        pending = np.flatnonzero(self._sums[found] <= numbers)
        # A step forward settles most; where a bucket holds many small weights, halving does.
        for _ in range(2):
            found[pending] += 1
            pending = pending[self._sums[found[pending]] <= numbers[pending]]
        if len(pending):
            self._halve(found, pending, numbers[pending], buckets[pending])
        return found

    def _halve(
        self,
        found: Indices,
        pending: Indices,
        numbers: npt.NDArray[np.uint64],
        buckets: npt.NDArray[np.uint64],
    ) -> None:
        low = found[pending] + 1
        high = self._starts[buckets + np.uint64(1)].astype(np.int64)
        while np.any(low < high):
            middle = (low + high) >> 1
            above = self._sums[middle] > numbers
            high = np.where(above, middle, high)
            low = np.where(above, low, np.minimum(middle + 1, high))
        found[pending] = high


def smallest_keys(weights: Weights, count: int, bits: np.random.PCG64) -> Indices:
    """Draw `count` indices without replacement: the smallest -log(u) / weight, in order."""
    keys: Weights = np.empty(0)
    indices = np.empty(0, np.int64)
    limit = np.inf
    for a in range(0, len(weights), BLOCK):
        piece = weights[a : a + BLOCK]
        # The middles of 2^53 equal parts of (0, 1): never 0, never 1.
        uniform = ((bits.random_raw(len(piece)) >> np.uint64(11)) + 0.5) * 2.0**-53
        with np.errstate(divide="ignore"):
            key = -np.log(uniform) / piece
        better = np.flatnonzero(key < limit)
        keys = np.concatenate([keys, key[better]])
        indices = np.concatenate([indices, better + a])
        if len(keys) > 2 * count + BLOCK:
            keep = np.argpartition(keys, count - 1)[:count]
            keys, indices = keys[keep], indices[keep]
            limit = float(keys.max())
    return indices[np.argsort(keys, kind="stable")[:count]]
