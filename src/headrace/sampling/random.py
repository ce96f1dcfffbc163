"""`RandomSampler`: torch's order where a permutation fits, arithmetic beyond it."""

from collections.abc import Iterator, Sized
from typing import Literal, cast

import torch
from torch.utils.data import RandomSampler as TorchRandomSampler

from headrace.errors import OptionError
from headrace.sampling.bijection import Bijection, draws
from headrace.sampling.order import CHUNK, Chunks, draws_on_cpu, random_chunks

Method = Literal["auto", "torch", "bijection"]
METHODS = ("auto", "torch", "bijection")
# The largest shuffle that is torch's own unless asked otherwise: 64 MiB of int32.
TORCH_ITEMS = 2**24


class RandomSampler(TorchRandomSampler):
    """Samples in random order: torch's `RandomSampler`, for datasets of any size.

    Up to 2^24 items the order is torch's for the same generator, without its list of Python
    integers. Beyond that it is a keyed bijection (see `headrace.sampling.bijection.Bijection`
    for the construction and its source): 10^10 items start within milliseconds, in 1 MiB, and
    resume at any position. Its seed is one int64 drawn from the generator at the first index.

    Arguments:
        data_source: any sized object; only its length is read.
        replacement: draw each index independently.
        num_samples: how many indices an epoch has; default the length. More than the length
            without replacement runs through further shuffles.
        generator: where the randomness comes from; default torch's global generator.
        method: "torch" or "bijection" chooses the order whatever the length; "auto" as above.

    Raises:
        TypeError, ValueError: as torch's; `OptionError` (a ValueError) for another method.
    """

    def __init__(
        self,
        data_source: Sized,
        replacement: bool = False,
        num_samples: int | None = None,
        generator: torch.Generator | None = None,
        *,
        method: Method = "auto",
    ) -> None:
        super().__init__(data_source, replacement, num_samples, generator)
        if method not in METHODS:
            raise OptionError(
                f"method is one of 'auto', 'torch' and 'bijection', got {method!r}: write "
                f"RandomSampler(dataset, method='bijection'), or leave it out"
            )
        self.method = method

    def __iter__(self) -> Iterator[int]:
        chunks = self.index_chunks()
        if chunks is None:
            yield from super().__iter__()
            return
        for chunk in chunks:
            for low in range(0, len(chunk), CHUNK):  # a permutation is one chunk
                yield from cast("list[int]", chunk[low : low + CHUNK].tolist())

    def index_chunks(self, start: int = 0) -> Chunks | None:
        """Yield the order from position `start` on, as `headrace.sampling.order.index_chunks`."""
        if uses_bijection(len(self.data_source), self.method):
            return self._bijection_chunks(start)
        return random_chunks(self, start) if draws_on_cpu(self.generator) else None

    def _bijection_chunks(self, start: int) -> Chunks:
        n, stop = len(self.data_source), self.num_samples
        seed = draw_seed(self.generator)
        if self.replacement:
            for low in range(start, stop, CHUNK):
                yield draws(n, seed, low, min(low + CHUNK, stop))
            return
        while start < stop:
            shuffle = Bijection(n, seed, number=start // n)
            first = start % n
            last = min(n, first + stop - start)
            for low in range(first, last, CHUNK):
                yield shuffle.block(low, min(low + CHUNK, last))
            start += last - first


def uses_bijection(n: int, method: Method = "auto") -> bool:
    """Whether a shuffle of n items is a bijection rather than torch's permutation."""
    return method == "bijection" or (method == "auto" and n > TORCH_ITEMS)


def draw_seed(generator: torch.Generator | None) -> int:
    """Draw an int64 as torch's `RandomSampler` draws its seed: from the global generator."""
    device = None if generator is None else generator.device
    drawn = torch.empty((), dtype=torch.int64, device=device).random_(generator=generator)
    return int(drawn.item())
