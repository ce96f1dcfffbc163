"""Shared memory without names: mapped once on both sides of a worker's pipe.

A worker makes the buffers it needs (:class:`WorkerPool`), as anonymous files (memfd) whose
descriptors cross the pipe once and are closed on both sides as soon as they are mapped. So nothing
is left behind by any kill, /dev/shm does not matter, and descriptors do not pile up however many
batches are kept. The user's process maps what it receives (:class:`Imports`), and says with the
next task which buffers have come back.

A buffer is written again only when both sides have let go of it: the worker's own token is dead
(its dataset or collate function may keep the batch it made), and the user's process has returned
it. What was out when the user's process forked is never lent again, because the child may still
read it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections import deque
from collections.abc import Callable

import numpy as np

from headrace.engine import forks
from headrace.engine.lease import Loans, Memory, Pool

AVAILABLE = hasattr(os, "memfd_create") and hasattr(os, "pidfd_open")
SHIP_AT = 32  # buffers whose descriptors may wait to be sent
LEASE_BYTES = 16 << 10  # smaller leaves travel inside the message and are copied out

_MAP_FAILED = ctypes.c_void_p(-1).value


class _LibC:
    """mmap and munmap: Python's own mmap object keeps a descriptor open for each map."""

    def __init__(self) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        self.mmap = library.mmap
        self.mmap.restype = ctypes.c_void_p
        self.mmap.argtypes = [
            *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
            *(ctypes.c_int, ctypes.c_int, ctypes.c_long),
        ]
        self.munmap = library.munmap
        self.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


_libc = _LibC() if AVAILABLE else None


class _Mapping:
    """Maps a whole memfd for reading and writing, and unmaps it when it dies."""

    __slots__ = ("_munmap", "_size_bytes", "address")

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        assert _libc is not None
        self._munmap = _libc.munmap  # module globals may be gone when this is wanted
        self._size_bytes = size_bytes
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        address = _libc.mmap(None, size_bytes, protection, mmap.MAP_SHARED, descriptor, 0)
        if address == _MAP_FAILED:
            reason = os.strerror(ctypes.get_errno())
            raise MemoryError(f"cannot map {size_bytes:,} bytes for a batch: {reason}")
        self.address: int = address

    def __del__(self) -> None:
        if hasattr(self, "address"):  # or it failed, or was interrupted before
            self._munmap(self.address, self._size_bytes)


def map_shared(descriptor: int, size_bytes: int) -> Memory:
    """Map a whole memfd for reading and writing.

    Raises:
        MemoryError: the address space or the memory is used up.
    """
    mapping = _Mapping(descriptor, size_bytes)
    return Memory(mapping.address, size_bytes, mapping)


class WorkerPool(Pool):
    """The buffers that one worker writes its batches to."""

    small_bytes = in_place_bytes = LEASE_BYTES

    def __init__(self, heirlooms: list[Memory]) -> None:
        super().__init__()
        self.unsent: list[tuple[int, int, int]] = []  # (key, size, descriptor) yet to cross
        self.ship: Callable[[], None] | None = None  # sends what is unsent
        self.forgotten: list[int] = []  # keys of buffers that this side has dropped
        self._by_address: dict[int, Memory] = {}
        self._abroad: dict[int, Memory] = {}  # lent to the user's process
        self._home: set[int] = set()  # of these, whose token here has died too
        self._next_key = 0
        for memory in heirlooms:
            self._adopt(memory)
            self._take_back(memory)

    def _adopt(self, memory: Memory) -> None:
        memory.key = self._next_key
        self._next_key += 1
        self._by_address[memory.address] = memory

    def create(self, size_bytes: int) -> Memory:
        """Make a buffer that can cross."""
        if self.ship is not None and len(self.unsent) >= SHIP_AT:
            self.ship()  # a batch of many leaves would run out of descriptors
        self.created += 1
        try:
            descriptor = os.memfd_create("headrace", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, size_bytes)
        except OSError as error:
            raise _descriptor_error(error) from error
        try:
            memory = map_shared(descriptor, size_bytes)
        except MemoryError:
            os.close(descriptor)
            raise
        self._adopt(memory)
        self.unsent.append((memory.key, size_bytes, descriptor))
        return memory

    def find(self, address: int) -> Memory | None:
        """Return the buffer that begins at an address."""
        return self._by_address.get(address)

    def is_abroad(self, memory: Memory) -> bool:
        """Say whether the user's process holds this buffer."""
        return memory.key in self._abroad

    def send_abroad(self, memory: Memory) -> None:
        """Note that the user's process will hold this buffer too."""
        self._abroad[memory.key] = memory

    def came_home(self, keys: list[int]) -> None:
        """Note that the user's process has let go of these buffers."""
        for key in keys:
            memory = self._abroad.pop(key)
            if key in self._home:
                self._home.remove(key)
                super()._take_back(memory)

    def keep_out(self, keys: list[int]) -> None:
        """Drop buffers that a fork of the user's process may still read."""
        for key in keys:
            memory = self._abroad.pop(key)
            self._home.discard(key)
            self._by_address.pop(memory.address, None)
            self._loans.forget(memory)

    def _take_back(self, memory: Memory) -> None:
        if memory.key in self._abroad:
            self._home.add(memory.key)
        else:
            super()._take_back(memory)

    def release(self, memory: Memory) -> None:
        """Drop a buffer that was not wanted for long, on both sides."""
        self._by_address.pop(memory.address, None)
        self.forgotten.append(memory.key)


class Imports:
    """The buffers of one worker, as the user's process sees them."""

    def __init__(self, home: Home, heirlooms: list[Memory]) -> None:
        self._home = home
        self._memories = dict(enumerate(heirlooms))
        self._loans = Loans()
        for key, memory in self._memories.items():
            memory.key = key

    def add(self, key: int, size_bytes: int, descriptor: int) -> None:
        """Map a buffer that the worker has made."""
        memory = map_shared(descriptor, size_bytes)
        memory.key = key
        self._memories[key] = memory

    def token(self, key: int) -> np.ndarray:
        """Lend a buffer to a batch; it is returned when the last array on it dies."""
        memory = self._memories[key]
        memory.forks = forks.count()
        return self._loans.begin(memory)

    def forget(self, keys: list[int]) -> None:
        """Unmap buffers that the worker has dropped."""
        for key in keys:
            self._memories.pop(key, None)

    def to_return(self) -> tuple[list[int], list[int]]:
        """Return the keys that the worker may write again, and those that it must never."""
        free: list[int] = []
        retired: list[int] = []
        for memory in self._loans.ended():
            if memory.forks == forks.count():
                free.append(memory.key)
            else:
                retired.append(memory.key)
                self._memories.pop(memory.key, None)
        return free, retired

    def bequeath(self) -> None:
        """Leave what nobody holds to a worker to come. The worker must have been reaped."""
        self.to_return()  # drops what a fork may still read
        held = self._loans.out()
        while self._memories:  # out first: what is interrupted here and done again gives none twice
            _, memory = self._memories.popitem()
            if memory not in held:
                self._home.store(memory)


class Home:
    """What outlives workers: their buffers."""

    LIMIT = 64

    def __init__(self) -> None:
        self._stored: deque[Memory] = deque(maxlen=self.LIMIT)

    @property
    def forks(self) -> int:
        """A number that each fork of the user's process changes."""
        return forks.count()

    def store(self, memory: Memory) -> None:
        """Keep a buffer for a worker to come."""
        self._stored.append(memory)

    def divide(self, workers: int) -> list[list[Memory]]:
        """Give what is stored to ``workers`` new workers, in equal shares."""
        stored, self._stored = list(self._stored), deque(maxlen=self.LIMIT)
        return [stored[worker::workers] for worker in range(workers)]


def _descriptor_error(error: OSError) -> OSError:
    if error.errno != errno.EMFILE:
        return error
    return OSError(
        error.errno,
        "too many open files in a DataLoader worker: no descriptor is left for the batch's memory. "
        "Raise the limit with `ulimit -n 4096`, or close files in the dataset",
    )
