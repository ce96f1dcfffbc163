"""Several sequences in one row: which of them share a row of a given number of tokens."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from headrace.sampling.cutting import Layout, LengthClasses
from headrace.sampling.lengths import LengthBatchSampler
from headrace.sampling.planned import Indices, check_ranks, check_size

# More distinct lengths than this are rounded up for packing: 1/8192 of a row at most.
RESOLUTION = 8192


class PackedBatchSampler(LengthBatchSampler):
    """Batches that are one full row each: several sequences of `max_tokens` together, at most.

    Use it with `pack_collate`. Which lengths share a row is found once, by best-fit decreasing
    over the histogram of lengths (Krell et al., "Efficient sequence packing without
    cross-contamination", 2021); which samples of a length those are, and the order of the rows,
    is shuffled anew in each epoch, as a function of one int64 drawn from `generator`. So `len()`
    is the same for each epoch. Rows of few long and rows of many short sequences both occur: a
    loss that is averaged over tokens weighs them alike.

    Args:
        lengths: shape (samples,), integers: the length of each sample.
        max_tokens: tokens in a row, at most.
        shuffle: False gives the same rows in each epoch, those with the longest sequences first.
        drop_last: leave out the rows, fewer than `num_replicas`, that do not go round.
        oversize: what to do with a sample of more than `max_tokens`: "raise", or "skip" it
            (`skipped` says how many).
        generator: where the order comes from; None is torch's global generator. All ranks have to
            draw the same.
        num_replicas: number of ranks; each gets equally many rows.
        rank: which of them this is.

    Raises:
        ValueError: options that contradict each other; a sample that exceeds `max_tokens`.
        TypeError: lengths that are not integers.
    """

    def __init__(
        self,
        lengths: Sequence[int] | torch.Tensor | npt.NDArray[Any],
        max_tokens: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        oversize: Literal["raise", "skip"] = "raise",
        generator: torch.Generator | None = None,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        ranks = check_ranks(num_replicas, rank)
        self.max_tokens = check_size("max_tokens", max_tokens)
        if generator is not None and not shuffle:
            raise ValueError("generator= does nothing with shuffle=False. Leave one of them out.")
        if drop_last and num_replicas == 1:
            raise ValueError(
                "drop_last does nothing with one rank: every row is as full as it gets. "
                "Leave it out, or give num_replicas= and rank=."
            )
        kept_lengths = self._keep(
            lengths,
            max_tokens,
            shuffle=shuffle,
            drop_last=drop_last,
            oversize=oversize,
            generator=generator,
            ranks=ranks,
        )
        self._classes = LengthClasses.of(kept_lengths, 0.0)
        self._layout = self._arrange()

    @property
    def fill(self) -> float:
        """The share of the rows' places that hold tokens, over all ranks."""
        rows = self._layout.steps * self.num_replicas
        assert self._layout.places is not None
        tokens = int(self._classes.longest[self._layout.places].sum())
        return tokens / (rows * self.max_tokens) if rows else 0.0

    def _options(self) -> dict[str, Any]:
        return {"max_tokens": self.max_tokens}

    def _arrange(self) -> Layout:
        row, budget = self._classes.longest, self.max_tokens
        rows = pack(row, budget)
        left = len(rows) % self.num_replicas
        if left:
            # The last rows hold the shortest sequences, which are shared most easily.
            whole = len(rows) - left
            rest = [] if self.drop_last else _share(rows[whole:], row, budget, self.num_replicas)
            while not self.drop_last and not rest:
                whole -= self.num_replicas
                if whole < 0:
                    raise ValueError(
                        f"{len(row)} samples cannot be shared evenly among "
                        f"num_replicas={self.num_replicas}: each row of {budget} tokens needs one "
                        f"at least. Write drop_last=True, or use fewer ranks."
                    )
                rest = _share(rows[whole:], row, budget, self.num_replicas)
            rows = rows[:whole] + rest
        sizes = np.array([len(r) for r in rows], np.int64)
        places = np.concatenate(rows) if rows else np.empty(0, np.int64)
        return Layout(np.concatenate([[0], np.cumsum(sizes)]), places, self.num_replicas)


def pack(row: Indices, budget: int) -> list[Indices]:
    """Pack lengths into as few rows as best-fit decreasing finds.

    Args:
        row: lengths, falling, at most `budget`, shape (samples,).
        budget: tokens in a row.

    Returns:
        The places of each row's sequences, longest first.
    """
    sizes, room = np.maximum(row, 1), budget
    values = np.unique(sizes)
    if len(values) > RESOLUTION:
        unit = -(-budget // RESOLUTION)
        room = budget // unit
        sizes = np.minimum(-(-sizes // unit), room)
        # Rounded up, the longest may be longer than the row rounded down: such a one is alone.
        values = np.unique(sizes)
    counts = np.bincount(sizes)
    groups = _best_fit(values[::-1].tolist(), counts, room)
    groups.sort(key=lambda group: -group[0][0][0])  # by the longest sequence
    # Hand out the places: those of one size in their order, group after group.
    next_place = dict(zip(values[::-1].tolist(), _starts(counts[values[::-1]]), strict=True))
    rows: list[Indices] = []
    for content, times in groups:
        columns = []
        for size, each in content:
            start = next_place[size]
            next_place[size] = start + each * times
            columns.append(np.arange(start, start + each * times).reshape(times, each))
        rows.extend(np.concatenate(columns, axis=1))
    return rows


def _starts(counts: Indices) -> list[int]:
    starts: list[int] = (np.cumsum(counts) - counts).tolist()
    return starts


Content = tuple[tuple[int, int], ...]


def _best_fit(sizes: list[int], counts: Indices, room: int) -> list[tuple[Content, int]]:
    """Best-fit decreasing for all sequences of a size, and all rows alike, at once.

    Returns the contents of the rows, ((size, how many of it), ...), and how many rows have each.
    """
    # Rows with the same room left: remaining tokens -> [(content, number of rows)].
    open_rows: dict[int, list[tuple[Content, int]]] = {}
    remaining: list[int] = []  # the keys, sorted
    full: list[tuple[Content, int]] = []

    def put(left: int, content: Content, times: int) -> None:
        if left < sizes[-1]:
            full.append((content, times))
            return
        if left not in open_rows:
            open_rows[left] = []
            bisect.insort(remaining, left)
        open_rows[left].append((content, times))

    for size in sizes:
        count = int(counts[size])
        at = bisect.bisect_left(remaining, size)
        while count and at < len(remaining):
            left = remaining[at]  # the least room that suffices
            each = min(left // size, count)
            content, times = open_rows[left].pop()
            if not open_rows[left]:
                del open_rows[left]
                del remaining[at]
            used = min(times, count // each)
            if used < times:
                put(left, content, times - used)
            put(left - each * size, (*content, (size, each)), used)
            count -= used * each
            at = bisect.bisect_left(remaining, size)
        each = room // size
        if count >= each:
            put(room - each * size, ((size, each),), count // each)
        if count % each:
            put(room - count % each * size, ((size, count % each),), 1)
    return full + [group for left in remaining for group in open_rows[left]]


def _share(rows: list[Indices], row: Indices, budget: int, ranks: int) -> list[Indices]:
    """Deal the sequences of some rows to the next multiple of `ranks`; [] if there is no way."""
    places = np.sort(np.concatenate(rows))
    count = -(-len(rows) // ranks) * ranks
    if len(places) < count:
        return []
    # Longest first to the emptiest: the rows of the last step have about the same tokens.
    emptiest = [(0, r) for r in range(count)]
    dealt: list[list[int]] = [[] for _ in range(count)]
    for place, size in zip(places.tolist(), row[places].tolist(), strict=True):
        tokens, r = heapq.heappop(emptiest)
        if tokens + size > budget:
            return []
        dealt[r].append(place)
        heapq.heappush(emptiest, (tokens + max(size, 1), r))
    return [np.array(d) for d in dealt]
