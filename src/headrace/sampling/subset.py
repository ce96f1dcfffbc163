"""A random order of some of a dataset's samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import SubsetRandomSampler as TorchSubsetRandomSampler

from headrace.sampling.order import Chunks, index_chunks
from headrace.sampling.permute import permutation

PIECE = 1024


class SubsetRandomSampler(TorchSubsetRandomSampler):
    """Yields given indices in random order, each once: torch's order for the same generator.

    Args:
        indices: list, tensor or array of shape (samples,). It is read while iterating, and never
            turned into a list as a whole.
        generator: where the order comes from; None is torch's global generator.

    Raises:
        ValueError: an array or tensor that is not one-dimensional.
    """

    def __init__(
        self,
        indices: Sequence[int] | torch.Tensor | npt.NDArray[Any],
        generator: torch.Generator | None = None,
    ) -> None:
        shape = getattr(indices, "shape", (0,))
        if len(shape) != 1:
            raise ValueError(
                f"indices must be one-dimensional, got shape {tuple(shape)}. "
                f"Write SubsetRandomSampler(mask.nonzero().flatten()) for a mask."
            )
        super().__init__(indices, generator)  # type: ignore[arg-type]

    def index_chunks(self, start: int = 0) -> Chunks | None:
        """Return the order from `start` on as arrays; None if the indices are not integers."""
        return index_chunks(TorchSubsetRandomSampler(self.indices, self.generator), start)

    def __iter__(self) -> Iterator[int]:
        order = permutation(len(self.indices), self.generator)
        for low in range(0, len(order), PIECE):
            places = order[low : low + PIECE]
            if isinstance(self.indices, (torch.Tensor, np.ndarray)):
                yield from self.indices[places.astype(np.int64)].tolist()
            else:
                yield from [self.indices[i] for i in places.tolist()]
