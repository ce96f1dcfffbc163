"""One global order, divided among ranks: arithmetic on positions, no communication.

Step s of an epoch takes the s-th *global batch* off the global order, `world_size *
batch_size` consecutive positions, and each rank takes its consecutive part of that. So the
samples of a step do not depend on how many ranks share them, and a position in the global
order says all there is to know about progress: other ranks can go on from there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from headrace.errors import OptionError, StateError
from headrace.sampling.permute import IndexArray

Uneven = Literal["exact", "pad", "drop"]
UNEVEN = ("exact", "pad", "drop")


@dataclass(frozen=True)
class Shard:
    """One rank's part of every global batch.

    What happens to a last global batch that is not full is `uneven`'s to say:

    - "exact": every sample once over all ranks. The last global batch is divided evenly, the
      first ranks taking one more. If it has fewer samples than there are ranks, the global
      batch before it gives some up, so that each rank has one: all ranks take the same number
      of steps. That cannot be where an epoch has fewer samples than ranks, or where
      `batch_size` is 1 and the ranks do not divide the samples: then the first ranks take one
      step more than the others (see `has_equal_steps`).
    - "pad": samples of the last global batch are repeated until the ranks divide it.
    - "drop": samples are left out at the end until the ranks divide it.

    Arguments:
        rank, world_size: which of how many.
        batch_size: samples a rank takes in a step.
        drop_last: leave out a last global batch that is not full (after padding).

    Raises:
        OptionError: a value that cannot be.
    """

    rank: int
    world_size: int
    batch_size: int
    uneven: Uneven = "exact"
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise OptionError(
                f"shard is (rank, world_size) with 0 <= rank < world_size, got "
                f"({self.rank}, {self.world_size}): the first of 2 ranks is shard=(0, 2)"
            )
        if self.batch_size < 1:
            raise OptionError(f"batch_size of a rank must be at least 1, got {self.batch_size}")
        if self.uneven not in UNEVEN:
            raise OptionError(
                f"uneven is one of 'exact', 'pad' and 'drop', got {self.uneven!r}: write "
                f"DataLoader(..., uneven='exact'), or leave it out"
            )

    @property
    def global_batch(self) -> int:
        """Samples that all ranks together take in a step."""
        return self.world_size * self.batch_size

    def steps(self, length: int, start: int = 0) -> int:
        """Count the global batches from global position `start` of `length` samples on.

        It is each rank's number of steps too, or one more where `has_equal_steps` is false.
        """
        left = max(0, length - start)
        if self.uneven == "drop":
            left -= left % self.world_size
        elif self.uneven == "pad":
            left = _ceil_div(left, self.world_size) * self.world_size
        return left // self.global_batch if self.drop_last else _ceil_div(left, self.global_batch)

    def rank_steps(self, length: int, start: int = 0) -> int:
        """Count this rank's own steps from global position `start` on."""
        steps = self.steps(length, start)
        if steps == 0:
            return 0
        first, last = self.bounds(length, steps - 1, start)
        return steps if self.uneven == "pad" or last - first > self.rank else steps - 1

    def has_equal_steps(self, length: int, start: int = 0) -> bool:
        """Whether every rank takes the same number of steps from `start` on."""
        steps = self.steps(length, start)
        if steps == 0 or self.uneven != "exact":
            return True
        first, last = self.bounds(length, steps - 1, start)
        return last - first >= self.world_size

    def bounds(self, length: int, step: int, start: int = 0) -> tuple[int, int]:
        """Return the global positions [first, last) that all ranks take at `step` after `start`.

        Raises:
            IndexError: there is no such step.
        """
        steps = self.steps(length, start)
        if not 0 <= step < steps:
            raise IndexError(
                f"step {step} is outside the {steps} steps of {length - start} samples"
            )
        end = length
        if self.uneven == "drop":
            end -= (length - start) % self.world_size
        return (
            self._boundary(step, steps, start, end),
            self._boundary(step + 1, steps, start, end),
        )

    def _boundary(self, step: int, steps: int, start: int, end: int) -> int:
        """Where `step` begins, given that there are `steps` of them in [start, end)."""
        position = min(start + step * self.global_batch, end)
        if step != steps - 1 or self.uneven != "exact" or self.drop_last:
            return position
        # Too few are left for every rank to have one: the step before gives some up. With two
        # or more a rank it keeps at least as many as there are ranks.
        if step > 0 and self.batch_size > 1 and end - position < self.world_size:
            return end - self.world_size
        return position

    def part(self, size: int) -> tuple[int, int]:
        """Return this rank's part [first, last) of a global batch of `size` samples.

        With "pad", places from `size` on stand for the samples from the beginning of the
        batch again: that repeats what is at hand, so that resuming reads nothing before it.
        """
        if self.uneven == "pad":
            size = _ceil_div(size, self.world_size) * self.world_size
        each, more = divmod(size, self.world_size)
        first = self.rank * each + min(self.rank, more)
        return first, first + each + (self.rank < more)

    def take(self, indices: IndexArray) -> IndexArray:
        """Return this rank's indices out of one global batch's, shape (at most batch_size,)."""
        first, last = self.part(len(indices))
        if last <= len(indices):
            return indices[first:last]
        return indices[np.arange(first, last) % len(indices)]

    def batches(
        self, chunks: Iterator[IndexArray], length: int, start: int = 0
    ) -> Iterator[IndexArray]:
        """Cut a global order into this rank's batches of indices.

        Arguments:
            chunks: the global order from position `start` on, in arrays of any size.
            length: samples in the whole order.
            start: the global position to go on from.
        """
        rest: IndexArray = np.empty(0, dtype=np.int64)
        for step in range(self.steps(length, start)):
            first, last = self.bounds(length, step, start)
            rest = _fill(rest, chunks, last - first)
            mine = self.take(rest[: last - first])
            rest = rest[last - first :]
            if len(mine):
                yield mine
        for _ in chunks:  # what an order draws at its end, the next epoch depends on
            pass


def _fill(have: IndexArray, chunks: Iterator[IndexArray], wanted: int) -> IndexArray:
    while len(have) < wanted:
        chunk = next(chunks, None)
        if chunk is None:
            break
        # A whole permutation in one chunk is sliced, never copied.
        have = cast("IndexArray", np.concatenate((have, chunk))) if len(have) else chunk
    return have


def rank_batch_size(global_batch: int, world_size: int) -> int:
    """Derive a rank's batch size when `world_size` ranks go on with an epoch begun by others.

    Raises:
        StateError: the ranks do not divide the global batch of the state.
    """
    if global_batch % world_size == 0:
        return global_batch // world_size
    # A damaged state may hold any number: look at as many ranks as there could be.
    fitting = [str(n) for n in range(1, min(global_batch, 65_536) + 1) if global_batch % n == 0]
    below = ", ".join(fitting if len(fitting) <= 12 else [*fitting[:12], "..."])
    raise StateError(
        f"the state was saved with a global batch of {global_batch} samples, which "
        f"{world_size} ranks cannot share evenly: start {below} ranks, or load the state "
        f"into a loader with that global batch and begin a new epoch"
    )


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
