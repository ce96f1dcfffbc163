"""What tells a dataset from another one, in this run and in later ones: for caches."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, StackDataset, Subset

from headrace.data.files import Stamp


def identity_of(dataset: Any) -> str:
    """Return what a dataset says of its samples: its type, files, options, parts and functions.

    A source says so itself (``_identity``). Of what is known by its type alone, such as arrays in
    memory, two with other contents have one identity.
    """
    kind = type(dataset)
    own = getattr(kind, "_identity", None)
    parts = [f"{kind.__module__}.{kind.__qualname__}"]
    if own is not None:
        parts.append(own(dataset))
    elif isinstance(dataset, Subset):
        indices = np.asarray(dataset.indices, np.int64).tobytes()
        parts += [identity_of(dataset.dataset), blake2b(indices, digest_size=8).hexdigest()]
    elif isinstance(dataset, (ConcatDataset, StackDataset)):
        within = dataset.datasets
        named = within.items() if isinstance(within, Mapping) else enumerate(within)
        parts += [f"{name}: {identity_of(part)}" for name, part in named]
    elif isinstance(mark := getattr(dataset, "_fingerprint", None), str):  # Hugging Face's own
        parts.append(mark)
    return f"({' '.join(parts)})"


def files_identity(paths: Iterable[str | os.PathLike[str]]) -> str:
    """Return paths, sizes and times of change."""
    return repr([(os.path.abspath(path), Stamp.of(path)) for path in paths])


def function_identity(fn: Any) -> str:
    """Return a function's name, or how an object describes itself where that is not by address."""
    if isinstance(fn, partial):
        options = sorted(fn.keywords.items())
        return f"partial({function_identity(fn.func)}, {fn.args}, {options})"
    name = getattr(fn, "__qualname__", None)
    if name is None:
        name = repr(fn)
        name = type(fn).__qualname__ if " at 0x" in name else name
    return str(name)
