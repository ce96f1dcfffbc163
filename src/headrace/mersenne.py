"""The three generators that a process has, each a Mersenne Twister, as memory to copy.

torch's default generator, NumPy's legacy ``np.random`` and Python's ``random`` are one machine: 624
words of 32 bits, and a place among them. Any words are a valid state, so a task's generators are
624 random words, drawn for it and put in place, in another order for each of the three. The public
ways to do that cost 16 us a batch, so the states are copied as memory. Where they lie inside the
objects is found once, by looking for the values that the public calls report; where they are not
found, the public calls are used, with the same numbers.
"""

from __future__ import annotations

import ctypes
import random
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

WORDS = 624
KEY_BYTES = 4 * WORDS
_USED_UP = WORDS.to_bytes(4, "little")  # the place behind the last word: all are made anew first


class State(Protocol):
    """The state of one generator."""

    def save(self) -> Any:
        """Return a copy of it."""

    def restore(self, saved: Any) -> None:
        """Put a copy back."""

    def put(self, words: memoryview) -> None:
        """Begin a stream at 2,496 random bytes."""


class WordSource:
    """Draws the words of the generators from one seed of 64 bits.

    The source is SFC64 (Doty-Humphrey, 2014), the quickest of NumPy's, seeded as its author does:
    the seed three times, a counter from 1, and twelve numbers thrown away.

    To draw is what costs, so the same words serve three times: as they are for torch, by pairs from
    the last to the first for NumPy, the first two thirds exchanged for Python. The bits of the
    first 200 words that each of the three gives are linearly independent of those of the others
    (a test computes the rank): as random together as if each had had words of its own.
    """

    _SKIPPED = 12

    def __init__(self) -> None:
        self._source = np.random.SFC64(0)
        self._count = self._SKIPPED + KEY_BYTES // 8
        address = self._source.ctypes.state_address
        known = self._source.state["state"]["state"].tobytes()
        self._memory: memoryview | None = None
        if isinstance(address, int) and ctypes.string_at(address, len(known)) == known:
            self._memory = _memory(address, len(known))

    def __call__(self, seed: int) -> tuple[memoryview, memoryview, memoryview]:
        """Return the words for torch, NumPy and Python."""
        words = self.draw(seed)[self._SKIPPED :]
        third = len(words) // 3
        for_python = np.concatenate([words[third : 2 * third], words[:third], words[2 * third :]])
        orders = (words, words[::-1].copy(), for_python)
        return tuple([order.data.cast("B") for order in orders])  # type: ignore[return-value]

    def draw(self, seed: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """Return 312 pairs of words behind twelve that are not used."""
        if self._memory is not None:
            _pack_seed(self._memory, 0, seed, seed, seed, 1)
        else:
            words = np.array([seed, seed, seed, 1], np.uint64)
            self._source.state = {**self._source.state, "state": {"state": words}}
        return self._source.random_raw(self._count)


_pack_seed = struct.Struct("=QQQQ").pack_into


def _memory(address: int, size_bytes: int) -> memoryview:
    """Return a part of this process's memory, to read and to write."""
    return memoryview((ctypes.c_ubyte * size_bytes).from_address(address)).cast("B")


def _find(address: int, size_bytes: int, wanted: bytes) -> int | None:
    """Return the address within these bytes of memory that holds exactly ``wanted``."""
    place = ctypes.string_at(address, size_bytes).find(wanted)
    return None if place < 0 else address + place


class _InMemory:
    """A state as bytes of memory.

    ``key`` says where in them the words lie; ``fresh`` is what stands elsewhere when a stream
    begins: pairs of a place and bytes.
    """

    def __init__(
        self, address: int, size_bytes: int, key: int, fresh: list[tuple[int, bytes]]
    ) -> None:
        self._all = _memory(address, size_bytes)
        self._key = self._all[key : key + KEY_BYTES]
        self._fresh = [(self._all[at : at + len(data)], data) for at, data in fresh]
        self.save = self._all.tobytes

    def restore(self, saved: bytes) -> None:
        self._all[:] = saved


# What is done for each batch is written out: each ``put`` says for itself what it puts where.

# torch

# ATen's mt19937: seed (8 bytes), words left (4), seeded (1, padded), next (4), the words; behind it
# padding, and what is kept of pairs of normal deviates: an optional float (8) and double (16).
_TORCH_HEAD, _TORCH_TAIL = 20, 28
_NO_TAIL = bytes(_TORCH_TAIL)
_TORCH_FRESH = struct.pack("<i?3xI", 1, True, 0)
_TORCH_BEFORE = 160  # what stands before it in the object is less than this


class _TorchInMemory(_InMemory):
    """torch's generator. The seed that it tells is apart from the stream, and stays as it is."""

    def __init__(self, address: int) -> None:
        fresh = [(8, _TORCH_FRESH), (_TORCH_HEAD + KEY_BYTES, bytes(_TORCH_TAIL))]
        super().__init__(address, _TORCH_HEAD + KEY_BYTES + _TORCH_TAIL, _TORCH_HEAD, fresh)
        (self._head, _), (self._tail, _) = self._fresh

    def put(self, words: memoryview) -> None:
        self._key[:] = words
        self._head[:] = _TORCH_FRESH
        self._tail[:] = _NO_TAIL


class _TorchByCalls:
    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def save(self) -> torch.Tensor:
        return self._generator.get_state()

    def restore(self, saved: torch.Tensor) -> None:
        self._generator.set_state(saved)

    def put(self, words: memoryview) -> None:
        self._generator.set_state(_torch_state(words, self._generator.initial_seed()))


def _torch_state(words: memoryview | bytes, initial_seed: int) -> torch.Tensor:
    """Return a state in the form of ``torch.Generator.get_state()``."""
    state = torch.Generator().manual_seed(initial_seed).get_state()
    state.numpy()[24 : 24 + 8 * WORDS].view(np.uint64)[:] = np.frombuffer(words, np.uint32)
    return state


def torch_words(generator: torch.Generator) -> bytes:
    """Return the words of a generator."""
    state = generator.get_state().numpy()
    return state[24 : 24 + 8 * WORDS].view(np.uint64).astype(np.uint32).tobytes()


def _torch_offset() -> int | None:
    """Return where in a generator's object its state lies, None if that cannot be shown."""
    one, other = torch.Generator(), torch.Generator()
    one.manual_seed(2**40 + 7)
    torch.randn(3, generator=one, dtype=torch.float64)  # of the second pair one is kept
    key = torch_words(one)
    address = getattr(one, "_cdata", None)
    found = _find(address, _TORCH_BEFORE + KEY_BYTES, key) if isinstance(address, int) else None
    if found is None or found - _TORCH_HEAD < address:  # type: ignore[operator]
        return None
    offset = found - _TORCH_HEAD - one._cdata  # type: ignore[attr-defined]
    from_one = _TorchInMemory(one._cdata + offset)  # type: ignore[attr-defined]
    into_other = _TorchInMemory(other._cdata + offset)  # type: ignore[attr-defined]
    into_other.restore(from_one.save())
    if not torch.equal(one.get_state(), other.get_state()):
        return None
    words = np.arange(WORDS, dtype=np.uint32).tobytes()
    from_one.put(memoryview(words))
    return offset if torch.equal(one.get_state(), _torch_state(words, 2**40 + 7)) else None


def torch_state() -> State:
    """Return the state of torch's default generator."""
    generator = torch.default_generator
    offset = _torch_offset()
    if offset is None:
        return _TorchByCalls(generator)
    return _TorchInMemory(generator._cdata + offset)  # type: ignore[attr-defined]


# Python


class _PythonInMemory(_InMemory):
    """The generator behind ``random``; a normal deviate that it keeps is an attribute."""

    def __init__(self, address: int, inner: Any) -> None:
        super().__init__(address, 4 + KEY_BYTES, 4, [(0, _USED_UP)])
        self._inner = inner
        [(self._place, _)] = self._fresh
        self._copy = self.save
        self.save = self._save  # type: ignore[assignment]

    def _save(self) -> Any:
        return self._copy(), self._inner.gauss_next

    def restore(self, saved: Any) -> None:
        self._all[:], self._inner.gauss_next = saved

    def put(self, words: memoryview) -> None:
        self._key[:] = words
        self._place[:] = _USED_UP
        self._inner.gauss_next = None


class _PythonByCalls:
    save = staticmethod(random.getstate)
    restore = staticmethod(random.setstate)

    def put(self, words: memoryview) -> None:
        random.setstate((3, (*words.cast("I").tolist(), WORDS), None))


def python_state() -> State:
    """Return the state of Python's ``random``."""
    inner = getattr(random, "_inst", None)
    if type(inner) is not random.Random:
        return _PythonByCalls()
    words = random.getstate()[1]
    # The place stands before the words, as a C int: both are copied in one piece.
    wanted = words[-1].to_bytes(4, "little") + np.array(words[:-1], np.uint32).tobytes()
    address = _find(id(inner), inner.__sizeof__(), wanted)
    return _PythonByCalls() if address is None else _PythonInMemory(address, inner)


# NumPy


class _NumPyInMemory(_InMemory):
    """The generator behind ``np.random``; what it keeps of a pair of deviates lies elsewhere."""

    def __init__(self, key: int, gauss: int) -> None:
        super().__init__(key, KEY_BYTES + 4, 0, [(KEY_BYTES, _USED_UP)])
        self._gauss = _memory(gauss, 16)
        [(self._place, _)] = self._fresh
        self._copy = self.save
        self.save = self._save  # type: ignore[assignment]

    def _save(self) -> Any:
        return self._copy(), self._gauss.tobytes()

    def restore(self, saved: Any) -> None:
        self._all[:], self._gauss[:] = saved

    def put(self, words: memoryview) -> None:
        self._key[:] = words
        self._place[:] = _USED_UP
        self._gauss[:] = _NO_GAUSS


_NO_GAUSS = bytes(16)


class _NumPyByCalls:
    def save(self) -> Any:
        # legacy=True would warn of every bit generator but the Mersenne Twister
        return np.random.get_state(legacy=False)

    def restore(self, saved: Any) -> None:
        np.random.set_state(saved)

    def put(self, words: memoryview) -> None:
        if isinstance(np.random.mtrand._rand._bit_generator, np.random.MT19937):
            np.random.set_state(("MT19937", np.frombuffer(words, np.uint32), WORDS, 0, 0.0))
        else:
            np.random.seed(int.from_bytes(words[:4], "little"))


def numpy_state() -> State:
    """Return the state of NumPy's ``np.random``, whichever generator is behind it now."""
    key, gauss = _numpy_key(), _numpy_gauss()
    return _NumPyByCalls() if key is None or gauss is None else _NumPyInMemory(key, gauss)


def _numpy_key() -> int | None:
    """Return where the Mersenne Twister behind ``np.random`` lies: its words, and its place."""
    generator = np.random.mtrand._rand._bit_generator
    if type(generator) is not np.random.MT19937:
        return None
    state = generator.state["state"]
    wanted = np.asarray(state["key"], np.uint32).tobytes() + int(state["pos"]).to_bytes(4, "little")
    return _find(generator.ctypes.state_address, len(wanted), wanted)


def _numpy_gauss() -> int | None:
    """Return where ``np.random`` keeps the second half of its last pair of normal deviates."""
    probe = np.random.RandomState(1)
    probe.standard_normal()
    gauss = probe.get_state(legacy=False)["gauss"]
    wanted = (1).to_bytes(8, "little") + np.float64(gauss).tobytes()
    address = _find(id(probe), type(probe).__basicsize__, wanted)
    return None if address is None else id(np.random.mtrand._rand) + address - id(probe)


# All three


class Together(NamedTuple):
    """The states of all three, as functions that save them, begin a task's streams, put them back.

    A restored state is one that ``save`` returned.
    """

    save: Callable[[], tuple[Any, ...]]
    seed: Callable[[int], None]
    restore: Callable[[tuple[Any, ...]], None]


def together(source: WordSource, of_torch: State, of_numpy: State, of_python: State) -> Together:
    """Return one function for what would be three calls, where all three states lie in memory."""
    if not (
        isinstance(of_torch, _TorchInMemory)
        and isinstance(of_numpy, _NumPyInMemory)
        and isinstance(of_python, _PythonInMemory)
    ):
        return _one_by_one(source, of_torch, of_numpy, of_python)
    draw, inner = source.draw, of_python._inner
    torch_all, numpy_all, python_all = of_torch._all, of_numpy._all, of_python._all
    torch_key, numpy_pairs = of_torch._key, np.frombuffer(of_numpy._key, np.uint64)
    thirds = [
        of_python._key[at : at + KEY_BYTES // 3] for at in range(0, KEY_BYTES, KEY_BYTES // 3)
    ]
    python_first, python_second, python_third = thirds
    head, tail, gauss = of_torch._head, of_torch._tail, of_numpy._gauss
    numpy_place, python_place = of_numpy._place, of_python._place
    copies = torch_all.tobytes, numpy_all.tobytes, gauss.tobytes, python_all.tobytes
    save_torch, save_numpy, save_gauss, save_python = copies

    # To make a slice takes as long as to copy what it stands for: they are made once.
    every, backwards = slice(None), slice(None, 11, -1)
    in_bytes = [slice(at, at + KEY_BYTES // 3) for at in range(96, 96 + KEY_BYTES, KEY_BYTES // 3)]
    whole, (first, second, third) = slice(96, 96 + KEY_BYTES), in_bytes

    def save() -> tuple[Any, ...]:
        return save_torch(), save_numpy(), save_gauss(), save_python(), inner.gauss_next

    def seed(task_seed: int) -> None:
        pairs = draw(task_seed)
        words = pairs.data.cast("B")
        torch_key[every] = words[whole]
        head[every] = _TORCH_FRESH
        tail[every] = _NO_TAIL
        numpy_pairs[every] = pairs[backwards]
        numpy_place[every] = _USED_UP
        gauss[every] = _NO_GAUSS
        python_first[every] = words[second]
        python_second[every] = words[first]
        python_third[every] = words[third]
        python_place[every] = _USED_UP
        inner.gauss_next = None

    def restore(saved: tuple[Any, ...]) -> None:
        was_torch, was_numpy, was_gauss, was_python, inner.gauss_next = saved
        torch_all[every] = was_torch
        numpy_all[every] = was_numpy
        gauss[every] = was_gauss
        python_all[every] = was_python

    return Together(save, seed, restore)


def _one_by_one(source: WordSource, *states: State) -> Together:
    def save() -> tuple[Any, ...]:
        return tuple([state.save() for state in states])

    def seed(task_seed: int) -> None:
        for state, words in zip(states, source(task_seed), strict=True):
            state.put(words)

    def restore(saved: tuple[Any, ...]) -> None:
        for state, was in zip(states, saved, strict=True):
            state.restore(was)

    return Together(save, seed, restore)
