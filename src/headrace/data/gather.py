"""Columnar datasets: a whole batch with one gather per column, no Python per sample.

The protocol is one method. A dataset that can gather defines ``__gather__()``, which returns a
:class:`Gatherer`, or None to decline. Most datasets return :func:`columns`::

    class Points(torch.utils.data.Dataset):
        def __len__(self):
            return len(self.x)

        def __getitem__(self, index):
            return {"x": self.x[index], "label": self.y[index]}

        def __gather__(self):
            return headrace.columns({"x": self.x, "label": self.y})

The promise is that the default collation of ``[dataset[i] for i in indices]`` and the gather of
``indices`` are the same batch. A subclass that overrides ``__getitem__`` but not ``__gather__``
breaks that promise, so it is not asked.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch.utils.data import ConcatDataset, StackDataset, Subset, TensorDataset

from headrace.errors import ArrayMismatchError, ArrayTypeError, SampleIndexError, TruncatedFileError
from headrace.tree import NUMPY_DTYPES, TORCH_DTYPES, is_namedtuple, leaves

IndexArray: TypeAlias = np.ndarray[Any, np.dtype[np.integer[Any]]]
Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_CARRIERS: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
}


_BYTE = np.dtype(np.uint8)


@dataclass(frozen=True)
class Leaf:
    """One column of a batch: shape of a sample, type of its elements, as torch names it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def carrier(self) -> np.dtype[Any]:
        """The NumPy type that carries the elements: their own, or an integer of their size."""
        return NUMPY_DTYPES.get(self.dtype, _CARRIERS.get(self.dtype.itemsize, _BYTE))

    @property
    def size_bytes(self) -> int:
        """Bytes of one sample."""
        return math.prod(self.shape) * self.dtype.itemsize


@runtime_checkable
class Gatherer(Protocol):
    """Fills arrays with the samples at given indices.

    ``spec`` is the batch as nested dicts, lists and named tuples with a :class:`Leaf` in the place
    of each tensor. ``watched`` are the tensors that the samples are read from: the engine looks at
    their version counters, and gathers again what was gathered ahead of a change. None means that
    a change could not be seen; then nothing is gathered ahead.
    """

    spec: Any
    watched: Sequence[torch.Tensor] | None

    def __len__(self) -> int:
        """Return the number of samples."""

    def gather(self, indices: IndexArray, out: Sequence[Array]) -> None:
        """Write samples ``indices`` (each in ``[0, len)``) to ``out``.

        ``out`` has one array of shape ``(len(indices), *leaf.shape)`` and type ``leaf.carrier`` for
        each leaf of ``spec``, in order. Arrays are C-contiguous.
        """


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


class _Column:
    """A tensor or array whose rows are samples."""

    def __init__(self, source: torch.Tensor | Array) -> None:
        array = source if isinstance(source, np.ndarray) else _carried(source)
        self._array = array
        self._in_file = memory_file(array) is not None
        # np.memmap.__array_finalize__ costs more than a row: take from a plain array.
        self._rows = array.view(np.ndarray) if isinstance(array, np.memmap) else array
        self._contiguous = array.flags.c_contiguous
        # In an archive, elements stand at any byte: of those, NumPy would copy the whole array.
        self._as_bytes = self._contiguous and not array.flags.aligned
        if self._as_bytes:
            self._rows = _row_bytes(self._rows)

    def take(self, indices: IndexArray, out: Array) -> None:
        if self._in_file:
            memory_file(self._array, check=True)
        if self._as_bytes:
            out = _row_bytes(out)
        if self._contiguous:
            # "clip" writes straight into out ("raise" would buffer); indices are in range already.
            self._rows.take(indices, 0, out, "clip")
        else:
            out[...] = self._rows[indices]


def _row_bytes(array: Array) -> Array:
    """Return an array as its bytes: (rows, bytes of a row)."""
    return array.reshape(len(array), math.prod(array.shape[1:])).view(np.uint8)


def memory_file(array: Array, *, check: bool = False) -> mmap.mmap | None:
    """Return the memory map of a file that an array reads from, None for plain memory.

    Raises:
        TruncatedFileError: with ``check``, when the file has become shorter than the array: to
            read past its end is a bus error that ends the interpreter, not an exception.
    """
    owner: Any = array  # np.asarray(memmap) is a plain array, whose base is the memmap
    while not isinstance(file := getattr(owner, "_mmap", None), mmap.mmap):
        owner = owner.base
        if not isinstance(owner, np.ndarray):
            return None
    if check and file.size() < (end := _end_in_file(array)):
        raise TruncatedFileError(
            f"a memory-mapped array ends at byte {end:,}, but {owner.filename or 'its file'} has "
            f"only {file.size():,} bytes left: it was truncated after it was opened. "
            f"Write the file again and reopen it: make the dataset again, which also writes anew "
            f"what it keeps in a cache directory."
        )
    return file


class MappedFiles:
    """The files that arrays are mapped from, for a look at their lengths before each read."""

    def __init__(self, arrays: Iterable[Array]) -> None:
        found = [(memory_file(array), array) for array in arrays]
        self._files = [(file, _end_in_file(a), a) for file, a in found if file is not None]

    def check(self) -> None:
        """Check that no file has become shorter than the arrays in it.

        Raises:
            TruncatedFileError: one has.
        """
        for file, end, array in self._files:
            if file.size() < end:
                memory_file(array, check=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedFiles, ((),)  # arrays that were pickled are in memory


def _carried(tensor: torch.Tensor) -> Array:
    if tensor.dtype not in NUMPY_DTYPES:
        tensor = tensor.view(TORCH_DTYPES[_CARRIERS[tensor.itemsize]])
    array: Array = tensor.detach().numpy()
    return array


def _end_in_file(array: Array) -> int:
    """Return how long a file must be for every element of an array mapped from it to be there."""
    # np.memmap.offset is that of the map it was sliced from; its rows start where its data does.
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    start = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    spans = ((n - 1) * step for n, step in zip(array.shape, array.strides, strict=True) if n > 0)
    offset = int(getattr(base, "offset", 0))
    end: int = offset + int(start) + sum(max(s, 0) for s in spans) + array.itemsize
    return end


class Columns:
    """A gatherer over tensors and arrays with as many rows as the dataset has samples."""

    def __init__(self, spec: Any, sources: Sequence[torch.Tensor | Array]) -> None:
        self.spec = spec
        self.watched = _watchable(sources)
        self._sources = sources  # keeps what the rows view alive
        self._columns = [_Column(source) for source in sources]
        self._length = len(sources[0])

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._length

    def gather(self, indices: IndexArray, out: Sequence[Array]) -> None:
        """Take rows ``indices`` of each column."""
        for column, target in zip(self._columns, out, strict=True):
            column.take(indices, target)


def _watchable(sources: Sequence[torch.Tensor | Array]) -> Sequence[torch.Tensor] | None:
    tensors = [s for s in sources if isinstance(s, torch.Tensor)]
    return None if any(t.is_inference() for t in tensors) else tensors


def columns(tree: Any) -> Columns | None:
    """Return the gatherer of a tree of tensors and arrays, or None where they do not fit.

    Args:
        tree: nested dicts, tuples, lists and named tuples of tensors and NumPy arrays, each of
            shape ``(samples, ...)``. The batches have the same nesting, as the default collation
            makes it (a tuple becomes a list).

    What cannot be gathered (tensors that require a gradient, are not dense CPU tensors, or are of a
    subclass of ``torch.Tensor``) gives None: the dataset is then asked sample by sample.

    Raises:
        ArrayMismatchError: the arrays have different lengths.
    """
    sources = leaves(tree)
    if not sources or not all(map(_fits, sources)):
        return None
    lengths = [len(source) for source in sources]
    if len(set(lengths)) > 1:
        raise ArrayMismatchError(
            f"the columns have different lengths: {lengths}. All need one row for each sample."
        )
    return Columns(_spec(tree), sources)


def _fits(source: object) -> bool:
    if isinstance(source, np.ndarray):
        native = source.dtype in TORCH_DTYPES and source.dtype.isnative
        plain = type(source) in (np.ndarray, np.memmap)
        # Arrays become tensors on the default device, as in torch.
        return native and plain and source.ndim > 0 and torch.get_default_device().type == "cpu"
    return (
        type(source) is torch.Tensor
        and source.ndim > 0
        and source.device.type == "cpu"
        and source.layout is torch.strided
        and not (source.requires_grad or source.is_quantized or source.is_nested)
        and not (source.is_conj() or source.is_neg())
        and (source.dtype in NUMPY_DTYPES or source.itemsize in _CARRIERS)
    )


def _spec(tree: Any) -> Any:
    """Return what the default collation makes of samples that are rows of ``tree``."""
    if isinstance(tree, Mapping):
        return {key: _spec(value) for key, value in tree.items()}
    if is_namedtuple(tree):
        return type(tree)(*(map(_spec, tree)))
    if isinstance(tree, (tuple, list)):
        return [_spec(value) for value in tree]
    dtype = TORCH_DTYPES[tree.dtype] if isinstance(tree, np.ndarray) else tree.dtype
    return Leaf(tuple(tree.shape[1:]), dtype)


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


def in_range(indices: Any, length: int, what: str) -> IndexArray | None:
    """Return indices as an array in ``[0, length)``; None where they are not all integers.

    Negative ones count from the end, as in a list.

    Raises:
        SampleIndexError: one is outside ``[-length, length)``.
    """
    if isinstance(indices, torch.Tensor):
        indices = indices.numpy() if indices.device.type == "cpu" else None
    elif isinstance(indices, range):
        indices = np.arange(indices.start, indices.stop, indices.step, dtype=np.intp)
    elif not isinstance(indices, np.ndarray):
        indices = np.array(indices, np.intp) if _all_integers(indices) else None
    if indices is None or indices.ndim != 1 or indices.dtype.kind not in "iu":
        return None
    low, high = (int(indices.min()), int(indices.max())) if len(indices) else (0, -1)
    if low < -length or high >= length:
        wrong = high if high >= length else low
        raise SampleIndexError(
            f"index {wrong} is out of range for {what} with {length} samples. "
            f"Yield indices from 0 to {length - 1}."
        )
    if low < 0:
        indices = np.where(indices < 0, indices + length, indices)
    array: IndexArray = np.ascontiguousarray(indices, np.intp)
    return array


def _all_integers(indices: Any) -> bool:
    return all(kind is int or issubclass(kind, np.integer) for kind in set(map(type, indices)))


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
