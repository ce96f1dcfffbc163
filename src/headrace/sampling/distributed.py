"""`DistributedSampler`: torch's order of one rank, without a Python list of all of them."""

from collections.abc import Iterator
from typing import cast

from torch.utils.data.distributed import DistributedSampler as TorchDistributedSampler

from headrace.sampling.order import Chunks, distributed_chunks


class DistributedSampler(TorchDistributedSampler[int]):
    """Samples this rank's part of the dataset: torch's `DistributedSampler`, as arrays.

    Signature, order, padding, `set_epoch` and errors are torch's. What it costs is one
    permutation of 4 bytes an item in each rank (torch: a Python list of every item).
    `DataLoader(shard=...)` needs neither this sampler nor `set_epoch`, and repeats nothing.
    """

    def __iter__(self) -> Iterator[int]:
        chunks = self.index_chunks()
        if chunks is None:
            return super().__iter__()
        return (index for chunk in chunks for index in cast("list[int]", chunk.tolist()))

    def index_chunks(self, start: int = 0) -> Chunks | None:
        """Yield the order from position `start` on, as `headrace.sampling.order.index_chunks`."""
        return distributed_chunks(self, start)
