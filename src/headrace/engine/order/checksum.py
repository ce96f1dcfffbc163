"""The checksum that a state carries: what was cut, edited or mixed on its way is not taken on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

_FIELD = "checksum"


def checksum(state: dict[str, Any], fields: Iterable[str]) -> str:
    """Return the checksum of a state's own fields, the same once it was JSON.

    What a library writes beside them (accelerate does) is not ours to check.
    """
    own = {name: state.get(name) for name in fields if name != _FIELD}
    text = json.dumps(_canonical(own), separators=(",", ":"))
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _canonical(value: Any) -> Any:
    """Return a value such that what JSON does to keys and tuples, and to their order, is undone."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, dict):
        pairs = ([str(key), _canonical(inner)] for key, inner in value.items())
        return sorted(pairs, key=lambda pair: pair[0])
    if isinstance(value, (list, tuple)):
        return [_canonical(inner) for inner in value]
    return _named(value)  # of a dataset's own state, or a sampler's: it went through no JSON


def _named(value: Any) -> list[str]:
    """Return what tells a value that JSON does not know from others of its type, where it can."""
    kind, raw = type(value).__name__, b""
    if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta:
        kind = f"{value.dtype} {tuple(value.shape)}"
        plain = value.detach().cpu().contiguous()
        raw = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        kind, raw = f"{value.dtype} {value.shape}", value.tobytes()
    elif isinstance(value, (bytes, bytearray)):
        raw = bytes(value)
    return [kind, blake2b(raw, digest_size=8).hexdigest()]
