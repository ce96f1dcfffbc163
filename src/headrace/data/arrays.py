"""NumPy arrays and memory maps as a dataset."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from headrace.data.compose import Source
from headrace.data.gather import Array, Gatherer, columns, memory_file
from headrace.errors import ArrayMismatchError, ArrayTypeError
from headrace.tree import TORCH_DTYPES

MapMode: TypeAlias = Literal["r", "r+", "c"]
Path: TypeAlias = str | os.PathLike[str]
Arrays: TypeAlias = Array | Sequence[Array] | Mapping[str, Array]
Paths: TypeAlias = Path | Sequence[Path] | Mapping[str, Path]


class ArrayDataset(Source):
    """Samples are the rows of NumPy arrays or memory maps, gathered a batch at a time.

    Args:
        arrays: one array, a tuple or list of them, or a dict of them, each of shape
            ``(samples, ...)``. A sample is a row, a tuple of rows, or a dict of rows.
        more: further arrays: ``ArrayDataset(x, y)`` is ``ArrayDataset((x, y))``.

    Raises:
        ArrayMismatchError: the arrays have different lengths, or there are none.
        ArrayTypeError: an array holds objects, strings, dates or bytes in foreign order.

    A change made to an array during an epoch is seen from the next block (about 1 MiB) on, at the
    latest; NumPy has no version counter to tell sooner.
    """

    def __init__(self, arrays: Arrays, *more: Array) -> None:
        self.arrays = _tree((arrays, *more) if more else arrays)
        self._paths: Paths | None = None
        self._mmap_mode: MapMode = "r"
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
    def from_npy(cls, paths: Paths, *more: Path, mmap_mode: MapMode = "r") -> ArrayDataset:
        """Open ``.npy`` files as memory maps: nothing is read before a sample is.

        Args:
            paths: one path, a tuple or list of them, or a dict of them.
            more: further paths.
            mmap_mode: as in :func:`numpy.load`.

        Pickling the dataset (for worker processes that are spawned) pickles the paths.
        """
        named: Any = (paths, *more) if more else paths
        dataset = cls(_open_all(named, mmap_mode))
        dataset._paths = named
        dataset._mmap_mode = mmap_mode
        return dataset

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._length

    def __getitem__(self, index: int) -> Any:
        """Return one sample: a row, a tuple of rows or a dict of rows."""
        for array in self._files:
            memory_file(array, check=True)
        if isinstance(self.arrays, dict):
            return {key: array[index] for key, array in self.arrays.items()}
        if isinstance(self.arrays, tuple):
            return tuple(array[index] for array in self.arrays)
        return self.arrays[index]

    def __gather__(self) -> Gatherer | None:
        """Join the gather protocol."""
        return columns(self.arrays)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the paths of opened files, not what they hold."""
        state = {k: v for k, v in self.__dict__.items() if k != "_files"}
        if self._paths is not None:
            del state["arrays"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._paths is not None:
            self.arrays = _tree(_open_all(self._paths, self._mmap_mode))
        self._files = _in_files(self.arrays)


def _tree(arrays: Any) -> Any:
    if isinstance(arrays, Mapping):
        return dict(arrays)
    return tuple(arrays) if isinstance(arrays, (tuple, list)) else arrays


def _in_files(arrays: Any) -> list[Array]:
    return [a for a in _leaves(arrays).values() if memory_file(a) is not None]


def _leaves(arrays: Any) -> dict[str, Any]:
    if isinstance(arrays, dict):
        return {f"arrays[{key!r}]": array for key, array in arrays.items()}
    if isinstance(arrays, tuple):
        return {f"arrays[{i}]": array for i, array in enumerate(arrays)}
    return {"the array": arrays}


def _check(name: str, array: Any) -> None:
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
            f"knows: x.astype(np.float32)."
        )


def _open_all(paths: Any, mmap_mode: MapMode) -> Any:
    if isinstance(paths, Mapping):
        return {key: _open(path, mmap_mode) for key, path in paths.items()}
    if isinstance(paths, (str, os.PathLike)):
        return _open(paths, mmap_mode)
    return tuple(_open(path, mmap_mode) for path in paths)


def _open(path: Path, mmap_mode: MapMode) -> Array:
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (ValueError, EOFError) as error:
        if _is_npy(path) and "object" in str(error).lower():
            raise ArrayTypeError(
                f"{os.fspath(path)} holds Python objects, which would have to be unpickled. "
                f"Save a numeric array: np.save(path, x.astype(np.float32))."
            ) from error
        raise ValueError(
            f"{os.fspath(path)} is no .npy file that can be read ({error}). "
            f"Write it again: np.save(path, array)."
        ) from error
    if not isinstance(array, np.ndarray):  # an .npz archive
        array.close()
        raise ArrayTypeError(
            f"{os.fspath(path)} is an archive of arrays, which cannot be mapped. Save each as "
            f".npy, or read it whole: ArrayDataset(dict(np.load(path)))."
        )
    return array


def _is_npy(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(6) == b"\x93NUMPY"
