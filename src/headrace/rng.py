"""The generators of a task: derived from its seed, saved before and put back after user code."""

from __future__ import annotations

import random
import threading
from typing import Any, Protocol

import numpy as np
import torch

from headrace import mersenne

_MASK64 = (1 << 64) - 1
_mtrand = np.random.mtrand
_START = _MASK64  # the "step" of what runs before the first batch: iter(dataset)


def mix(*values: int, state: int = 0) -> int:
    """Hash integers to 64 bits: splitmix64's finalizer over a running sum (Steele et al., 2014).

    ``mix(a, b)`` is ``mix(b, state=mix(a))``.
    """
    for value in values:
        state = (state + (value & _MASK64) + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state


def task_seed(base_seed: int, epoch: int, step: int | None) -> int:
    """Return the seed of one task: 64 bits, a function of these three alone.

    ``epoch`` counts from the drawing of ``base_seed``; ``step`` None is the start of the epoch.
    """
    return mix(base_seed, epoch, _START if step is None else step)


def mix_range(start: int, count: int, state: int) -> list[int]:
    """Return ``mix(value, state=state)`` for ``count`` values from ``start`` on, at once."""
    values = np.arange(start, start + count, dtype=np.uint64)
    values += np.uint64((state + 0x9E3779B97F4A7C15) & _MASK64)
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    seeds: list[int] = values.tolist()
    return seeds


class ProcessGenerators:
    """torch's, NumPy's and Python's global generators as one thing to save, seed and restore."""

    def __init__(self) -> None:
        self._draw = mersenne.WordSource()
        self._torch = mersenne.torch_state()
        self._python = mersenne.python_state()
        self._users: set[str] = set()
        self._find_numpy()

    def _find_numpy(self) -> None:
        self._bit_generator = np.random.mtrand._rand._bit_generator
        self._numpy = mersenne.numpy_state()
        self._all = mersenne.together(self._draw, self._torch, self._numpy, self._python)

    def save(self) -> tuple[Any, ...]:
        """Return the state of all three."""
        if _mtrand._rand._bit_generator is not self._bit_generator:
            self._find_numpy()  # the user called np.random.set_bit_generator
        return self._all.save()

    def restore(self, saved: tuple[Any, ...]) -> None:
        """Put all three back."""
        self._all.restore(saved)

    def seed(self, seed: int) -> None:
        """Begin the streams of a task in all three: each has random words of its own.

        ``torch.initial_seed()`` goes on saying what it said: people derive other seeds from it.
        """
        if not self._users:
            self._all.seed(seed)
            return
        for_torch, for_numpy, for_python = self._draw(seed)
        if "torch" not in self._users:
            self._torch.put(for_torch)
        if "NumPy" not in self._users:
            self._numpy.put(for_numpy)
        if "random" not in self._users:
            self._python.put(for_python)

    def leave_to_user(self, keys_before: tuple[Any, ...], worker_seed: int) -> list[str]:
        """Stop seeding the generators that user code has seeded since ``keys_before`` was taken.

        PyTorch's documented ``seed_worker`` recipe, which derives NumPy's and Python's seeds from
        ``torch.initial_seed() % 2**32``, says nothing of its own and is not counted.

        Returns:
            the names of the generators that are the user's from now on.
        """
        derived = worker_seed % 2**32
        recipe = (
            mersenne.torch_words(torch.Generator().manual_seed(worker_seed)),
            _numpy_words(np.random.RandomState(derived)),
            _python_words(random.Random(derived)),
        )
        for name, before, now, known in zip(
            _NAMES, keys_before, generator_keys(), recipe, strict=True
        ):
            if _is_seeded(before, now, known):
                self._users.add(name)
        return [name for name in _NAMES if name in self._users]

    def is_users(self, name: str) -> bool:
        """Say whether a generator was left to the user."""
        return name in self._users


_NAMES = ("torch", "NumPy", "random")


_Key = tuple[int | None, bytes]


def generator_keys() -> tuple[_Key, _Key, _Key]:
    """Return what tells how each global generator was seeded: its seed, if it knows, and words."""
    return (
        (torch.initial_seed(), mersenne.torch_words(torch.default_generator)),
        (None, _numpy_words(np.random.mtrand._rand)),
        (None, _python_words(random)),
    )


def _is_seeded(before: _Key, now: _Key, known: bytes) -> bool:
    """Say whether a generator was seeded since ``before``, and not with a ``known`` seed.

    To seed it with the seed that it had begins its numbers anew, if any have been drawn.
    """
    if now[0] != before[0]:
        return True
    return now[1] not in (before[1], known) and not _drawn_from((before[1], known), now[1])


def _numpy_words(state: np.random.RandomState) -> bytes:
    return np.asarray(state.get_state(legacy=False)["state"]["key"]).tobytes()


def _python_words(generator: Any) -> bytes:
    return np.array(generator.getstate()[1][:-1], np.uint32).tobytes()


def _drawn_from(keys: tuple[bytes, ...], now: bytes) -> bool:
    """Say whether drawing numbers leads from one of these Mersenne Twister keys to ``now``.

    NumPy's and Python's generators are the same one: each 624 numbers make a new key. A hundred
    thousand numbers are looked at, more than anybody draws to set a worker up.
    """
    for key in keys:
        words = np.frombuffer(key, np.uint32)
        state = np.random.RandomState()
        state.set_state(("MT19937", words, len(words), 0, 0.0))
        for _ in range(100_000 // len(words)):
            state.bytes(words.nbytes)
            if _numpy_words(state) == now:
                return True
    return False


class TaskRng:
    """The generators of the task that runs in this thread, in the form of torch's container.

    They follow from the task alone, so they give the same numbers in the training process, in
    worker processes and in worker threads. A generator may be kept: it is seeded anew for each
    task. Those that are not asked for cost nothing.

    Attributes:
        random_generator: a ``random.Random``.
        torch_generator: a ``torch.Generator`` on the CPU, for ``torch.rand(..., generator=)``.
        numpy_generator: a ``numpy.random.Generator``.
    """

    @property
    def random_generator(self) -> random.Random:
        """Return Python's generator of the task."""
        return _generators_here().python()

    @property
    def torch_generator(self) -> torch.Generator:
        """Return torch's generator of the task."""
        return _generators_here().torch()

    @property
    def numpy_generator(self) -> np.random.Generator:
        """Return NumPy's generator of the task."""
        return _generators_here().numpy()


_TASK_RNG = TaskRng()


def task_rng() -> TaskRng:
    """Return random generators for use in a dataset, a collate function or a ``batch_transform``.

    What is drawn from them depends on the loader's seed, the epoch and the step, never on the
    worker, whichever ``backend=`` makes the batch; with ``backend="thread"`` they are the only
    generators of which that is true. Outside a loader, where a dataset is indexed by hand, they
    are seeded from torch's default generator each time that this is called.
    """
    if here.seed is None:
        draw = int(torch.empty((), dtype=torch.int64).random_().item())
        here.generators = _TaskGenerators(draw)
    return _TASK_RNG


class _TaskGenerators:
    """Three generators of one thread, made when first asked for and seeded for each task."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._python: random.Random | None = None
        self._torch: torch.Generator | None = None
        self._numpy: np.random.Generator | None = None

    def seed(self, seed: int) -> None:
        self._seed = seed
        if self._python is not None:
            self._python.seed(mix(seed, 1))
        if self._torch is not None:
            self._torch.manual_seed(mix(seed, 2))
        if self._numpy is not None:
            self._numpy.bit_generator.state = np.random.PCG64(mix(seed, 3)).state

    def python(self) -> random.Random:
        if self._python is None:
            self._python = random.Random(mix(self._seed, 1))
        return self._python

    def torch(self) -> torch.Generator:
        if self._torch is None:
            self._torch = torch.Generator().manual_seed(mix(self._seed, 2))
        return self._torch

    def numpy(self) -> np.random.Generator:
        if self._numpy is None:
            self._numpy = np.random.Generator(np.random.PCG64(mix(self._seed, 3)))
        return self._numpy


class _Here(threading.local):
    """The task that runs in this thread: its seed, and its generators if they were asked for."""

    seed: int | None = None
    generators: _TaskGenerators | None = None


here = _Here()


def _generators_here() -> _TaskGenerators:
    if here.generators is None:
        if here.seed is None:
            task_rng()
        else:
            here.generators = _TaskGenerators(here.seed)
    assert here.generators is not None
    return here.generators


def task_here() -> tuple[int | None, _TaskGenerators | None]:
    """Return what :func:`end_task` needs to go back to the present task."""
    return here.seed, here.generators


def begin_task(seed: int) -> tuple[int | None, _TaskGenerators | None]:
    """Say which task runs in this thread from now on; return what :func:`end_task` needs."""
    before = here.seed, here.generators
    here.seed = seed
    begin_generators(before)
    return before


NO_TASK = (None, None)  # what stands before most tasks: generators need nothing then


def begin_generators(before: tuple[int | None, _TaskGenerators | None]) -> None:
    """Begin the generators of the task that ``here.seed`` is of, behind what stood before."""
    if before[0] is not None:  # a loader inside a dataset: the outer task's go on after it
        here.generators = None
    elif before[1] is not None and here.seed is not None:
        before[1].seed(here.seed)


def end_task(before: tuple[int | None, _TaskGenerators | None]) -> None:
    """Go back to the task before, or to none."""
    here.seed = before[0]
    if before[0] is not None:
        here.generators = before[1]


class Seeding(Protocol):
    """What a fetch does to the generators around user code."""

    def save(self) -> Any:
        """Return what :meth:`end` needs; nothing changes."""

    def begin(self, seed: int) -> None:
        """Seed them for a task."""

    def end(self, saved: Any) -> None:
        """Put back what was saved."""


class BorrowedGenerators:
    """Seeding in the user's own process: what was there before is put back."""

    def __init__(self, generators: ProcessGenerators) -> None:
        self.save = generators.save
        self.begin = generators.seed
        self.end = generators.restore


class OwnGenerators:
    """Seeding in a worker: nobody else draws there, so there is nothing to put back."""

    def __init__(self, generators: ProcessGenerators, initial_seed: int) -> None:
        self._generators = generators
        self._initial_seed = initial_seed

    def save(self) -> None:
        """Nothing is put back."""

    def begin(self, seed: int) -> None:
        """Seed the generators for a task."""
        if torch.initial_seed() != self._initial_seed and not self._generators.is_users("torch"):
            torch.manual_seed(self._initial_seed)  # a task before seeded it
        self._generators.seed(seed)

    def end(self, saved: Any) -> None:
        """Leave them."""
