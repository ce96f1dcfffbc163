"""Which datasets can gather: those that say so, torch's columns, and compositions of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, StackDataset, Subset, TensorDataset

from headrace.data.columns import columns
from headrace.data.gatherer import Array, Gatherer, IndexArray, Leaf, in_range
from headrace.errors import ArrayTypeError, SampleIndexError
from headrace.tree import leaves


def find_gatherer(dataset: object) -> Gatherer | None:
    """Return the gatherer of a dataset, or None where samples must be asked for one by one."""
    kind = type(dataset)
    build = _BUILDERS.get(kind) or BUILDERS_BY_NAME.get(f"{kind.__module__}.{kind.__qualname__}")
    if build is not None:
        built: Gatherer | None = build(dataset)
        return built
    definer = _defining_class(type(dataset), "__gather__")
    if definer is None or not all(
        issubclass(definer, owner)
        for owner in (
            _defining_class(type(dataset), name) for name in ("__getitem__", "__getitems__")
        )
        if owner is not None
    ):
        return None
    gatherer = dataset.__gather__()  # type: ignore[attr-defined]
    if gatherer is not None and not isinstance(gatherer, Gatherer):
        raise ArrayTypeError(
            f"{type(dataset).__name__}.__gather__() returned {type(gatherer).__name__}. "
            f"Return headrace.columns(...), an object with spec, watched and gather(), or None."
        )
    return gatherer


def _defining_class(cls: type, name: str) -> type | None:
    return next((base for base in cls.__mro__ if name in vars(base)), None)


class _Reindexed:
    """The samples of another gatherer, in the order of a list of indices."""

    def __init__(self, inner: Gatherer, indices: IndexArray) -> None:
        self.spec = inner.spec
        self.watched = inner.watched
        self._inner = inner
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def gather(self, indices: IndexArray, out: Sequence[Array]) -> None:
        self._inner.gather(self._indices[indices], out)


class _Concatenated:
    """The samples of several gatherers of one spec, one behind the other."""

    def __init__(self, parts: Sequence[Gatherer]) -> None:
        self.spec = parts[0].spec
        watched = [p.watched for p in parts]
        self.watched = None if None in watched else [t for w in watched if w for t in w]
        self._parts = parts
        self._ends = np.cumsum([len(p) for p in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def gather(self, indices: IndexArray, out: Sequence[Array]) -> None:
        owners = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(owners):
            part = self._parts[number]
            places = np.flatnonzero(owners == number)
            local = indices[places] - (self._ends[number] - len(part))
            if len(places) == len(indices):
                part.gather(local, out)
                continue
            rows = [np.empty((len(places), *o.shape[1:]), o.dtype) for o in out]
            part.gather(local, rows)
            for target, row in zip(out, rows, strict=True):
                target[places] = row


class _Stacked:
    """The samples of several gatherers side by side."""

    def __init__(self, spec: Any, parts: Sequence[Gatherer]) -> None:
        self.spec = spec
        watched = [p.watched for p in parts]
        self.watched = None if None in watched else [t for w in watched if w for t in w]
        self._parts = parts
        self._widths = [len(leaves(p.spec)) for p in parts]

    def __len__(self) -> int:
        return len(self._parts[0])

    def gather(self, indices: IndexArray, out: Sequence[Array]) -> None:
        start = 0
        for part, width in zip(self._parts, self._widths, strict=True):
            part.gather(indices, out[start : start + width])
            start += width


def _gather_tensors(dataset: TensorDataset) -> Gatherer | None:
    return columns(tuple(dataset.tensors))


def _gather_subset(dataset: Subset[Any]) -> Gatherer | None:
    inner = find_gatherer(dataset.dataset)
    if inner is None:
        return None
    try:
        indices = in_range(dataset.indices, len(inner), "the dataset under a Subset")
    except (SampleIndexError, OverflowError):
        return None  # only the samples that are asked for may fail
    return None if indices is None else _Reindexed(inner, indices)


def _gather_concat(dataset: ConcatDataset[Any]) -> _Concatenated | None:
    parts = [find_gatherer(part) for part in dataset.datasets]
    known = [p for p in parts if p is not None]
    same = len(known) == len(parts) and all(_alike(p.spec, known[0].spec) for p in known)
    return _Concatenated(known) if same else None


def _alike(spec: Any, other: Any) -> bool:
    """Say whether two specs have the same leaves in the same order: ``==`` on dicts does not."""
    if type(spec) is not type(other):
        return False
    if isinstance(spec, dict):
        return list(spec) == list(other) and _alike([*spec.values()], [*other.values()])
    if isinstance(spec, Leaf):
        return bool(spec == other)
    return len(spec) == len(other) and all(map(_alike, spec, other))


def _gather_stack(dataset: StackDataset[Any]) -> _Stacked | None:
    stacked: Any = dataset.datasets
    named = isinstance(stacked, dict)
    parts = [find_gatherer(part) for part in (stacked.values() if named else stacked)]
    known = [p for p in parts if p is not None]
    if len(known) < len(parts):
        return None
    specs = [p.spec for p in known]
    return _Stacked(dict(zip(stacked, specs, strict=True)) if named else specs, known)


_BUILDERS: dict[type, Any] = {
    TensorDataset: _gather_tensors,
    Subset: _gather_subset,
    ConcatDataset: _gather_concat,
    StackDataset: _gather_stack,
}

# Classes of other libraries, which are not imported here; exact types, as above.
BUILDERS_BY_NAME: dict[str, Any] = {}
