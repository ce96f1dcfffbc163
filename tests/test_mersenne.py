"""One draw of words serves three generators: as random together as three draws would be."""

import random

import numpy as np
import pytest
import torch

from headrace import mersenne
from headrace.rng import BorrowedGenerators, ProcessGenerators

_BITS = 32 * mersenne.WORDS
_PINNED = [
    0.10601999287500619,
    0.3647952985504187,
    0.47349171338899143,
    0.2168008352972326,
    0.4056828308774816,
    0.48944386557103514,
    0.20358204615513886,
    0.10658700770282448,
    0.6879819107004903,
]


def _orders() -> list[np.ndarray]:
    """Return which of the drawn words stands where in the keys of torch, NumPy and Python."""
    source = mersenne.WordSource()
    words = np.arange(mersenne.WORDS, dtype=np.uint32).view(np.uint64)
    source.draw = lambda _: np.concatenate([np.zeros(12, np.uint64), words])  # type: ignore[method-assign]
    return [np.frombuffer(key, np.uint32) for key in source(0)]


def _given(key: np.ndarray, count: int) -> np.ndarray:
    """Return the first words that a Mersenne Twister gives, as sums of bits of the drawn words.

    A row a bit of theirs, a column a drawn bit. Tempering maps the words to others one to one, and
    is left out (Matsumoto and Nishimura, 1998).
    """
    state = np.zeros((mersenne.WORDS, 32, _BITS // 8), np.uint8)
    for place, word in enumerate(key):
        for bit in range(32):
            state[place, bit, 4 * word + bit // 8] = 1 << bit % 8
    for place in range(count):
        low, high = state[(place + 1) % mersenne.WORDS], state[place]
        both = np.concatenate([low[:31], high[31:]])
        made = state[(place + 397) % mersenne.WORDS].copy()
        made[:31] ^= both[1:]
        for bit in range(32):
            if 0x9908B0DF >> bit & 1:
                made[bit] ^= both[0]
        state[place] = made
    return state[:count].reshape(32 * count, -1)


def _rank(rows: np.ndarray) -> int:
    """Return the rank of a matrix of packed bits."""
    rows = rows.view(np.uint64).copy()
    rank = 0
    for column in range(_BITS):
        word, bit = divmod(column, 64)
        having = rank + np.flatnonzero(rows[rank:, word] >> np.uint64(bit) & np.uint64(1))
        if len(having):
            first, others = having[0], having[1:]
            rows[others, word:] ^= rows[first, word:]
            rows[[rank, first]] = rows[[first, rank]]
            rank += 1
    return rank


def test_each_generator_has_every_word_in_an_order_of_its_own() -> None:
    orders = _orders()
    assert all(sorted(order) == list(range(mersenne.WORDS)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 3


def test_the_first_200_words_of_the_three_are_independent() -> None:
    given = np.concatenate([_given(order, 200) for order in _orders()])
    assert _rank(given) == len(given) == 3 * 200 * 32


def test_dependent_words_are_found() -> None:
    """Rotated by a third, a generator would give the other's words a little later."""
    key = np.arange(mersenne.WORDS)
    given = np.concatenate([_given(key, 230), _given(np.roll(key, -208), 230)])
    assert _rank(given) < len(given)


@pytest.mark.parametrize("way", ["raw", "public"])
def test_the_numbers_of_a_task_are_these(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are public: who changes them raises the version of the state."""
    if way == "public":
        monkeypatch.setattr(mersenne, "_find", lambda *_: None)
    borrowed = BorrowedGenerators(ProcessGenerators())
    saved = borrowed.save()
    try:
        borrowed.begin(2**63 + 5)
        numbers = [
            *torch.rand(3, dtype=torch.float64).tolist(),
            *np.random.rand(3).tolist(),
            *(random.random() for _ in range(3)),
        ]
    finally:
        borrowed.end(saved)
    assert numbers == _PINNED
