"""Samples in shards, by their number: which shards are open, kept, fetched ahead, in what order."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, islice
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from headrace import traffic
from headrace.data.compose import Source, place_of
from headrace.data.shards.index import CacheDir
from headrace.data.shards.places import File, Place
from headrace.data.stores.kept import Kept, KeptFile
from headrace.data.stores.remote import RemoteFile, Stores, shown
from headrace.errors import OptionError, TruncatedFileError
from headrace.machine import is_out_of_files, open_files_limit
from headrace.sampling.groups import GroupSampler

_WINDOW = 16


class Rows(Protocol):
    """Where the samples of a shard lie in it."""

    def ranges(self, sample: int) -> list[tuple[int, int]]:
        """Return (offset, size) of the parts of a sample."""


class Open(NamedTuple):
    """A shard that is open in this process."""

    file: File
    rows: Any  # Rows, of the kind that the format has


Fetched = dict[tuple[str, int], bytes]


def bytes_of(
    file: File, offset: int, size_bytes: int, fetched: Fetched, where: Callable[[], str]
) -> bytes:
    """Return a part of a sample: what was fetched of it, or what the file has there.

    Raises:
        TruncatedFileError: it has not so much; the message says ``where``.
    """
    data = fetched.get((file.path, offset)) if fetched else None
    if data is not None:
        return data
    try:
        return file.read(offset, size_bytes)
    except TruncatedFileError as error:
        raise TruncatedFileError(f"{where()}: {error}") from None


class ShardedDataset(Source):
    """Base of the formats: a format says where the samples of a shard lie, and what they are.

    Args:
        places: the shards.
        stores: reads those that are not on this machine.
        shuffle_shards: how many are mixed at a time; None is 16 where there are shards in stores.
        cache_dir: where shards of stores are kept; False keeps none.
        cache_bytes: how many bytes of them; None keeps none.

    Raises:
        OptionError: a number that cannot be.
    """

    def __init__(
        self,
        places: Sequence[Place],
        stores: Stores,
        *,
        shuffle_shards: int | None,
        cache_dir: CacheDir,
        cache_bytes: int | None,
    ) -> None:
        if shuffle_shards is not None and shuffle_shards < 1:
            raise OptionError(
                f"shuffle_shards={shuffle_shards} mixes none. Write shuffle_shards=16."
            )
        self._places = list(places)
        self._stores = stores
        self.urls = [place.address for place in self._places]
        self._in_stores = any(place.about is not None for place in self._places)
        every = _WINDOW if self._in_stores else len(self._places)
        self.shuffle_shards = every if shuffle_shards is None else shuffle_shards
        if cache_bytes is not None and cache_dir is False:
            raise OptionError(
                f"cache_dir=False keeps nothing, and cache_bytes={cache_bytes} bytes are to be "
                f"kept. Write cache_dir= with a directory, or leave cache_bytes= out."
            )
        self._kept = None if cache_bytes is None else Kept(cache_dir or None, cache_bytes)
        if self._kept is not None:
            sizes = [p.stamp.size_bytes for p in self._places if p.about is not None]
            self._kept.check_window(sizes, self.shuffle_shards)
        self._open: dict[int, Open] = {}
        self._ends: list[int] = [0]

    def _count(self, counts: Sequence[int]) -> None:
        """Say how many samples each shard has."""
        self._ends = list(accumulate(counts))

    def _opened(self, number: int) -> Open:
        """Open a shard in this process."""
        raise NotImplementedError

    def _sample(self, shard: Open, row: int, fetched: Fetched) -> dict[str, Any]:
        """Return a sample of a shard; what was fetched of it is not read again."""
        raise NotImplementedError

    def _shard(self, number: int) -> Open:
        """Return a shard that is what it was, opening it in a process that has not."""
        opened = self._open.pop(number, None)
        if opened is None:
            if len(self._open) >= open_files_limit() // 4:  # each holds two
                self._close_some(1)
            try:
                opened = self._opened(number)
            except OSError as error:
                if not is_out_of_files(error) or not self._open:
                    raise
                self._close_some(-(-len(self._open) // 2))  # others hold files of this process too
                return self._shard(number)
        else:
            opened.file.check()
            opened = opened._replace(file=self._from_kept(opened.file))
        self._open[number] = opened
        return opened

    def _file(self, number: int) -> File:
        return self._from_kept(self._places[number].open(self._stores))

    def _close_some(self, count: int) -> None:
        """Let go of the shards whose last use is longest ago."""
        for number in list(islice(self._open, count)):
            del self._open[number]

    def _from_kept(self, file: File) -> File:
        """Return the copy of a shard that is kept; if there is none, have it made."""
        if self._kept is None or not isinstance(file, RemoteFile):
            return file
        kept = self._kept.open(file.about, file)
        if kept is None:
            self._kept.fetch(file.about, self._stores)
        return kept or file

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._ends[-1]

    def __shuffle__(self, generator: torch.Generator | None) -> GroupSampler | None:
        """Return the order of ``shuffle=True``: of shards, then within some of them at a time."""
        if self.shuffle_shards >= len(self._places):
            return None
        sizes = np.diff(self._ends, prepend=0)
        ahead = None if self._kept is None else self._fetch_ahead
        return GroupSampler(sizes, self.shuffle_shards, generator, ahead=ahead)

    def _fetch_ahead(self, shards: Sequence[int]) -> None:
        """Have shards fetched that are read next, as many as are kept at a time."""
        assert self._kept is not None
        room = self._kept.cache_bytes
        for number in shards:
            place = self._places[number]
            room -= place.stamp.size_bytes
            if room < 0:
                return
            if place.about is not None:
                self._kept.fetch_unless_kept(place.about, self._stores)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sample."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the samples at ``indices``; each shard is looked at for changes once.

        What lies in stores is read first, all at once.
        """
        checked: set[int] = set()
        places = []
        for index in indices:
            place = place_of(index, self._ends[-1])
            number = bisect_right(self._ends, place)
            places.append((number, place - (self._ends[number - 1] if number else 0)))
        fetched = self._fetched(places) if self._in_stores else {}
        samples, hits = [], 0
        for number, row in places:
            shard = self._open.get(number) if number in checked else None
            if shard is None:
                shard = self._shard(number)
                checked.add(number)
            samples.append(self._sample(shard, row, fetched))
            hits += isinstance(shard.file, KeptFile)
        if hits:
            traffic.add(hits=hits)
        return samples

    def _fetched(self, places: Sequence[tuple[int, int]]) -> Fetched:
        """Return the bytes of all files in stores of samples (shard, row), by address and place."""
        ranges = []
        for number, row in dict.fromkeys(places):
            shard = self._open.get(number) or self._shard(number)
            if isinstance(shard.file, RemoteFile):
                about = shard.file.about
                ranges += [(about, at, size) for at, size in shard.rows.ranges(row)]
        data = self._stores.read(ranges)
        keys = ((shown(about.address), offset) for about, offset, _ in ranges)
        return dict(zip(keys, data, strict=True))

    def _shards_identity(self) -> str:
        shards = [
            (os.path.abspath(place.address) if place.about is None else place.address, place.stamp)
            for place in self._places
        ]
        return str(shards)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the paths, not the samples."""
        return {**self.__dict__, "_open": {}}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.urls):,} shards, {len(self):,} samples)"
