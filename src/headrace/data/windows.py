"""Windows that slide over a time series, read where it lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset, TensorDataset

from headrace.collate.stack import default_collate
from headrace.data.arrays import ArrayDataset
from headrace.data.columns import columns
from headrace.data.compose import Source
from headrace.data.gather import find_gatherer
from headrace.data.gatherer import Array, Gatherer, IndexArray, Leaf
from headrace.data.mapped import memory_file
from headrace.errors import ArrayMismatchError
from headrace.tree import is_namedtuple, leaves, map_leaves

# Elements are copied, never computed with, so integers of their size carry every type.
_CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class SlidingWindows(Source):
    """Windows of consecutive steps of a time series, as a dataset that can be gathered.

    Window i begins at step `i * stride`. The series is never copied: a sample is a view of it, and
    a batch is gathered from it. Shuffling windows is fine; splitting overlapping ones at random is
    not, see `chronological_split`.

    Args:
        steps: the series: a tensor or array of shape (time, ...), a tuple or dict of them, or a
            map-style dataset whose samples are the steps, in order.
        length: steps in a window.
        stride: steps from the beginning of a window to the beginning of the next.
        horizon: steps behind the window that are to be predicted from it. 0: a sample is the
            window, of shape (length, ...). Otherwise it is (window, steps behind it), of shapes
            (length, ...) and (horizon, ...).

    Raises:
        ValueError: an option below its minimum; fewer steps than one window needs.
        ArrayMismatchError: arrays of different lengths.
    """

    def __init__(self, steps: Any, length: int, stride: int = 1, horizon: int = 0) -> None:
        for name, value, least in (
            ("length", length, 1),
            ("stride", stride, 1),
            ("horizon", horizon, 0),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be an integer of {least} or more, got {value!r}.")
        self.steps = steps
        self.length, self.stride, self.horizon = length, stride, horizon
        self._arrays = _arrays_of(steps)
        total = _number_of_steps(steps if self._arrays is None else self._arrays)
        if total < self.span:
            raise ValueError(
                f"a window needs {self.span} steps (length={length}, horizon={horizon}), but the "
                f"series has {total}. Write length={max(1, total - horizon)}, or less."
            )
        self._windows = (total - self.span) // stride + 1

    @property
    def span(self) -> int:
        """Steps that one sample covers."""
        return self.length + self.horizon

    @property
    def gap(self) -> int:
        """Windows to leave out between two parts so that no step is in both."""
        return -(-self.span // self.stride) - 1

    def __len__(self) -> int:
        """Return the number of windows."""
        return self._windows

    def __getitem__(self, index: int) -> Any:
        """Return one window, or a window and what comes behind it."""
        at = index.__index__()
        if not -len(self) <= at < len(self):
            raise IndexError(
                f"window {at} is out of range: there are {len(self)}. "
                f"Write an index from 0 to {len(self) - 1}."
            )
        start = (at % len(self)) * self.stride
        middle = start + self.length
        window = self._part(start, middle)
        return (window, self._part(middle, middle + self.horizon)) if self.horizon else window

    def _part(self, start: int, stop: int) -> Any:
        if self._arrays is None:
            return default_collate([self.steps[t] for t in range(start, stop)])
        for array in leaves(self._arrays):
            if isinstance(array, np.memmap):
                memory_file(array, check=True)
        return map_leaves(lambda array: array[start:stop], self._arrays)

    def __gather__(self) -> Gatherer | None:
        """Join the gather protocol."""
        if self._arrays is None:
            inner = find_gatherer(self.steps)
            return None if inner is None else _GatheredSteps(inner, self)
        flat = columns(self._arrays)
        if flat is None or not all(map(_has_tensor_strides, leaves(self._arrays))):
            return None
        return _Windows(flat.spec, flat.watched, self._arrays, self)


def overlap_of(dataset: object) -> SlidingWindows | None:
    """Return the windows under a dataset if they overlap, None if nothing does."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    overlaps = isinstance(dataset, SlidingWindows) and dataset.gap > 0
    return dataset if overlaps else None  # type: ignore[return-value]


def _arrays_of(steps: Any) -> Any:
    """Return the arrays of a series as a tree; None for a dataset to be asked step by step."""
    if type(steps) is TensorDataset:
        return tuple(steps.tensors)
    if type(steps) is ArrayDataset:
        return steps.arrays
    if isinstance(steps, (torch.Tensor, np.ndarray)):
        return steps
    if isinstance(steps, Mapping):
        return dict(steps)
    if isinstance(steps, list) and steps and isinstance(steps[0], (torch.Tensor, np.ndarray)):
        raise TypeError(
            "a list of arrays could be the steps of one series, or several series side by side. "
            "Write np.stack(steps) for the first, tuple(arrays) for the second."
        )
    return steps if isinstance(steps, tuple) or is_namedtuple(steps) else None


def _number_of_steps(source: Any) -> int:
    if isinstance(source, Sized) and not isinstance(source, (Mapping, tuple)):
        return len(source)
    found = leaves(source)
    wrong = [type(a).__name__ for a in found if not isinstance(a, (torch.Tensor, np.ndarray))]
    if wrong or not found:
        raise TypeError(
            f"the series must be arrays or a map-style dataset, found {(wrong or ['nothing'])[0]}. "
            f"Write SlidingWindows(np.asarray(x), length=...)."
        )
    lengths = [len(array) for array in found]
    if len(set(lengths)) > 1:
        raise ArrayMismatchError(
            f"the arrays of one series need one row for each step, but have {lengths} rows. "
            f"Cut them to one length: SlidingWindows((x[:n], y[:n]), ...)."
        )
    return lengths[0]


def _grown(spec: Any, steps: int) -> Any:
    """Return the spec of `steps` samples stacked."""
    if isinstance(spec, Leaf):
        return Leaf((steps, *spec.shape), spec.dtype)
    if isinstance(spec, dict):
        return {key: _grown(value, steps) for key, value in spec.items()}
    parts = [_grown(part, steps) for part in spec]
    return type(spec)(*parts) if is_namedtuple(spec) else parts


def _window_spec(spec: Any, windows: SlidingWindows) -> Any:
    past = _grown(spec, windows.length)
    return [past, _grown(spec, windows.horizon)] if windows.horizon else past


class _Windows:
    """Gathers windows from arrays: one copy of consecutive bytes for each."""

    def __init__(
        self,
        spec: Any,
        watched: Sequence[torch.Tensor] | None,
        arrays: Any,
        windows: SlidingWindows,
    ) -> None:
        self.spec = _window_spec(spec, windows)
        self.watched = watched
        self._sources = leaves(arrays)
        self._files = [a for a in self._sources if isinstance(a, np.memmap)]
        self._length = len(windows)
        parts = [(0, windows.length)]
        if windows.horizon:
            parts.append((windows.length, windows.horizon))
        self._views = [
            _window_view(_copyable(source), len(windows), windows.stride, first, steps)
            for first, steps in parts
            for source in self._sources
        ]

    def __len__(self) -> int:
        return self._length

    def gather(self, indices: IndexArray, out: Sequence[Array]) -> None:
        for file in self._files:
            memory_file(file, check=True)
        places = torch.from_numpy(indices)
        for view, target in zip(self._views, out, strict=True):
            tensor = torch.from_numpy(target)
            torch.index_select(view, 0, places, out=_as_carrier(tensor))


class _GatheredSteps:
    """Gathers windows from a dataset that can gather steps."""

    def __init__(self, inner: Gatherer, windows: SlidingWindows) -> None:
        self.spec = _window_spec(inner.spec, windows)
        self.watched = inner.watched
        self._inner = inner
        self._length = len(windows)
        self._stride = windows.stride
        ends = np.cumsum([windows.length, windows.horizon])
        self._offsets = [np.arange(windows.length), np.arange(ends[0], ends[1])]

    def __len__(self) -> int:
        return self._length

    def gather(self, indices: IndexArray, out: Sequence[Array]) -> None:
        starts = indices.astype(np.intp)[:, None] * self._stride
        width = len(leaves(self._inner.spec))
        for part, first in enumerate(range(0, len(out), width)):
            steps = (starts + self._offsets[part]).ravel()
            targets = out[first : first + width]
            rows = [t.reshape(len(steps), *t.shape[2:]) for t in targets]
            self._inner.gather(steps, rows)


def _copyable(source: torch.Tensor | Array) -> torch.Tensor:
    if isinstance(source, torch.Tensor):
        return _as_carrier(source.detach())
    return _as_carrier(torch.from_numpy(_writable_alias(source)))


def _as_carrier(tensor: torch.Tensor) -> torch.Tensor:
    carrier = _CARRIERS.get(tensor.itemsize)
    return tensor if carrier is None else tensor.view(carrier)


def _has_tensor_strides(source: torch.Tensor | Array) -> bool:
    """Whether torch has tensors that lie in memory like this: not those of reversed arrays."""
    if isinstance(source, torch.Tensor):
        return True
    return all(step >= 0 and step % source.itemsize == 0 for step in source.strides)


class _Alias:
    """The memory of an array, said to be writable."""

    def __init__(self, array: Array) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface
        self._keep = array


def _writable_alias(array: Array) -> Array:
    """Return an array on the same memory that torch takes without a warning; it is only read."""
    return array if array.flags.writeable else np.asarray(_Alias(array))


def _window_view(
    source: torch.Tensor, count: int, stride: int, first: int, steps: int
) -> torch.Tensor:
    """Return all windows as one tensor of shape (windows, steps, ...) that shares the memory."""
    step = source.stride(0)
    return source.as_strided(
        (count, steps, *source.shape[1:]),
        (stride * step, *source.stride()),
        source.storage_offset() + first * step,
    )
