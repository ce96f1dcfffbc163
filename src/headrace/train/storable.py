"""Nested states as JSON and tensors: exact both ways, and nothing that would need unpickling.

A tensor is written as ``{"$tensor": name}`` and goes to a safetensors file under that name. What
JSON has no form for is an object with one key that begins with a dollar sign; dicts that would be
mistaken for one, or whose keys are not text, become lists of pairs.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headrace.errors import StateError
from headrace.extras import import_extra
from headrace.tree import NUMPY_DTYPES, TORCH_DTYPES, is_namedtuple

_DTYPES = {
    *NUMPY_DTYPES,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
} - {torch.complex128}


class TensorStore:
    """Tensors by name, on the CPU, each stored once however often it occurs."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._storages: set[int] = set()
        self._kept: list[Tensor] = []  # an address means a tensor only as long as that lives

    def add(self, name: str, tensor: Tensor) -> str:
        """Store a tensor; return its name, or that of the same tensor stored before.

        Raises:
            StateError: safetensors has no form for it.
        """
        if tensor.layout is not torch.strided or tensor.dtype not in _DTYPES or tensor.is_quantized:
            raise StateError(
                f"a tensor of dtype {tensor.dtype} and layout {tensor.layout} at {name} cannot be "
                f"saved: a checkpoint holds dense tensors of real numbers. Keep it out of the "
                f"state: register_buffer(..., persistent=False)."
            )
        tensor = tensor.detach()
        same = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and same in self._names:
            return self._names[same]
        while name in self.tensors:
            name += "'"  # keys 0 and "0", or "a.b" beside "a" that holds "b"
        self._names[same] = name
        self._kept.append(tensor)
        ours = tensor.cpu().contiguous()
        if ours.untyped_storage().data_ptr() in self._storages:
            ours = ours.clone()  # safetensors wants a storage of its own for each
        self._storages.add(ours.untyped_storage().data_ptr())
        self.tensors[name] = ours
        return name


def encode(value: Any, store: TensorStore, path: str) -> Any:
    """Return ``value`` as JSON values; its tensors go into ``store`` under names from ``path``.

    Raises:
        StateError: something in it that a checkpoint has no form for; names its key path.
    """
    if value is None or isinstance(
        value, (bool, str, int, float, np.bool_, np.integer, np.floating)
    ):
        return _scalar(value)
    if isinstance(value, Tensor):
        return {"$tensor": store.add(path, value)}
    if isinstance(value, np.ndarray) and value.dtype in TORCH_DTYPES:
        return {"$numpy": store.add(path, torch.from_numpy(value.copy()))}
    if isinstance(value, Mapping):
        return _mapping(value, store, path)
    if isinstance(value, (list, tuple)) and not is_namedtuple(value):
        items = [encode(item, store, f"{path}.{place}") for place, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    raise StateError(
        f"a {type(value).__name__} at {path} cannot be saved: a checkpoint holds tensors, numbers, "
        f"text, None, and lists, tuples and dicts of them. Leave it out of that state_dict()."
    )


def _scalar(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    return value


def _mapping(value: Mapping[Any, Any], store: TensorStore, path: str) -> Any:
    counts = isinstance(value, Counter)
    if not counts and all(isinstance(key, str) and key[:1] != "$" for key in value):
        return {key: encode(item, store, f"{path}.{key}") for key, item in value.items()}
    pairs = [
        [encode(key, store, f"{path}.<key>"), encode(item, store, f"{path}.{key}")]
        for key, item in value.items()
    ]
    return {"$counter" if counts else "$dict": pairs}


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what :func:`encode` was given."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        [(kind, content)] = value.items()
        if kind in _DECODERS:
            return _DECODERS[kind](content, tensors)
    return {key: decode(item, tensors) for key, item in value.items()}


def _dict(pairs: Any, tensors: Mapping[str, Tensor]) -> dict[Any, Any]:
    return {decode(key, tensors): decode(item, tensors) for key, item in pairs}


_DECODERS: dict[str, Callable[[Any, Mapping[str, Tensor]], Any]] = {
    "$tensor": lambda name, tensors: tensors[name],
    "$numpy": lambda name, tensors: tensors[name].numpy(),
    "$float": lambda text, _: float(text),
    "$tuple": lambda items, tensors: tuple(decode(item, tensors) for item in items),
    "$dict": _dict,
    "$counter": lambda pairs, tensors: Counter(_dict(pairs, tensors)),
}


def pack(value: Any) -> bytes:
    """Return a nested state as the bytes of one safetensors file."""
    safetensors = import_extra("safetensors.torch", "train")
    store = TensorStore()
    text = json.dumps(encode(value, store, "state"), allow_nan=False)
    return bytes(safetensors.save(store.tensors, metadata={"state": text}))


def unpack(data: bytes) -> Any:
    """Return what :func:`pack` was given."""
    safetensors = import_extra("safetensors.torch", "train")
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return decode(json.loads(header["__metadata__"]["state"]), safetensors.load(data))
