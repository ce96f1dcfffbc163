"""Every class equally often, however rare it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from headrace.sampling.order import CHUNK, Chunks, skip
from headrace.sampling.permute import permutation
from headrace.sampling.planned import Indices, check_labels, check_size, draw_seed, seeded


class ClassBalancedSampler(Sampler[int]):
    """Draws every class equally often, and within a class every sample equally often.

    Weights of 1 / class count with `WeightedRandomSampler` do that on average; here it holds in
    each epoch. The classes' counts differ by at most 1, and so do the counts of one class's
    samples: a small class is gone through again and again, reshuffled each time, before any of its
    samples is ahead by two; of a large class as many samples as needed are drawn without
    repetition, others in the next epoch. The order over all classes is shuffled.

    An epoch is a function of one int64 drawn from `generator` when its first index is asked for.

    Args:
        labels: shape (samples,), integers or strings: the class of each sample.
        num_samples: indices in an epoch; None is as many as there are labels.
        generator: where the order comes from; None is torch's global generator.

    Raises:
        ValueError: labels that are empty or not one-dimensional; `num_samples` below 1.
    """

    def __init__(
        self,
        labels: Sequence[Any] | torch.Tensor | npt.NDArray[Any],
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.classes, self._codes = check_labels(labels)
        self.num_samples = (
            len(self._codes) if num_samples is None else check_size("num_samples", num_samples)
        )
        self.generator = generator
        self._counts = np.bincount(self._codes)

    def __len__(self) -> int:
        return self.num_samples

    def order_facts(self) -> dict[str, Any]:
        """Return what the order is a function of, beside the seed."""
        return {"labels": self._codes, "num_samples": self.num_samples}

    def index_chunks(self, start: int = 0) -> Chunks:
        """Yield the order from position `start` on as int64 arrays; draws like `iter()`."""
        return skip(self._chunks(), start)

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(chunk.tolist() for chunk in self.index_chunks())

    def _chunks(self) -> Chunks:
        order = self._order(seeded(draw_seed(self.generator)))
        for low in range(0, len(order), CHUNK):
            yield order[low : low + CHUNK]

    def _order(self, generator: torch.Generator) -> Indices:
        counts, classes = self._counts, len(self._counts)
        wanted = np.full(classes, self.num_samples // classes)
        wanted[permutation(classes, generator)[: self.num_samples % classes]] += 1
        rounds = -(-wanted // counts)
        # Each sample once for every time that its class is gone through, in any order: sorted
        # by (class, round), what stays of the shuffle is the order within a round.
        shuffled = permutation(len(self._codes), generator).astype(np.int64)
        codes = self._codes[shuffled]
        repeats = rounds[codes]
        samples, codes = np.repeat(shuffled, repeats), np.repeat(codes, repeats)
        round_of = np.arange(len(samples)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        group = (np.cumsum(rounds) - rounds)[codes] + round_of
        by_group = np.argsort(group, kind="stable")
        # The last round of a class may stop early.
        sizes = rounds * counts
        place = np.arange(len(samples)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        drawn: Indices = samples[by_group[place < np.repeat(wanted, sizes)]]
        return drawn[permutation(len(drawn), generator)]
