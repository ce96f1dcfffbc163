"""Samples in Mosaic's MDS shards, in any order, decompressed where they are compressed.

A directory has an ``index.json``, which lists its shards, their columns and how those are encoded.
A shard is the number of its samples, where each begins and where the last one ends (32 bits each),
its columns once more as JSON, and the samples. One is the sizes (32 bits) of those columns whose
size is not the same in all, then the columns.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from headrace.data.files import cache_path
from headrace.data.shards.columns import Columns, Value, columns_of
from headrace.data.shards.decode import Decode
from headrace.data.shards.index import CacheDir
from headrace.data.shards.places import File, Place
from headrace.data.shards.sharded import Fetched, Open, ShardedDataset, bytes_of
from headrace.data.stores.local import LocalFile
from headrace.data.stores.remote import Options, Stores, is_remote, shown, shown_path
from headrace.data.text.compressed import decompressed
from headrace.errors import OptionError, SourceError
from headrace.written import written_whole

Directories: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_INDEX = "index.json"
_VERSION = 2
_LARGEST_INDEX = 1 << 30
_COMPRESSIONS = {"zstd": "zstd", "gz": "gzip", "bz2": "bzip2"}
_PIECE_BYTES = 8 << 20


class _Shard(NamedTuple):
    """What the index says of a shard."""

    file: str
    size_bytes: int  # of the file, as it lies there
    raw_bytes: int  # of the shard, not compressed
    compression: str | None
    samples: int
    columns: Columns


class _Rows(NamedTuple):
    columns: Columns
    values: list[tuple[str, Value]]
    ends: Any  # where each sample begins, and where the last one ends

    def ranges(self, sample: int) -> list[tuple[int, int]]:
        """Return (offset, size) of a sample."""
        first = self.ends.item(sample)
        return [(first, self.ends.item(sample + 1) - first)]


class _Unpacked(LocalFile):
    """A shard that was decompressed; what may change is the one that it was made of."""

    def __init__(self, path: Path, place: Place) -> None:
        self._place = place
        super().__init__(path)
        self.path = place.address

    def check(self) -> None:
        """Raise where the compressed shard on this machine is no longer what it was."""
        if self._place.about is None:
            self._place.stamp.check(self._place.address)


class MDSDataset(ShardedDataset):
    """The samples of MDS shards, as Mosaic's ``MDSWriter`` writes them, by their number.

    A sample is a dict of its columns.

    Args:
        urls: one directory with an ``index.json``, or several, one behind the other; on this
            machine, in a store (``s3://``, ``gs://``, ``az://``) or on a web server.
        decode: True: ``str``, ``int``, ``json`` and the like are what they were, numbers of one
            size NumPy's scalars, ``ndarray`` an array, ``jpeg``, ``png`` and ``pil`` uint8 tensors
            (3, H, W), and lists of these lists of tensors. False: all columns are bytes. Functions
            of bytes by column take the place of those: ``{"image": my_decoder}``. Pickles
            (``pkl``) are never read by themselves.
        size: height and width that images are resized to (one number for both), as by
            :class:`ImageDecoder`.
        cache_dir: where compressed shards are kept decompressed, each once for all processes; None
            is ``headrace`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``; False allows none.
        storage_options: as of :class:`TarDataset`.
        cache_bytes: as of :class:`TarDataset`.
        shuffle_shards: as of :class:`TarDataset`.

    Raises:
        SourceError: no index, one that is none or damaged, a column of an unknown kind; pickles.
            When a sample is asked for: what cannot be decoded. The message names shard and sample.
        SourceChangedError: a shard changed after the dataset was made.
        OSError: a file that cannot be opened.
    """

    def __init__(
        self,
        urls: Directories,
        *,
        decode: Decode = True,
        size: int | tuple[int, int] | None = None,
        cache_dir: CacheDir = None,
        storage_options: Options | None = None,
        shuffle_shards: int | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        stores = Stores(storage_options)
        given = [urls] if isinstance(urls, (str, os.PathLike)) else list(urls)
        if not given:
            raise SourceError("there are no directories of shards. Write one: 'data/train'.")
        self._shards: list[_Shard] = []
        places: list[Place] = []
        for url in given:
            base = _directory(os.fspath(url))
            shards = list(_read_index(base, stores))
            places += _places(base, shards, stores)
            self._shards += shards
        super().__init__(
            places,
            stores,
            shuffle_shards=shuffle_shards,
            cache_dir=cache_dir,
            cache_bytes=cache_bytes,
        )
        self._cache_dir = cache_dir or None
        packed = [shard.file for shard in self._shards if shard.compression is not None]
        if cache_dir is False and packed:
            raise OptionError(
                f"{packed[0]} is compressed, and has to be kept decompressed to be read in any "
                f"order: cache_dir=False keeps nothing. Write cache_dir= with a directory."
            )
        self._decode = decode
        self._size = size
        kinds = dict.fromkeys(shard.columns for shard in self._shards)
        self._values = {columns: columns.values(decode, size) for columns in kinds}
        self._count([shard.samples for shard in self._shards])
        if not len(self):
            raise SourceError(f"there are no samples in {shown_path(os.fspath(given[0]))}.")

    def _opened(self, number: int) -> Open:
        shard, place = self._shards[number], self._places[number]
        file = self._file(number) if shard.compression is None else self._raw(number)
        head = file.read(0, 4 * min(shard.samples + 2, shard.raw_bytes // 4))
        ends = np.frombuffer(head, "<u4")
        if (
            len(ends) != shard.samples + 2
            or ends[0] != shard.samples
            or ends[1] < len(head)
            or ends[-1] > shard.raw_bytes
            or (np.diff(ends[1:].astype(np.int64)) < 0).any()
        ):
            raise SourceError(
                f"{place.address} is no MDS shard of {shard.samples:,} samples, as the index says, "
                f"or it is damaged. Copy it again."
            )
        return Open(file, _Rows(shard.columns, self._values_of(shard.columns), ends[1:]))

    def _raw(self, number: int) -> File:
        """Return a compressed shard decompressed, from the cache."""
        shard, place = self._shards[number], self._places[number]
        name = place.address if place.about is None else f"/{place.address}"
        stamp = f"{place.stamp.size_bytes:x}-{place.stamp.mtime_ns:x}.mds"
        path = cache_path(name, stamp, self._cache_dir)
        if not _has_size(path, shard.raw_bytes):
            self._decompress(number, path)
        return _Unpacked(path, place)

    def _decompress(self, number: int, path: Path) -> None:
        shard, place = self._shards[number], self._places[number]
        assert shard.compression is not None
        source = self._file(number)
        packed = io.BytesIO(source.read(0, shard.size_bytes))
        with (
            decompressed(packed, place.address, shard.compression) as content,
            written_whole(path) as out,
        ):
            written = 0
            while piece := content.read(min(_PIECE_BYTES, shard.raw_bytes + 1 - written)):
                written += out.write(piece)
            if written != shard.raw_bytes:
                more = "more" if written > shard.raw_bytes else f"only {written:,}"
                raise SourceError(
                    f"{place.address} is damaged: the index says that it has {shard.raw_bytes:,} "
                    f"bytes, decompressed, and it has {more}. Copy it again."
                )

    def _sample(self, shard: Open, row: int, fetched: Fetched) -> dict[str, Any]:
        file, rows = shard
        [(offset, size)] = rows.ranges(row)
        where = f"{file.path}, sample {row:,} at byte {offset:,}"
        data = bytes_of(file, offset, size, fetched, lambda: where)
        parts = zip(rows.values, rows.columns.split(data, where), strict=True)
        return {name: value(part, f"{where}, {name}") for (name, value), part in parts}

    def _values_of(self, columns: Columns) -> list[tuple[str, Value]]:
        if columns not in self._values:  # in another process: functions are made there
            self._values[columns] = columns.values(self._decode, self._size)
        return self._values[columns]

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the paths, not the samples."""
        return {**super().__getstate__(), "_values": {}}

    def _identity(self) -> str:
        own = sorted(self._decode) if isinstance(self._decode, dict) else self._decode
        return f"{self._shards_identity()} {own} {self._size}"


def _directory(address: str) -> str:
    """Return an address without its index's name."""
    base = address if is_remote(address) else os.path.expanduser(address.removeprefix("file://"))
    if base == _INDEX:
        return "."
    return base.removesuffix(f"/{_INDEX}").rstrip("/") or "/"


def _read_index(base: str, stores: Stores) -> Iterator[_Shard]:
    path = f"{base}/{_INDEX}"
    try:
        if is_remote(base):
            [about] = stores.look([path])
            [raw] = stores.read([(about, 0, min(about.size_bytes, _LARGEST_INDEX))])
        else:
            raw = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise SourceError(
            f"there is no {_INDEX} in {shown_path(base)}, which lists the shards of a directory "
            f"that MDSWriter wrote. Write the directory that has it: '.../train'."
        ) from error
    known: dict[Columns, Columns] = {}  # one object for those that are alike
    try:
        index = json.loads(raw)
        if index["version"] != _VERSION:
            raise SourceError(
                f"{shown_path(path)} is of version {index['version']}, and version {_VERSION} is "
                f"read. Write the data again with a present MDSWriter."
            )
        for shard in index["shards"]:
            yield _shard(shard, base, known)
    except SourceError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"{shown_path(path)} is no index of MDS shards, or it is damaged ({error!r:.80}). Copy "
            f"it again."
        ) from error


def _shard(about: dict[str, Any], base: str, known: dict[Columns, Columns]) -> _Shard:
    path = f"{shown_path(base)}/{_INDEX}"
    if about["format"] != "mds":
        raise SourceError(
            f"{path} lists shards of the format {about['format']!r}; 'mds' is read. Write them "
            f"with MDSWriter."
        )
    raw, zipped = about["raw_data"], about.get("zip_data")
    if zipped and not is_remote(base) and os.path.exists(os.path.join(base, raw["basename"])):
        zipped = None  # as it is where Mosaic has decompressed it
    name = None
    if zipped:
        name = str(about["compression"]).partition(":")[0]
        if name not in _COMPRESSIONS:
            raise SourceError(
                f"{path} lists shards compressed with {name!r}; there are "
                f"{', '.join(map(repr, _COMPRESSIONS))} here. Write them with compression='zstd'."
            )
    file = zipped or raw
    basename = str(file["basename"])
    if not basename or basename.startswith("/") or ".." in basename.split("/"):
        raise SourceError(f"{path} names a shard {basename!r}, which is not below its directory.")
    columns = columns_of(about["column_names"], about["column_encodings"], about["column_sizes"])
    samples, size, raw_size = (int(n) for n in (about["samples"], file["bytes"], raw["bytes"]))
    if min(samples, size, raw_size) < 0:
        raise ValueError("a size below 0")
    return _Shard(
        basename,
        size,
        raw_size,
        _COMPRESSIONS[name] if name else None,
        samples,
        known.setdefault(columns, columns),
    )


def _places(base: str, shards: Sequence[_Shard], stores: Stores) -> list[Place]:
    """Return where the shards of a directory lie.

    Raises:
        SourceError: one has another size than the index says.
        OSError: one is not there.
    """
    if not is_remote(base):
        places = [Place.local(os.path.join(base, shard.file)) for shard in shards]
    elif base.startswith("http"):  # such a server does not list its files
        places = [*map(Place.remote, stores.look([f"{base}/{shard.file}" for shard in shards]))]
    else:
        known = {about.address: about for about in stores.below(base + "/")}
        missing = [shard.file for shard in shards if f"{base}/{shard.file}" not in known]
        if missing:
            raise FileNotFoundError(
                2, "listed in index.json, and not there", f"{shown(base)}/{missing[0]}"
            )
        places = [Place.remote(known[f"{base}/{shard.file}"]) for shard in shards]
    for place, shard in zip(places, shards, strict=True):
        if place.stamp.size_bytes != shard.size_bytes:
            raise SourceError(
                f"{place.address} has {place.stamp.size_bytes:,} bytes, and the index says "
                f"{shard.size_bytes:,}: it was cut short, or the index is of other shards. Copy "
                f"the directory again."
            )
    return places


def _has_size(path: Path, size_bytes: int) -> bool:
    try:
        return path.stat().st_size == size_bytes
    except OSError:
        return False
