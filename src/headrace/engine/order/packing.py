"""A generator's state as text that JSON can hold."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import numpy.typing as npt
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


_GAUSS = np.dtype([("has", "<i4"), ("position", "<i4"), ("value", "<f8")])


def others() -> list[str] | None:
    """Return the states of NumPy's and Python's global generators; None for a kind unknown here."""
    theirs: Any = np.random.get_state(legacy=False)
    _, words, gauss = random.getstate()
    if theirs["bit_generator"] != "MT19937":
        return None
    numpy_rest = (theirs["has_gauss"], theirs["state"]["pos"], theirs["gauss"])
    python_rest = (gauss is not None, words[-1], gauss or 0.0)
    return [
        _packed(theirs["state"]["key"], numpy_rest),
        _packed(np.array(words[:-1], np.uint32), python_rest),
    ]


def set_others(texts: list[str]) -> None:
    """Put NumPy's and Python's global generators back.

    Raises:
        ValueError: the texts are no such states.
    """
    numpy_text, python_text = texts
    key, rest = _unpacked(numpy_text)
    state = {"key": key, "pos": int(rest["position"])}
    theirs = {"bit_generator": "MT19937", "state": state}
    np.random.set_state({**theirs, "has_gauss": int(rest["has"]), "gauss": float(rest["value"])})
    key, rest = _unpacked(python_text)
    gauss = float(rest["value"]) if rest["has"] else None
    random.setstate((3, (*key.tolist(), int(rest["position"])), gauss))


def _packed(words: npt.NDArray[np.uint32], rest: tuple[Any, ...]) -> str:
    raw = words.astype("<u4").tobytes() + np.array([rest], _GAUSS).tobytes()
    return base64.b64encode(raw).decode("ascii")


def _unpacked(text: str) -> tuple[npt.NDArray[np.uint32], Any]:
    raw = base64.b64decode(text.encode("ascii"), validate=True)
    if len(raw) != 4 * _WORDS + _GAUSS.itemsize:
        raise ValueError("it is too short or too long")
    words = np.frombuffer(raw, "<u4", _WORDS).astype(np.uint32)
    return words, np.frombuffer(raw, _GAUSS, 1, 4 * _WORDS)[0]


def is_others(texts: list[Any]) -> bool:
    """Say whether these are states that ``set_others`` can put back."""
    try:
        return len([_unpacked(text) for text in texts]) == 2
    except (ValueError, AttributeError):
        return False
