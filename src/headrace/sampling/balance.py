"""As many batches for each rank, and in each step about as many tokens."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from headrace.sampling.cutting import Layout, Limits, cut
from headrace.sampling.planned import Indices, spans

# Batches of one step differ by at most this in what they may measure. What they do measure
# can be 1 % less (the spread of a length class), which makes 5 % in all.
TOLERANCE = 0.04
# So many steps are broken up, at most, to make what is left over fit.
RETRIES = 8


@dataclass
class _Batch:
    """The places [start, start + size), whose longest sample has the length `longest`."""

    start: int
    size: int
    longest: int
    filled: int  # the sum of all its lengths

    @property
    def tokens(self) -> int:
        return self.size * self.longest


@dataclass
class _Steps:
    ranks: int
    batches: list[Indices] = field(default_factory=list)

    def add(self, batches: list[_Batch]) -> None:
        self.batches += [np.arange(b.start, b.start + b.size) for b in batches]


def share(
    offsets: Indices, longest: Indices, shortest: Indices, limits: Limits, *, ranks: int, drop: bool
) -> Layout:
    """Arrange batches into steps of one batch for each rank.

    With a token budget, the batches of a step have padded sizes within `TOLERANCE`: a batch that
    the budget fits badly (one of 600 tokens has 1,000, say) goes with others like it, and where
    there are none, batches of short samples, which can be cut at any size, are cut to its size.
    What is left over in the end is short samples; they are dealt out evenly.

    Args:
        offsets: batches of the row of lengths, shape (batches + 1,).
        longest: upper bound of the length at each place, falling, shape (samples,).
        shortest: lower bound of it.
        limits: what bounds a batch.
        ranks: number of ranks.
        drop: leave out the samples that do not fill a step.
    """
    filled = np.add.reduceat(longest, offsets[:-1]).tolist()
    bounds = zip(offsets[:-1].tolist(), offsets[1:].tolist(), filled, strict=True)
    batches = [_Batch(a, b - a, max(int(longest[a]), 1), sum_) for a, b, sum_ in bounds]
    steps = _Steps(ranks)
    if limits.max_tokens is None:
        # The last one may be smaller: a step with it has to be dealt out evenly.
        short = limits.max_ratio is None and batches[-1].size < batches[0].size
        whole = (len(batches) - short) // ranks * ranks
        steps.add(batches[:whole])
        left = batches[whole:]
    else:
        left = _equal_tokens(batches, steps)
    if left and not drop:
        _deal_rest(left, steps, longest, shortest, limits)
    sizes = np.array([len(b) for b in steps.batches], np.int64)
    places = np.concatenate(steps.batches) if steps.batches else np.empty(0, np.int64)
    return Layout(np.concatenate([[0], np.cumsum(sizes)]), places, ranks)


def _equal_tokens(batches: list[_Batch], steps: _Steps) -> list[_Batch]:
    """Form steps of batches of nearly equal padded size; return what is left over."""
    budget = max(b.tokens for b in batches)
    # A coarse batch has half the budget or more, so one whose samples have 2 % of the budget
    # can be cut to within 4 % of it: these, "fine", fill up the steps of the others.
    fine = sorted(
        (b for b in batches if b.longest <= TOLERANCE / 2 * budget), key=lambda b: b.longest
    )
    coarse = deque(
        sorted((b for b in batches if b.longest > TOLERANCE / 2 * budget), key=lambda b: b.tokens)
    )
    cuttings: list[_Batch] = []
    while coarse:
        step = [coarse.popleft()]
        while coarse and len(step) < steps.ranks and _alike(coarse[0], step[0]):
            step.append(coarse.popleft())
        _fill(step, fine, cuttings, steps.ranks)
        while coarse and len(step) < steps.ranks:  # nothing fine is left: the nearest in size
            step.append(coarse.popleft())
        if len(step) < steps.ranks:
            return [*step, *cuttings, *fine]
        steps.add(step)
    return [*_group(fine, steps), *cuttings]


def _alike(larger: _Batch, smaller: _Batch) -> bool:
    return smaller.tokens >= (1 - TOLERANCE) * larger.tokens


def _fill(step: list[_Batch], fine: list[_Batch], cuttings: list[_Batch], ranks: int) -> None:
    """Complete a step with fine batches, cut to the size of its largest."""
    target = step[-1].tokens
    unsuitable = []
    while len(step) < ranks and fine:
        batch = fine.pop()
        size = min(batch.size, target // batch.longest)
        if size * batch.longest < (1 - TOLERANCE) * target:
            unsuitable.append(batch)
            continue
        step.append(_Batch(batch.start, size, batch.longest, 0))
        if size < batch.size:
            cuttings.append(_Batch(batch.start + size, batch.size - size, batch.longest, 0))
    fine += reversed(unsuitable)


def _group(batches: list[_Batch], steps: _Steps) -> list[_Batch]:
    """Form steps of batches that are alike; return those that are like no others."""
    rest = sorted(batches, key=lambda b: -b.filled)
    left, at = [], 0
    while at < len(rest):
        group = rest[at : at + steps.ranks]
        alike = group[-1].filled >= (1 - TOLERANCE) * group[0].filled
        by_size = sorted(group, key=lambda b: b.tokens)
        if len(group) == steps.ranks and alike and _alike(by_size[-1], by_size[0]):
            steps.add(group)
            at += steps.ranks
        else:
            left.append(group[0])
            at += 1
    return left


def _deal_rest(
    left: list[_Batch], steps: _Steps, longest: Indices, shortest: Indices, limits: Limits
) -> None:
    """Make whole steps of the samples that are left over."""
    ranks = steps.ranks
    rest = spans(np.array([b.start for b in left]), np.array([b.size for b in left]))
    firsts = np.array([int(b[0]) for b in steps.batches[::ranks]], np.int64)
    best: tuple[float, int, list[Indices]] | None = None
    # Too few samples, too large or too different ones: break up one more step, the shortest.
    shortest_first = np.argsort(-firsts)[:RETRIES]
    for broken in range(len(shortest_first) + 1):
        for s in shortest_first[:broken][-1:]:
            rest = np.concatenate([rest, *steps.batches[s * ranks : (s + 1) * ranks]])
        rest.sort()  # longest first again
        alike, dealt = _deal_within(rest, longest, shortest, limits, ranks)
        if dealt and (best is None or alike > best[0]):
            best = alike, broken, dealt
        if best and (best[0] >= 1 - TOLERANCE or limits.max_tokens is None):
            break
    if best is None:
        raise ValueError(
            f"{len(longest)} samples cannot be shared evenly among num_replicas={ranks} within "
            f"the limits of a batch. Write drop_last=True, or use fewer ranks."
        )
    for s in sorted(shortest_first[: best[1]], reverse=True):
        del steps.batches[s * ranks : (s + 1) * ranks]
    steps.batches += best[2]


def _deal_within(
    places: Indices, longest: Indices, shortest: Indices, limits: Limits, ranks: int
) -> tuple[float, list[Indices]]:
    """Deal the places into as few steps as the limits allow; none if they cannot be.

    Returns how alike the batches of a step are (smallest / largest padded size), and the batches.
    """
    if len(places) < ranks:
        return 0.0, []
    fewest = cut(longest[places], shortest[places], limits)
    if limits.max_ratio is not None:
        return 0.0, _split_evenly(places, fewest, ranks)
    for count in range(max(1, -(-len(fewest) // (2 * ranks))), len(places) // ranks + 1):
        best: tuple[float, list[Indices]] = (0.0, [])
        ways = [_deal(places, longest, count, ranks)]
        if limits.max_tokens is not None:
            ways.append(_slice(places, longest, count * ranks))
        for dealt in ways:
            firsts = np.maximum(longest[np.array([d[0] for d in dealt])], 1)
            sizes = np.array([len(d) for d in dealt])
            if len(dealt) == count * ranks and np.all(sizes <= np.maximum(limits.most(firsts), 1)):
                tokens = (sizes * firsts).reshape(count, ranks)
                best = max(
                    best, (float((tokens.min(1) / tokens.max(1)).min()), dealt), key=lambda d: d[0]
                )
        if best[1]:
            return best
    return 0.0, []


def _deal(places: Indices, longest: Indices, count: int, ranks: int) -> list[Indices]:
    """Deal the places, longest first, into `count` steps of about equally many tokens."""
    tokens = np.cumsum(np.maximum(longest[places], 1))
    marks = tokens[-1] * np.arange(1, count) / count
    # Whole rounds only, so that the ranks of a step get equally many; at least one, at most
    # as many as leave one for each step to come.
    rounds = len(places) // ranks
    ends = np.rint(np.searchsorted(tokens, marks) / ranks).astype(np.int64)
    steps = np.arange(1, count)
    ends = np.maximum.accumulate(np.maximum(ends, 1) - steps) + steps
    ends = np.minimum(ends, rounds - count + steps)
    bounds = [0, *(ends * ranks).tolist(), len(places)]
    dealt = []
    for a, b in pairwise(bounds):
        # Forwards and backwards in turn: nobody gets the longest of every round.
        turns, rank = np.divmod(np.arange(b - a), ranks)
        rank = np.where(turns % 2, ranks - 1 - rank, rank)
        dealt += [places[a:b][rank == r] for r in range(ranks)]
    return dealt


def _slice(places: Indices, longest: Indices, count: int) -> list[Indices]:
    """Cut the places into `count` batches by the smallest token budget that suffices."""
    row = longest[places]
    low, high = max(int(row[0]), 1), max(int(row[0]), 1) * len(places)
    while low < high:
        middle = (low + high) // 2
        if len(cut(row, row, Limits(max_tokens=middle))) - 1 > count:
            low = middle + 1
        else:
            high = middle
    offsets = cut(row, row, Limits(max_tokens=high))
    return [places[a:b] for a, b in pairwise(offsets.tolist())]


def _split_evenly(places: Indices, offsets: Indices, ranks: int) -> list[Indices]:
    """Halve the largest batches until there are as many for each rank: lengths stay together."""
    pieces = [places[a:b] for a, b in pairwise(offsets.tolist())]
    while len(pieces) % ranks:
        pieces.sort(key=len)
        if len(pieces[-1]) < 2:
            return []
        largest = pieces.pop()
        pieces += [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
    return sorted(pieces, key=len)
