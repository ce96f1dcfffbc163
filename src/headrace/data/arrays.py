"""NumPy arrays and memory maps as a dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from headrace.data.array_files import (
    Guarded,
    MapMode,
    map_under,
    open_npy,
    open_npz,
    open_safetensors,
)
from headrace.data.columns import columns
from headrace.data.compose import Source
from headrace.data.files import PathLike
from headrace.data.gatherer import Array, Gatherer
from headrace.data.identity import files_identity, function_identity
from headrace.data.mapped import MappedFiles
from headrace.errors import ArrayMismatchError, ArrayTypeError
from headrace.tree import NUMPY_DTYPES, TORCH_DTYPES

Arrays: TypeAlias = Array | Sequence[Array] | Mapping[str, Array]
Paths: TypeAlias = PathLike | Sequence[PathLike] | Mapping[str, PathLike]


class ArrayDataset(Source):
    """Samples are the rows of NumPy arrays or memory maps, gathered a batch at a time.

    Args:
        arrays: one array, a tuple or list of them, or a dict of them, each of shape
            ``(samples, ...)``. A sample is a row, a tuple of rows, or a dict of rows. Tensors only
            of types that NumPy has not (bfloat16, float8).
        more: further arrays: ``ArrayDataset(x, y)`` is ``ArrayDataset((x, y))``.

    Raises:
        ArrayMismatchError: the arrays have different lengths, or there are none.
        ArrayTypeError: an array holds objects, strings, dates or bytes in foreign order.

    A change made to an array during an epoch is seen from the next block (about 1 MiB) on, at the
    latest; NumPy has no version counter to tell sooner.
    """

    def __init__(self, arrays: Arrays, *more: Array) -> None:
        self.arrays = _tree((arrays, *more) if more else arrays)
        self._open: Callable[[], Any] | None = None
        sources = _leaves(self.arrays)
        for name, array in sources.items():
            _check(name, array)
        lengths = {name: len(array) for name, array in sources.items()}
        if len(set(lengths.values())) != 1:
            found = ", ".join(f"{name} has {n}" for name, n in lengths.items()) or "there are none"
            raise ArrayMismatchError(
                f"arrays of one dataset need one row for each sample, but {found}. "
                f"Cut them to one length: ArrayDataset(x[:n], y[:n])."
            )
        self._length = next(iter(lengths.values()))
        self._files = _in_files(self.arrays)

    @classmethod
    def from_npy(cls, paths: Paths, *more: PathLike, mmap_mode: MapMode = "r") -> ArrayDataset:
        """Open ``.npy`` files as memory maps: nothing is read before a sample is.

        Args:
            paths: one path, a tuple or list of them, or a dict of them.
            more: further paths.
            mmap_mode: as in :func:`numpy.load`.

        Pickling the dataset (for worker processes that are spawned) pickles the paths.
        """
        return cls._opened(partial(open_npy, (paths, *more) if more else paths, mmap_mode))

    @classmethod
    def from_npz(cls, path: PathLike, names: Sequence[str] | None = None) -> ArrayDataset:
        """Open the arrays of an ``.npz`` archive; a sample is a dict of their rows.

        Arrays that are stored (:func:`numpy.savez`) are memory-mapped where they stand in the
        archive, without looking at its checksums. Compressed ones (:func:`numpy.savez_compressed`)
        are read into memory, once in each process that unpickles the dataset.

        Args:
            path: the archive.
            names: which arrays, in which order; None is all of them.

        Raises:
            SourceError: it is no such archive, or it is damaged.
            ArrayTypeError: an array of Python objects, which are never unpickled.
            MissingColumnError: a name that it does not have.
        """
        return cls._opened(partial(open_npz, path, names))

    @classmethod
    def from_safetensors(cls, path: PathLike, names: Sequence[str] | None = None) -> ArrayDataset:
        """Open the tensors of a ``.safetensors`` file; a sample is a dict of their rows.

        They are memory-mapped, as NumPy arrays, or as torch tensors where NumPy has no such type
        (bfloat16, float8). It takes no library.

        Args:
            path: the file.
            names: which tensors, in which order; None is all of them.

        Raises:
            SourceError: it is no such file, or it is damaged.
            MissingColumnError: a name that it does not have.
        """
        return cls._opened(partial(open_safetensors, path, names))

    @classmethod
    def _opened(cls, open_files: Callable[[], Any]) -> ArrayDataset:
        dataset = cls(open_files())
        dataset._open = open_files
        return dataset

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._length

    def __getitem__(self, index: int) -> Any:
        """Return one sample: a row, a tuple of rows or a dict of rows."""
        self._files.check()
        if isinstance(self.arrays, dict):
            return {key: _row(array, index) for key, array in self.arrays.items()}
        if isinstance(self.arrays, tuple):
            return tuple(_row(array, index) for array in self.arrays)
        return _row(self.arrays, index)

    def __gather__(self) -> Gatherer | None:
        """Join the gather protocol."""
        gatherer = columns(self.arrays)
        tensors = any(isinstance(a, torch.Tensor) for a in _leaves(self.arrays).values())
        return Guarded(gatherer, self._files) if gatherer and tensors else gatherer

    def _identity(self) -> str:
        maps = [map_under(array) for array in _leaves(self.arrays).values()]
        paths = sorted({str(name) for array in maps if (name := getattr(array, "filename", None))})
        return f"{function_identity(self._open)} {files_identity(paths)}"

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the paths of opened files, not what they hold."""
        state = {k: v for k, v in self.__dict__.items() if k != "_files"}
        if self._open is not None:
            del state["arrays"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._open is not None:
            self.arrays = _tree(self._open())
        self._files = _in_files(self.arrays)


def _tree(arrays: Any) -> Any:
    if isinstance(arrays, Mapping):
        return dict(arrays)
    return tuple(arrays) if isinstance(arrays, (tuple, list)) else arrays


def _in_files(arrays: Any) -> MappedFiles:
    maps = [map_under(array) for array in _leaves(arrays).values()]
    return MappedFiles(array for array in maps if array is not None)


def _row(array: Any, index: Any) -> Any:
    # A plain array's row is a plain array, which collation copies without asking torch.
    return (array.view(np.ndarray) if type(array) is np.memmap else array)[index]


def _leaves(arrays: Any) -> dict[str, Any]:
    if isinstance(arrays, dict):
        return {f"arrays[{key!r}]": array for key, array in arrays.items()}
    if isinstance(arrays, tuple):
        return {f"arrays[{i}]": array for i, array in enumerate(arrays)}
    return {"the array": arrays}


def _check(name: str, array: Any) -> None:
    if isinstance(array, torch.Tensor) and array.dtype not in NUMPY_DTYPES and array.ndim:
        return
    if not isinstance(array, np.ndarray):
        kind = type(array).__name__
        line = "TensorDataset(x)" if kind == "Tensor" else "ArrayDataset(np.asarray(x))"
        raise ArrayTypeError(f"{name} is a {kind}, not a NumPy array. Write {line}.")
    if array.ndim == 0:
        raise ArrayMismatchError(f"{name} has no rows: its shape is (). Write np.atleast_1d(x).")
    if array.dtype == object:
        raise ArrayTypeError(
            f"{name} holds Python objects (dtype object), which no tensor can hold. Give it a "
            f"numeric type: x.astype(np.float32), or np.stack(list(x)) for rows of one shape."
        )
    if array.dtype not in TORCH_DTYPES:
        raise ArrayTypeError(
            f"{name} has dtype {array.dtype}, which no tensor can hold. Give it one that torch "
            f"knows: {_REMEDIES.get(array.dtype.kind, 'x.astype(np.float32)')}."
        )
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise ArrayTypeError(
            f"{name} is masked, and a tensor would hold the values under the mask. Say what stands "
            f"there: x.filled(0), or x.filled(np.nan) for floats."
        )


# By kind of dtype: what keeps the values, where a cast to floats does not.
_REMEDIES = {
    "M": "x.astype(np.int64), which counts in its unit",
    "m": "x.astype(np.int64), which counts in its unit",
    "U": "np.unique(x, return_inverse=True)[1], which numbers its values",
    "S": "np.unique(x, return_inverse=True)[1], which numbers its values",
    "V": "ArrayDataset({name: x[name] for name in x.dtype.names}), a column for each field",
    "i": 'x.astype(x.dtype.newbyteorder("="))',
    "u": 'x.astype(x.dtype.newbyteorder("="))',
    "f": "x.astype(np.float64)",
    "c": "x.astype(np.complex128)",
}
