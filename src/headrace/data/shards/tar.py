"""Samples in tar archives, in any order, without unpacking them."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, islice
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from headrace.data.compose import Source, place_of
from headrace.data.files import PathLike
from headrace.data.progress import Progress
from headrace.data.shards.addresses import Addresses, find_shards
from headrace.data.shards.decode import Decode, Decoders
from headrace.data.shards.index import Indexes, ShardIndex, Summary
from headrace.data.shards.places import File, Place
from headrace.data.stores.kept import Kept
from headrace.data.stores.remote import Options, RemoteFile, Stores, shown
from headrace.data.text.known import PROGRAMS, compression_of
from headrace.errors import (
    OptionError,
    SourceError,
    SourceWarning,
    TruncatedFileError,
)
from headrace.machine import is_out_of_files, open_files_limit
from headrace.notices import warn_user
from headrace.sampling.groups import GroupSampler

_LOOKED_AT_BYTES = 64
_WINDOW = 16


class _Open(NamedTuple):
    file: File
    samples: ShardIndex
    suffixes: tuple[str, ...]


class TarDataset(Source):
    """The samples of tar shards, as WebDataset writes them, by their number.

    The files of one sample share their name up to the first dot of the base name, which is its key;
    what follows is the suffix. A sample is a dict ``{"__key__": "train/0001", "jpg": ..., "json":
    ...}``, suffixes in lower case and in the order of the shard.

    Args:
        urls: one address of shards or several, each with braces (``"train/{000..146}.tar"``), a
            pattern (``"train/*.tar"``) or a directory; on this machine, in a store (``s3://bucket/
            train/{000..146}.tar``, ``gs://``, ``az://``) or on a web server that answers ranges
            (``https://``, without patterns and directories).
        decode: True: .jpg, .png, .webp and other images are uint8 tensors (3, H, W); .json its
            value; .txt a string; .cls and .index a number; .npy an array; .npz and .safetensors
            dicts of arrays and tensors; everything else bytes. False: all are bytes. Functions of
            bytes by suffix take the place of those: ``{"jpg": ImageDecoder(exif="apply"),
            "seg.png": my_masks}``. Pickles (.pyd, .pkl, .pth, .pt) are never read by themselves.
        size: height and width that images are resized to (one number for both), as by
            :class:`ImageDecoder`.
        on_error: what becomes of files that are damaged in a shard, cut short, or there twice:
            "raise", or "skip", which leaves them out, listed in ``skipped`` as pairs (shard,
            reason), with a warning. What cannot be decoded is told when it is asked for; for that,
            ``DataLoader(..., on_error="skip")``.
        cache_dir: where the index of a shard is kept, so that its headers are read once; None is
            ``headrace`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``. It is made again when the
            shard's size or time differs. An index beside a shard (``headrace shards index``) is
            used where it is not older than the shard.
        storage_options: of the store that the addresses are in, beside what the environment says:
            ``{"endpoint": "http://...", "access_key_id": ..., "secret_access_key": ...}``,
            ``{"profile": "name"}``, ``{"skip_signature": True}`` and the others of obstore.
        cache_bytes: keep so many bytes of the shards in stores in ``shards`` in the cache
            directory: each that is read from is fetched whole, once for all processes of the
            machine, beside the reading, which is by ranges until then. The ones used least
            recently make room. None keeps none.
        shuffle_shards: what ``shuffle=True`` is: shards in random order, and the samples of so many
            of them mixed at a time. None is 16 where there are shards in stores, and a full
            shuffle where all are on this machine.

    An index takes 20 bytes a file and 8 a sample, and the keys; it is mapped, so that workers share
    it. Pickling the dataset pickles the paths.

    Raises:
        SourceError: no shards, one that is no tar archive, is compressed or damaged; pickles. When
            a sample is asked for: a file that cannot be decoded. The message names shard, key and
            place.
        SourceChangedError: a shard changed after it was opened.
        OSError: a file that cannot be opened.
    """

    def __init__(
        self,
        urls: Addresses,
        *,
        decode: Decode = True,
        size: int | tuple[int, int] | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        cache_dir: PathLike | None = None,
        storage_options: Options | None = None,
        shuffle_shards: int | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise OptionError(
                f'on_error={on_error!r} is unknown. Write on_error="raise" or on_error="skip".'
            )
        if shuffle_shards is not None and shuffle_shards < 1:
            raise OptionError(
                f"shuffle_shards={shuffle_shards} mixes none. Write shuffle_shards=16."
            )
        self._decoders = Decoders(decode, size)
        self._stores = Stores(storage_options)
        self._places = find_shards(urls, ".tar", self._stores)
        self.urls = [place.address for place in self._places]
        self.skipped: list[tuple[str, str]] = []
        self._indexes = Indexes(cache_dir, self._stores)
        self._in_stores = any(place.about is not None for place in self._places)
        every = _WINDOW if self._in_stores else len(self._places)
        self.shuffle_shards = every if shuffle_shards is None else shuffle_shards
        self._kept = None if cache_bytes is None else Kept(cache_dir, cache_bytes)
        if self._kept is not None:
            sizes = [p.stamp.size_bytes for p in self._places if p.about is not None]
            self._kept.check_window(sizes, self.shuffle_shards)
        self._open: dict[int, _Open] = {}
        with Progress("indexing shards", len(self.urls), "shards") as progress:
            counts = [self._first_look(n, on_error, progress) for n in range(len(self.urls))]
        self._ends = list(accumulate(counts))
        self._tell()
        if not self._ends[-1]:
            raise SourceError(
                f"there are no samples in {self.urls[0]} and all other shards. Files are named for "
                f"their sample and for what they hold: 0001.jpg, 0001.json."
            )

    def _first_look(self, number: int, on_error: str, progress: Progress) -> int:
        """Index a shard; return how many samples it has."""
        path = self.urls[number]
        summary = self._indexes.summary(self._places[number])
        progress.advance()
        self._decoders.refuse_pickles(path, summary.suffixes)
        if summary.faults and not summary.faults[0].offset and not summary.samples:
            file = self._places[number].open(self._stores)
            _check_is_tar(
                path, file.read(0, min(_LOOKED_AT_BYTES, self._places[number].stamp.size_bytes))
            )
        for fault in summary.faults:
            what = (
                f"{fault.name!r} at byte {fault.offset:,}"
                if fault.name
                else f"byte {fault.offset:,}"
            )
            reason = f"{what}: {fault.reason}"
            if on_error == "raise":
                raise SourceError(
                    f"{path} is damaged: {reason}. Copy the shard again, or write "
                    f'TarDataset(..., on_error="skip") to leave out what is damaged.'
                )
            self.skipped.append((path, reason))
        _tell_of(path, summary)
        return summary.samples

    def _tell(self) -> None:
        if self.skipped:
            path, reason = self.skipped[0]
            more = f" and {len(self.skipped) - 1:,} more" if len(self.skipped) > 1 else ""
            warn_user(
                f"on_error='skip' leaves out what is damaged: {path}: {reason}{more}. "
                f"dataset.skipped lists it.",
                SourceWarning,
            )

    def _shard(self, number: int) -> _Open:
        """Return a shard that is what it was, opening it in a process that has not."""
        opened = self._open.pop(number, None)
        if opened is None:
            if len(self._open) >= open_files_limit() // 4:  # each holds two
                self._close_some(1)
            try:
                opened = self._opened(self._places[number])
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

    def _opened(self, place: Place) -> _Open:
        index = self._indexes.open(place)
        file = self._from_kept(place.open(self._stores))
        return _Open(file, index, index.summary.suffixes)

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
        samples = []
        for number, row in places:
            shard = self._open.get(number) if number in checked else None
            if shard is None:
                shard = self._shard(number)
                checked.add(number)
            samples.append(self._sample(shard, row, fetched))
        return samples

    def _fetched(self, places: Sequence[tuple[int, int]]) -> dict[tuple[str, int], bytes]:
        """Return the bytes of all files in stores of samples (shard, row), by address and place."""
        ranges = []
        for number, row in dict.fromkeys(places):
            shard = self._open.get(number) or self._shard(number)
            if isinstance(shard.file, RemoteFile):
                about = shard.file.about
                ranges += [(about, at, size) for _, at, size in shard.samples.members(row)]
        data = self._stores.read(ranges)
        keys = ((shown(about.address), offset) for about, offset, _ in ranges)
        return dict(zip(keys, data, strict=True))

    def _sample(
        self, shard: _Open, number: int, fetched: dict[tuple[str, int], bytes]
    ) -> dict[str, Any]:
        file, samples, suffixes = shard
        key = samples.key(number)
        sample: dict[str, Any] = {"__key__": key}
        value = self._decoders.value if self._decoders.decode else None
        for kind, offset, size in samples.members(number):
            suffix = suffixes[kind]
            data = fetched.get((file.path, offset)) if fetched else None
            if data is None:
                try:
                    data = file.read(offset, size)
                except TruncatedFileError as error:
                    where = _where(file, key, suffix, offset)
                    raise TruncatedFileError(f"{where}: {error}") from None
            if value is not None:
                data = value(suffix, data, partial(_where, file, key, suffix, offset))
            sample[suffix] = data
        return sample

    def _identity(self) -> str:
        shards = [
            (os.path.abspath(place.address) if place.about is None else place.address, place.stamp)
            for place in self._places
        ]
        return f"{shards} {self._decoders.identity} {self.skipped}"

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the paths, not the samples."""
        return {**self.__dict__, "_open": {}}

    def __repr__(self) -> str:
        return f"TarDataset({len(self.urls):,} shards, {len(self):,} samples)"


def _where(file: File, key: str, suffix: str, offset: int) -> str:
    return f"{file.path}, {key}.{suffix} at byte {offset:,}"


def _check_is_tar(path: str, beginning: bytes) -> None:
    compression = compression_of(beginning)
    if compression is None:
        raise SourceError(
            f"{path} is no tar archive: it does not begin with the header of one. Write the path "
            f"of one, or pack a folder: headrace shards pack FOLDER OUT."
        )
    raise SourceError(
        f"{path} is compressed ({compression}): a sample in it can be read only behind all before "
        f"it. Write {PROGRAMS[compression]} {path}, and read the file that it makes."
    )


def _tell_of(path: str, summary: Summary) -> None:
    """Warn of what is in a shard and is not read."""
    if summary.left_out:
        what = ", ".join(f"{kind} ({n:,})" for kind, n in summary.left_out.items())
        warn_user(
            f"{path} holds what is no file of a sample, and is left out: {what}. Write archives of "
            f"plain files named 0001.jpg, 0001.json (tar --dereference --hard-dereference).",
            SourceWarning,
        )
    if summary.behind_end_bytes:
        warn_user(
            f"{path} goes on for {summary.behind_end_bytes:,} bytes behind its end mark, which are "
            f"not read: it may be several archives, joined. Write each to a file of its own.",
            SourceWarning,
        )
    if not summary.has_end:
        warn_user(
            f"{path} has no end mark: whoever wrote it may not have come to its end, and samples "
            f"may be missing. Write it again.",
            SourceWarning,
        )
