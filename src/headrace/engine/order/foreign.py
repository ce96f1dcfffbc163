"""NumPy's and Python's generators that a sampler holds, in the form that torch's have here."""

from __future__ import annotations

import copy
import json
import random
from typing import Any, TypeAlias

import numpy as np
import torch

_KINDS = (np.random.Generator, np.random.RandomState, random.Random)


def is_foreign(thing: Any) -> bool:
    """Say whether something is a generator whose state can be taken and put back.

    The global ones are not: others draw from them too, and a state has them apart.
    """
    if thing is np.random.mtrand._rand or thing is getattr(random, "_inst", None):
        return False
    return isinstance(thing, _KINDS) and not isinstance(thing, random.SystemRandom)


class ForeignGenerator:
    """A generator of NumPy's or Python's with the methods of torch's; two of one are equal."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ForeignGenerator) and other._generator is self._generator

    def __hash__(self) -> int:
        return id(self._generator)

    def get_state(self) -> torch.Tensor:
        """Return its state as bytes of JSON."""
        text = json.dumps([type(self._generator).__name__, _plain(self._state())])
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def set_state(self, state: torch.Tensor) -> None:
        """Put a state back.

        Raises:
            ValueError: it is none of such a generator.
        """
        try:
            kind, plain = json.loads(bytes(state.numpy()))
            raw, own = _from_plain(plain), type(self._generator).__name__
            if kind != own:
                raise ValueError(f"it is of a {kind}, and the sampler has a {own}")
            if isinstance(self._generator, random.Random):
                self._generator.setstate((raw[0], tuple(raw[1]), raw[2]))
            elif isinstance(self._generator, np.random.RandomState):
                self._generator.set_state(raw)
            else:
                self._generator.bit_generator.state = raw
        except (TypeError, KeyError, IndexError) as error:
            raise ValueError(str(error)) from error

    def check(self, state: torch.Tensor) -> None:
        """Raise where a state cannot be put back; the generator stays where it is.

        Raises:
            ValueError: it is none of such a generator.
        """
        ForeignGenerator(copy.deepcopy(self._generator)).set_state(state)

    def manual_seed(self, seed: int) -> None:
        """Begin the stream of a seed."""
        if isinstance(self._generator, random.Random):
            self._generator.seed(seed)
        elif isinstance(self._generator, np.random.RandomState):
            self._generator.seed(seed % 2**32)
        else:
            inner = self._generator.bit_generator
            inner.state = type(inner)(seed).state

    def _state(self) -> Any:
        if isinstance(self._generator, random.Random):
            return self._generator.getstate()
        if isinstance(self._generator, np.random.RandomState):
            return self._generator.get_state(legacy=False)
        return self._generator.bit_generator.state


Generator: TypeAlias = torch.Generator | ForeignGenerator


_ARRAY = "array of"


def _plain(value: Any) -> Any:
    """Return a state as JSON holds it: arrays as their type and their bytes."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        return {_ARRAY: value.dtype.str, "bytes": value.tobytes().hex()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value


def _from_plain(value: Any) -> Any:
    if isinstance(value, dict) and _ARRAY in value:
        return np.frombuffer(bytes.fromhex(value["bytes"]), value[_ARRAY]).copy()
    if isinstance(value, dict):
        return {key: _from_plain(inner) for key, inner in value.items()}
    return [_from_plain(inner) for inner in value] if isinstance(value, list) else value
