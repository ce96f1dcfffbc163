"""Samples that are made once: kept in memory, or in a directory for all workers and runs."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import platform
import sys
import threading
import warnings
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from headrace.data.compose import RandomNumbers, Source, name_of, place_of
from headrace.data.files import PathLike
from headrace.data.identity import identity_of
from headrace.data.record import DamagedRecordError, NotKeptError, pack, unpack
from headrace.rng import mix
from headrace.tree import leaves, map_leaves

_PER_DIRECTORY = 1_000  # samples in one directory: file systems slow down where there are more
_UNCHANGEABLE = (str, bytes, int, float, bool, complex, type(None), np.generic)


def cached(
    dataset: Dataset[Any], where: PathLike | int, *, version: str | int = ""
) -> CachedDataset:
    """Return a dataset whose samples are made once and then remembered.

    Args:
        dataset: a map-style dataset whose samples cost something to make.
        where: a directory, or a number of bytes of memory.

            *Bytes*: of each process. The first samples that fit stay; none makes room for another,
            since over shuffled epochs that keeps more than dropping the one used least recently
            does (with room for half of the samples, every second one is found instead of every
            seventh). Workers each have their own, which ends with them: use
            ``persistent_workers=True``, or a directory.

            *A directory*: one file a sample, shared by all workers and later runs. Any number of
            processes may use it; one that is killed leaves no half sample behind. Where the disk is
            full, or cannot be written to, samples are made again, with one warning. Samples may
            hold dense CPU tensors, arrays, strings, bytes and numbers, in dicts, lists and tuples:
            nothing is ever unpickled.
        version: for a directory: samples are found again while this, the dataset's length, its
            type, the files that a source reads (their paths, sizes and times of change; of images
            the directory), the indices of a ``Subset`` and the names of the functions that it is
            mapped and filtered by are the same. Change it when the samples change in another way:
            with what a function does, or with arrays in memory. What was kept before stays until
            you delete it.

    The samples of an index are made on random numbers that follow from the index, so that they do
    not depend on who made them when. What should differ from epoch to epoch comes behind it:
    ``cached(dataset, "cache").map(augment)``. Each sample given out is a copy.

    Raises:
        ValueError: a number of bytes below 1.
        TypeError: the dataset is iterable; later, a sample that cannot be kept in a file.
        OSError: the directory cannot be made.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"{type(dataset).__name__} has no samples with a number, by which they are remembered: "
            f"cached() takes a map-style dataset. Write cached(list(dataset), ...) if it fits."
        )
    if isinstance(where, (str, os.PathLike)):
        return _InDirectory(dataset, Path(where), str(version))
    if not isinstance(where, int) or isinstance(where, bool):
        raise TypeError(
            f"where is a directory or a number of bytes, got {where!r}. "
            f"Write cached(dataset, 'cache') or cached(dataset, 2 << 30)."
        )
    if where < 1:
        raise ValueError(f"the cache needs 1 byte or more, got {where}. Write 2 << 30 for 2 GiB.")
    return _InMemory(dataset, where)


class CachedDataset(Source):
    """A dataset whose samples are remembered; made by :func:`cached`."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self._random: RandomNumbers | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """Return a sample: the one that is remembered, or a new one."""
        return self._get(place_of(index, len(self)))

    def _get(self, index: int) -> Any:
        raise NotImplementedError

    def _identity(self) -> str:
        return identity_of(self.dataset)

    def _make(self, index: int) -> Any:
        if self._random is None:
            self._random = RandomNumbers()
        with self._random.seeded(mix(index)):
            return self.dataset[index]

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the dataset, not what is remembered of it."""
        return {**self.__dict__, "_random": None}

    def __repr__(self) -> str:
        return f"cached({name_of(self.dataset)})"


class _InMemory(CachedDataset):
    def __init__(self, dataset: Any, size_bytes: int) -> None:
        super().__init__(dataset)
        self.size_bytes = size_bytes
        self._used_bytes = 0
        self._kept: dict[int, Any] = {}

    def _get(self, index: int) -> Any:
        if index in self._kept:
            return map_leaves(_copied, self._kept[index])
        sample = self._make(index)
        size_bytes = _size_bytes(sample)
        if self._used_bytes + size_bytes <= self.size_bytes:
            self._kept[index] = map_leaves(_copied, sample)
            self._used_bytes += size_bytes
        return sample

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_kept": {}, "_used_bytes": 0}


class _InDirectory(CachedDataset):
    def __init__(self, dataset: Any, directory: Path, version: str) -> None:
        super().__init__(dataset)
        about = f"{identity_of(dataset)} {len(dataset)} {version}"
        key = blake2b(about.encode(), digest_size=8).hexdigest()
        self.directory = directory / f"{type(dataset).__name__}-{len(dataset)}-{key}"
        self.directory.mkdir(parents=True, exist_ok=True)
        self._warned = False

    def _get(self, index: int) -> Any:
        path = self.directory / str(index // _PER_DIRECTORY) / f"{index}.sample"
        with contextlib.suppress(FileNotFoundError, DamagedRecordError):
            return unpack(_read(path))
        sample = self._make(index)
        try:
            record = pack(sample)
        except NotKeptError as problem:
            raise TypeError(f"sample {index} of {name_of(self.dataset)}: {problem}") from None
        try:
            self._write(path, record)
        except OSError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"samples are not kept from here on, but made each time: {self.directory} "
                    f"cannot be written to ({error}). Make room, or give another directory.",
                    RuntimeWarning,
                    stacklevel=3,
                )
        return unpack(record)  # what every later time gives, to the type

    def _write(self, path: Path, record: bytearray) -> None:
        """Write a file that is there whole or not at all.

        Without fsync, which takes milliseconds: a record that a power cut damaged is seen by its
        checksum and made again. Each thread has one name for what it is writing, so that those
        that are killed do not fill the disk.
        """
        part = self.directory / f"{platform.node()}-{os.getpid()}-{threading.get_ident()}.part"
        try:
            with open(part, "wb", buffering=0) as file:
                if file.write(record) != len(record):
                    raise OSError("no space is left on the device")
            try:
                os.replace(part, path)
            except FileNotFoundError:
                path.parent.mkdir(exist_ok=True)
                os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _read(path: Path) -> bytearray:
    with open(path, "rb", buffering=0) as file:
        record = bytearray(os.fstat(file.fileno()).st_size)
        file.readinto(record)
    return record


def _copied(leaf: Any) -> Any:
    if isinstance(leaf, _UNCHANGEABLE):
        return leaf
    return leaf.clone() if type(leaf) is torch.Tensor else copy.deepcopy(leaf)


def _size_bytes(sample: Any) -> int:
    return sum(map(_leaf_bytes, leaves(sample)))


def _leaf_bytes(leaf: Any) -> int:
    if isinstance(leaf, (torch.Tensor, np.ndarray)):
        return leaf.nbytes
    if isinstance(leaf, _UNCHANGEABLE):
        return sys.getsizeof(leaf)
    try:  # what an object holds in memory is in its pickle
        return max(sys.getsizeof(leaf), len(pickle.dumps(leaf, 5)))
    except Exception:
        return sys.getsizeof(leaf)
