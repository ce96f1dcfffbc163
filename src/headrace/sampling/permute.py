"""torch's permutations as 32-bit NumPy arrays, on memory that is used again."""

import weakref
from collections import deque

import numpy as np
import numpy.typing as npt
import torch

IndexArray = npt.NDArray[np.int64] | npt.NDArray[np.int32]

INT32_ITEMS = 2**31 - 1
KEEP_ITEMS = 2**24
# NumPy asks for huge pages from 4 MiB on: one page fault instead of a thousand.
HUGE_PAGE_ITEMS = 2**20

# Two, so that an epoch can begin while the last indices of the one before are in use.
# Appending and popping are atomic: buffers come back from callbacks in any thread.
_free: deque[torch.Tensor] = deque(maxlen=2)


def permutation(n: int, generator: torch.Generator | None) -> IndexArray:
    """Draw `torch.randperm(n, generator=generator)` as an array of shape (n,).

    Up to 2^31 - 1 items it is drawn as int32, which takes the same random numbers, gives
    the same values and touches half the memory. The memory goes back to a small free list
    when the last array that views it dies.
    """
    if n > INT32_ITEMS:
        return torch.randperm(n, generator=generator, device="cpu").numpy()
    buffer = _take(n)
    torch.randperm(n, generator=generator, out=buffer[:n])
    # Its base is the tensor, not an array, so NumPy lets slices of it keep *it* alive
    # (a view of an array would be skipped over): when it dies, nobody reads the buffer.
    array: npt.NDArray[np.int32] = buffer[:n].numpy()
    if buffer.numel() <= KEEP_ITEMS:
        weakref.finalize(array, _free.append, buffer).atexit = False
    return array


def _take(n: int) -> torch.Tensor:
    for _ in range(len(_free)):
        try:
            buffer = _free.popleft()
        except IndexError:  # another thread took it
            break
        if n <= buffer.numel() <= max(2 * n, HUGE_PAGE_ITEMS):
            return buffer
        _free.append(buffer)
    items = max(n, HUGE_PAGE_ITEMS) if n > HUGE_PAGE_ITEMS // 4 else n
    return torch.from_numpy(np.empty(items, dtype=np.int32))
