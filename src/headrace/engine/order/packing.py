"""A generator's state as text that JSON can hold."""

from __future__ import annotations

import base64

import numpy as np
import torch

# torch keeps the 624 words of 32 bits of its Mersenne Twister in 64 bits each, between a header
# and what is left of the last normal deviates. Without the empty halves it is half as long.
_HEAD, _WORDS, _SIZE = 24, 624, 5056
_WORDS_END = _HEAD + 8 * _WORDS
_PACKED_END = _HEAD + 4 * _WORDS


def encode(state: torch.Tensor) -> str:
    """Return a generator's state as text."""
    raw = state.numpy().tobytes()
    if len(raw) == _SIZE:
        words = np.frombuffer(raw, np.uint64, _WORDS, _HEAD)
        short = words.astype("<u4")
        if np.array_equal(short, words):
            raw = raw[:_HEAD] + short.tobytes() + raw[_WORDS_END:]
    return base64.b64encode(raw).decode("ascii")


def decode(text: str) -> torch.Tensor:
    """Return a generator's state from text.

    Raises:
        ValueError: it is no base64 text.
    """
    raw = base64.b64decode(text.encode("ascii"), validate=True)
    if len(raw) == _SIZE - 4 * _WORDS:
        words = np.frombuffer(raw, "<u4", _WORDS, _HEAD).astype(np.uint64)
        raw = raw[:_HEAD] + words.tobytes() + raw[_PACKED_END:]
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0)
