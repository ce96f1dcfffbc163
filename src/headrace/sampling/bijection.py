"""A keyed shuffle of [0, n) in which any position is computed at once, in no memory.

The order is never stored: position i of it is a function of (n, seed, number, i). So 10^10
items start as fast as ten, and an epoch resumes anywhere.
"""

import numpy as np
import numpy.typing as npt

from headrace.errors import OptionError

# Up to here the shuffle is a table. Feistel networks want halves of at least a few hundred
# values; a table of 65,536 is exactly uniform, takes half a MiB and about a millisecond.
TABLE_ITEMS = 2**16
# As in NIST's FF3-1. With ideal round functions 6 suffice (Patarin, "Security of random Feistel
# schemes with 5 or more rounds", CRYPTO 2004); with these, tests/sampling/test_bijection.py
# sees structure after 4 (z = 30 at steps of 2^k) and none after 6.
ROUNDS = 8
# The working set (5 arrays of this many uint64) stays in the second-level cache.
BLOCK = 16_384

Words = npt.NDArray[np.uint64]

_HALF = np.uint64(32)
_LOW = np.uint64(2**32 - 1)
# The increment and first multiplier of SplitMix64.
_MIX_1 = np.uint64(0x9E3779B97F4A7C15)
_MIX_2 = np.uint64(0xBF58476D1CE4E5B9)


class Bijection:
    """A permutation of [0, n) given by (seed, number).

    Up to 65,536 items: the ranks of n Philox words (Salmon et al., "Parallel random numbers:
    as easy as 1, 2, 3", SC 2011), which is a uniform shuffle. Beyond: an 8-round unbalanced
    Feistel network on Z_b x {0, 1}^k (the generalised Feistel cipher with cycle walking of
    Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002), with
    2^k <= sqrt(n) and b = ceil(n / 2^k), so that fewer than one position in 2^k leaves the
    range and walks on. A round function multiplies, folds and multiplies, with
    the constants of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014); round keys are Philox words
    keyed by (seed, number). A shuffle for training, not a cipher for secrets. Its scratch memory
    belongs to one caller at a time: a thread makes its own.

    Arguments:
        n: how many items, 1 <= n < 2^63.
        seed: any integer; its low 64 bits count.
        number: distinguishes permutations of one seed, 0 <= number < 2^64.
    """

    def __init__(self, n: int, seed: int, number: int = 0) -> None:
        if not 1 <= n < 2**63:
            raise OptionError(f"a shuffle needs from 1 to 2**63 - 1 items, got n={n}")
        self.n = n
        words = philox(seed, number)
        self._table: npt.NDArray[np.int64] | None = None
        if n <= TABLE_ITEMS:
            self._table = np.argsort(words.random_raw(n), kind="stable").astype(np.int64)
            return
        bits = (n.bit_length() - 1) // 2
        self._keys: Words = words.random_raw(ROUNDS)
        self._shift = np.uint64(bits)
        self._mask = np.uint64(2**bits - 1)
        self._top = np.uint64(64 - bits)
        self._b = np.uint64(-(-n >> bits))
        self._scratch = np.empty((4, BLOCK), dtype=np.uint64)

    def block(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the items at positions start to stop - 1, shape (stop - start,).

        Raises:
            IndexError: the positions are not within [0, n].
        """
        if not 0 <= start <= stop <= self.n:
            raise IndexError(f"positions {start} to {stop} are outside [0, {self.n}]")
        if self._table is not None:
            return self._table[start:stop].copy()
        values = np.arange(start, stop, dtype=np.uint64)
        for low in range(0, len(values), BLOCK):
            self._walk(values[low : low + BLOCK])
        return values.view(np.int64)

    def _walk(self, values: Words) -> None:
        """Replace each value by the first one of its cycle that lies in [0, n)."""
        self._permute(values)
        outside = values >= np.uint64(self.n)
        while outside.any():
            # A cycle of a permutation that left the range comes back to it.
            strays = np.flatnonzero(outside)
            walked = values[strays]
            self._permute(walked)
            values[strays] = walked
            outside[strays] = walked >= np.uint64(self.n)

    def _permute(self, values: Words) -> None:
        """Apply the network to at most BLOCK values of [0, b * 2^k), in place."""
        left, right, mixed, other = self._scratch[:, : len(values)]
        np.bitwise_and(values, self._mask, out=left)
        np.right_shift(values, self._shift, out=right)
        for even, odd in zip(self._keys[::2], self._keys[1::2], strict=True):
            _mix(left, even, mixed, other)
            # right + F(left) mod b: F is scaled to [0, b), the excess taken off. Where there
            # is none the difference wraps around to a huge number and loses the minimum.
            np.right_shift(mixed, _HALF, out=mixed)
            np.multiply(mixed, self._b, out=mixed)
            np.right_shift(mixed, _HALF, out=mixed)
            np.add(right, mixed, out=right)
            np.subtract(right, self._b, out=other)
            np.minimum(right, other, out=right)
            _mix(right, odd, mixed, other)
            np.right_shift(mixed, self._top, out=mixed)
            np.bitwise_xor(left, mixed, out=left)
        np.left_shift(right, self._shift, out=right)
        np.bitwise_or(left, right, out=values)


def _mix(values: Words, key: np.uint64, out: Words, other: Words) -> None:
    """Write a keyed hash of each value to `out`; its high bits are the good ones."""
    np.add(values, key, out=out)
    np.multiply(out, _MIX_1, out=out)
    np.right_shift(out, _HALF, out=other)
    np.bitwise_xor(out, other, out=out)
    np.multiply(out, _MIX_2, out=out)


def draws(n: int, seed: int, start: int, stop: int) -> npt.NDArray[np.int64]:
    """Return draws start to stop - 1 from [0, n) with replacement, shape (stop - start,).

    Draw i is Philox word i of this seed, scaled by a 128-bit product (Lemire, "Fast random
    integer generation in an interval", TOMACS 2019) without its rejection step, so that any
    position is reached at once: no item's probability is off by more than 2^-64.
    """
    first = start // 4  # a Philox counter gives four words
    words = philox(seed, 0, first).random_raw(stop - 4 * first)[start - 4 * first :]
    low, high = words & _LOW, words >> _HALF
    n_low, n_high = np.uint64(n % 2**32), np.uint64(n >> 32)
    middle = high * n_low + ((low * n_low) >> _HALF)
    carry = low * n_high + (middle & _LOW)
    result: Words = high * n_high + (middle >> _HALF) + (carry >> _HALF)
    return result.view(np.int64)


def philox(seed: int, number: int, counter: int = 0) -> np.random.Philox:
    """Make the Philox generator of (seed, number), from a given counter on."""
    key = np.array([seed % 2**64, number], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter)
