"""Buffers lent to batches, and taken back when the last tensor on them dies.

The chain of references is the whole mechanism, there is nothing for a user to remember::

    tensor -> NumPy slice -> token <- loan (a weak reference) <- the pool's loans

The *token* is a NumPy array made for one loan. Every slice of it, at any depth, keeps it alive,
because NumPy's ``base`` ends at an array whose own base is not an array. When it dies, the loan
is put on a deque, and the next :meth:`Pool.lend` finds it there. That may happen in any thread, at
any allocation, inside the pool's own code too, so what is called takes no lock and does nothing
but append; and it is the deque's own method, because Python forgets a Ctrl-C that comes while a
callback written in Python runs. What a user keeps is never lent again, simply because its token
lives.

A buffer that an accelerator reads from is page-locked once (:meth:`Memory.lock_pages`) and unlocked
before it is unmapped.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from headrace.engine import forks
from headrace.tree import NUMPY_DTYPES

HUGE_PAGE_BYTES = 2 << 20
SMALL_LEAF_BYTES = 64 << 10  # below this malloc serves from warm memory, and no lease pays
IN_PLACE_BYTES = 512 << 10  # below this the checks that writing in place needs cost more
_IDLE_LENDS = 64  # memory that was not wanted for so many loans is released


class Memory:
    """One buffer: an address range, the loan that is out on it, and the pool it belongs to.

    NumPy arrays are made over it by ``__array_interface__``, so their ``base`` is this object.
    """

    __slots__ = (
        *("__array_interface__", "__weakref__", "_keeper", "_private"),
        *("forks", "key", "last_lend"),
    )
    __array_interface__: dict[str, Any]

    def __init__(self, address: int, size_bytes: int, keeper: object) -> None:
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (size_bytes,),
            "typestr": "|u1",
            "version": 3,
        }
        self._keeper = keeper  # unmaps when it dies
        self.last_lend = 0
        self.key: Any = None  # what the other side of a shared buffer calls it
        self.forks = 0
        self._private = False
        _memories[address] = self

    def __len__(self) -> int:
        size: int = self.__array_interface__["shape"][0]
        return size

    @property
    def address(self) -> int:
        """Return where the buffer begins in this process."""
        address: int = self.__array_interface__["data"][0]
        return address

    @classmethod
    def private(cls, size_bytes: int) -> Memory:
        """Return fresh memory of this process alone."""
        pages = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if size_bytes >= HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
            pages.madvise(mmap.MADV_HUGEPAGE)  # one fault for 512 pages
        view = np.frombuffer(pages, np.uint8)
        memory = cls(view.__array_interface__["data"][0], size_bytes, view)
        memory._private = True
        return memory

    def lock_pages(self, lock: Callable[[int, int], bool], unlock: Callable[[int], object]) -> bool:
        """Page-lock the buffer, if that is not done yet; say whether it is locked now.

        Args:
            lock: locks the pages of (address, size in bytes), and says whether it could.
            unlock: undoes that for an address; called before the buffer is unmapped.
        """
        if isinstance(self._keeper, _PageLock):
            if not self._private or self._keeper.forks == forks.count():
                return True
            # A fork shares private pages until one side writes. Before Linux 5.9 that side could be
            # us: the device would go on reading the page that the child has now.
            self._keeper = self._keeper.release()
        locked = lock(self.address, len(self))
        if locked:
            self._keeper = _PageLock(self.address, unlock, self._keeper)
        return locked


class _PageLock:
    """Unlocks pages when it dies, and lets go of what unmaps them after that."""

    def __init__(self, address: int, unlock: Callable[[int], object], keeper: object) -> None:
        self._address = address
        self._unlock = unlock
        self._keeper = keeper
        self._getpid = os.getpid  # module globals may be gone when this is wanted
        self.forks = forks.count()
        self._pid = os.getpid()

    def release(self) -> object:
        """Unlock now; return what unmaps the pages."""
        self._unlock(self._address)
        self._pid = -1
        return self._keeper

    def __del__(self) -> None:
        # In a forked child the device's library does not work.
        if hasattr(self, "_pid") and self._pid == self._getpid():
            self._unlock(self._address)


# All buffers by their addresses, for who has but a tensor: NumPy's token is out of its reach.
_memories: weakref.WeakValueDictionary[int, Memory] = weakref.WeakValueDictionary()


def memory_at(address: int) -> Memory | None:
    """Return the buffer that an address lies in, None if it is not in one of ours."""
    memory = _memories.get(address)
    if memory is not None:
        return memory
    # Some dozens: only slices of blocks come here. The list of references is made in one step.
    for reference in _memories.valuerefs():
        memory = reference()
        if memory is not None and 0 <= address - memory.address < len(memory):
            return memory
    return None


class _Loan(weakref.ref[np.ndarray]):
    """The weak reference to a token, and what was lent by it."""

    __slots__ = ("memory",)
    memory: Memory
    __hash__ = object.__hash__  # an array has none
    __eq__ = object.__eq__


class Loans:
    """The loans of one owner of buffers: which are out, and which have ended.

    They are the owner's and not the buffer's: without it nobody waits for what comes back, and all
    goes without the cycle collector.
    """

    def __init__(self) -> None:
        self._out: set[_Loan] = set()
        self._ended: deque[_Loan] = deque()

    def begin(self, memory: Memory) -> np.ndarray:
        """Return the array whose death ends the loan of ``memory``."""
        token = np.asarray(memory)
        loan = _Loan(token, self._ended.append)
        loan.memory = memory
        self._out.add(loan)
        return token

    def ended(self) -> Iterator[Memory]:
        """Take out the buffers whose loans have ended, each once, whatever other threads do."""
        while self._ended:
            try:
                loan = self._ended.popleft()
                self._out.remove(loan)
            except (IndexError, KeyError):  # another thread was faster
                continue
            yield loan.memory

    def look_again(self) -> None:
        """Find what an interruption of :meth:`ended` has left."""
        self._ended.extend(loan for loan in self._out.copy() if loan() is None)

    def forget(self, memory: Memory) -> None:
        """Do not wait for a buffer that must not be lent again."""
        for loan in self._out.copy():
            if loan.memory is memory:
                self._out.discard(loan)

    def out(self) -> set[Memory]:
        """Return the buffers that somebody holds."""
        return {loan.memory for loan in self._out.copy() if loan() is not None}


class Pool:
    """Memory for the batches of one loader in one process.

    ``created`` counts the buffers ever made: it stands still while batches are let go.
    """

    small_bytes = SMALL_LEAF_BYTES
    in_place_bytes = IN_PLACE_BYTES

    def __init__(self) -> None:
        self.created = 0
        self._pid = os.getpid()
        self._loans = Loans()
        self._free: dict[int, deque[Memory]] = {}
        self._lends = 0

    def lend(self, size_bytes: int) -> np.ndarray:
        """Return a token: a uint8 array of at least ``size_bytes`` that nobody else holds."""
        size = size_class(size_bytes)
        self._sort_returned()
        self._lends += 1
        try:
            memory = self._free[size].pop()
        except (KeyError, IndexError):
            memory = self._larger(size) or self.create(size)
        memory.last_lend = self._lends
        return self._loans.begin(memory)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Return an uninitialised tensor with a storage of its own, on a lease if it is large."""
        count = math.prod(shape)
        size_bytes = count * dtype.itemsize
        if size_bytes < self.small_bytes:
            return torch.empty(tuple(shape), dtype=dtype)
        return as_tensor(self.lend(size_bytes)[:size_bytes], shape, dtype)

    def empty_array(
        self, shape: Sequence[int], dtype: np.dtype[Any]
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """Return an uninitialised array, on a lease if it is large."""
        size_bytes = math.prod(shape) * dtype.itemsize
        if size_bytes < self.small_bytes:
            return np.empty(tuple(shape), dtype)
        return self.lend(size_bytes)[:size_bytes].view(dtype).reshape(tuple(shape))

    def is_mine(self) -> bool:
        """Say whether this process made the pool: a forked child must not lend its memory."""
        return os.getpid() == self._pid

    def create(self, size_bytes: int) -> Memory:
        """Make a buffer of a size class."""
        self.created += 1
        return Memory.private(size_bytes)

    def _larger(self, size_bytes: int) -> Memory | None:
        """Return free memory of a class up to four times as large: the last batch is smaller."""
        for size, free in list(self._free.items()):
            if size_bytes < size <= 4 * size_bytes and free:
                with contextlib.suppress(IndexError):  # another thread was faster
                    return free.pop()
        return None

    def _sort_returned(self) -> None:
        for memory in self._loans.ended():
            self._take_back(memory)
        if self._lends % _IDLE_LENDS == 0:
            self._loans.look_again()
            self._release_idle()

    def _take_back(self, memory: Memory) -> None:
        """Keep a buffer for the next loan: the last tensor on it is gone."""
        self._free.setdefault(len(memory), deque()).append(memory)

    def _release_idle(self) -> None:
        for free in list(self._free.values()):
            with contextlib.suppress(IndexError):  # another thread was faster
                while free[0].last_lend < self._lends - _IDLE_LENDS:
                    self.release(free.popleft())

    def release(self, memory: Memory) -> None:
        """Let go of a buffer that was not wanted for long."""


def as_tensor(raw: np.ndarray, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Return the bytes ``raw`` as a tensor of this shape, with a storage of its own."""
    sizes = tuple(shape)
    if raw.size == 0:
        return torch.empty(sizes, dtype=dtype)
    carrier = NUMPY_DTYPES.get(dtype)
    if carrier is None:  # bfloat16 and others that NumPy has no name for
        return torch.frombuffer(raw, dtype=dtype).view(sizes)
    return torch.from_numpy(raw.view(carrier).reshape(sizes))


def size_class(size_bytes: int) -> int:
    """Round up to eight steps an octave, and to whole pages.

    Batches of varying sizes then share a few classes; at most an eighth is never touched.
    """
    step = max(mmap.PAGESIZE, (1 << max(size_bytes - 1, 1).bit_length()) >> 4)
    return -(-max(size_bytes, 1) // step) * step
