"""Where the samples of a shard lie: found once, kept in a file, mapped, some bytes a sample.

An index is a file of little-endian integers: eight of 64 bits (a version, the size and the time of
the shard, and how much follows of each), a JSON object with the suffixes and with what is wrong,
then for each member its offset and size (64 bits each), for each sample the number of its first
member and the end of its key (32 bits each, one more than samples), for each member the number of
its suffix (16 bits), and the keys.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from headrace.data.files import PathLike, Stamp, cache_path
from headrace.data.shards.headers import Fault, Members, Read, members_of
from headrace.data.shards.places import Place
from headrace.data.stores.remote import Stores
from headrace.errors import SourceError
from headrace.machine import is_out_of_files
from headrace.notices import warn_user
from headrace.written import written_whole

Numbers: TypeAlias = np.ndarray[Any, np.dtype[Any]]

CacheDir: TypeAlias = PathLike | Literal[False] | None

BESIDE = ".index"  # behind the name of a shard: its index, made beforehand

_VERSION = 1
_HEADER = 8
_LOOKED_AT_BYTES = 4_096  # the head of an index, as a rule
_FIRST_BLOCK_BYTES = 64 << 10
_LARGEST_BLOCK_BYTES = 8 << 20
_MAGIC = 0x6472_6168_7372_6800 + _VERSION
_MOST_SUFFIXES = 1 << 16


@dataclass(frozen=True)
class Summary:
    """What is known of a shard without its index being open."""

    samples: int
    suffixes: tuple[str, ...]
    faults: tuple[Fault, ...]  # what is damaged, and left out of the samples
    left_out: dict[str, int]  # what is no file of a sample, by kind
    has_end: bool
    behind_end_bytes: int


class ShardIndex:
    """The samples of one shard, from the bytes of its index, which may be mapped.

    Raises:
        ValueError: they are no index.
    """

    def __init__(self, raw: Any) -> None:
        header, self.summary, start = _read_head(raw)
        samples, members, key_bytes = header[3:6]
        self._raw = raw

        def take(kind: str, count: int) -> Numbers:
            nonlocal start
            part = np.frombuffer(raw, kind, count, start)
            start += part.nbytes
            return part

        self._offsets = take("<i8", members)
        self._sizes = take("<i8", members)
        self._firsts = take("<u4", samples + 1)
        self._key_ends = take("<u4", samples + 1)
        self._suffixes = take("<u2", members)
        self._keys = start
        if start + key_bytes != len(raw):
            raise ValueError("an index of another length")

    def key(self, sample: int) -> str:
        """Return the name of a sample, up to the first dot of its base name."""
        first, last = self._key_ends.item(sample), self._key_ends.item(sample + 1)
        raw = self._raw[self._keys + first : self._keys + last]
        return bytes(raw).decode("utf-8", "surrogateescape")

    def members(self, sample: int) -> list[tuple[int, int, int]]:
        """Return (number of the suffix, offset, size) of a sample's files, as they are ordered."""
        span = slice(self._firsts.item(sample), self._firsts.item(sample + 1))
        parts = (self._suffixes[span], self._offsets[span], self._sizes[span])
        return list(zip(*(part.tolist() for part in parts), strict=True))

    def ranges(self, sample: int) -> list[tuple[int, int]]:
        """Return (offset, size) of a sample's files."""
        return [(offset, size) for _, offset, size in self.members(sample)]


def index_bytes(read: Read, stamp: Stamp) -> bytes:
    """Return the index of a shard, by one look at its headers.

    Raises:
        SourceError: more kinds of suffixes than an index holds.
    """
    found = members_of(read, stamp.size_bytes)
    samples = _Samples(found)
    suffixes = list(samples.suffixes)
    if len(suffixes) > _MOST_SUFFIXES:
        raise SourceError(
            f"its files end in {len(suffixes):,} ways ({suffixes[0]!r}, {suffixes[1]!r}), and what "
            f"follows the first dot of a name is the kind of a file. Name them 0001.jpg, 0001.json."
        )
    about = {
        "suffixes": suffixes,
        "faults": found.faults,
        "left_out": found.left_out,
        "has_end": found.has_end,
        "behind_end_bytes": found.behind_end_bytes,
    }
    described = json.dumps(about).encode()
    described += b" " * (-len(described) % 8)
    keys = [key.encode("utf-8", "surrogateescape") for key in samples.keys]
    numbers = (stamp.size_bytes, stamp.mtime_ns, len(keys), len(samples.order))
    ends = np.cumsum([0, *map(len, keys)])
    header = [_MAGIC, *numbers, ends[-1], len(described), 0]
    order = samples.order
    parts = (
        np.array(header, "<i8"),
        described,
        np.array(found.offsets, "<i8")[order],
        np.array(found.sizes, "<i8")[order],
        samples.firsts.astype("<u4"),
        ends.astype("<u4"),
        samples.kinds.astype("<u2"),
        b"".join(keys),
    )
    return b"".join(p if isinstance(p, bytes) else p.tobytes() for p in parts)


class _Samples:
    """Members grouped to samples; those of one sample need not follow each other."""

    def __init__(self, found: Members) -> None:
        self.keys: dict[str, int] = {}
        self.suffixes: dict[str, int] = {}
        seen: set[tuple[int, int]] = set()
        order, owners, kinds = [], [], []
        for number, (name, offset) in enumerate(zip(found.names, found.offsets, strict=True)):
            key, suffix = split_name(name)
            if not suffix:
                found.left_out["file without a suffix"] += not _is_meant_to_be_left(name)
                continue
            sample = self.keys.setdefault(key, len(self.keys))
            kind = self.suffixes.setdefault(suffix, len(self.suffixes))
            if (sample, kind) in seen:
                reason = "it is there twice: a sample has one file of each suffix"
                found.faults.append(Fault(offset, name, reason))
                continue
            seen.add((sample, kind))
            order.append(number)
            owners.append(sample)
            kinds.append(kind)
        by_sample = np.argsort(np.array(owners, np.int64), kind="stable")
        self.order = np.array(order, np.int64)[by_sample]
        self.kinds = np.array(kinds, np.int64)[by_sample]
        counts = np.bincount(np.array(owners, np.int64), minlength=len(self.keys))
        self.firsts = np.concatenate(([0], np.cumsum(counts)))


def split_name(name: str) -> tuple[str, str]:
    """Return the key and the suffix of a member's name, parted at the first dot of its base name.

    Both are "" where it is no file of a sample: a hidden one, WebDataset's ``__meta__``, or one
    without a dot.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    top = name.partition("/")[0]
    if not stem or not suffix or (top.startswith("__") and top.endswith("__") and len(top) > 3):
        return "", ""
    return folder + slash + stem, suffix.lower()


def _is_meant_to_be_left(name: str) -> bool:
    top, base = name.partition("/")[0], name.rpartition("/")[2]
    return base.startswith(".") or (top.startswith("__") and top.endswith("__"))


def _read_head(raw: Any) -> tuple[list[int], Summary, int]:
    """Return the numbers, the summary, and where the arrays begin."""
    if len(raw) < 8 * _HEADER:
        raise ValueError("too short to be an index")
    header = np.frombuffer(raw, "<i8", _HEADER).tolist()
    start = 8 * _HEADER + header[6]
    if header[0] != _MAGIC or start > len(raw):
        raise ValueError("no index, or one of another version")
    about = json.loads(bytes(raw[8 * _HEADER : start]))
    about["suffixes"] = tuple(about["suffixes"])
    about["faults"] = tuple(Fault(*fault) for fault in about["faults"])
    return header, Summary(samples=header[3], **about), start


@contextlib.contextmanager
def _if_it_is_one() -> Iterator[None]:
    """Pass over what is there and is no index, or is gone: it is made again."""
    try:
        yield
    except OSError as error:
        if is_out_of_files(error):
            raise
    except ValueError:
        pass


class Indexes:
    """Finds and makes the indexes of shards.

    An index is looked for beside its shard (``00.tar.index``), then in the cache directory; where
    neither is one of the shard as it is now, it is made and kept there. One beside the shard is of
    it where it names its size, and is no older: copies have times of their own.
    """

    def __init__(self, cache_dir: CacheDir, stores: Stores) -> None:
        self._cache_dir = cache_dir  # False: those that are made stay in memory
        self._stores = stores
        self._in_memory: dict[str, bytes] = {}

    def open(self, shard: Place) -> ShardIndex:
        """Return the index of a shard, mapped where it is kept in a file."""
        for place in self._files(shard):
            with _if_it_is_one(), open(place, "rb") as file:
                return ShardIndex(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return ShardIndex(self._made(shard))

    def summary(self, shard: Place) -> Summary:
        """Return what is known of a shard without mapping its index, which is made if need be."""
        for place in self._files(shard):
            with _if_it_is_one(), open(place, "rb") as file:
                raw = file.read(_LOOKED_AT_BYTES)
                header = np.frombuffer(raw, "<i8", _HEADER)
                return _read_head(raw + file.read(max(0, 8 * _HEADER + header[6] - len(raw))))[1]
        return _read_head(self._made(shard))[1]

    def _files(self, shard: Place) -> Iterator[Path]:
        beside = Path(shard.address + BESIDE)
        if shard.about is None and _is_of(beside, shard.stamp, exactly=False):
            yield beside
        kept = self._kept(shard)
        if kept is not None and _is_of(kept, shard.stamp, exactly=True):
            yield kept

    def _kept(self, shard: Place) -> Path | None:
        if self._cache_dir is False:
            return None
        # The name of an object is no path from here.
        source = shard.address if shard.about is None else f"/{shard.address}"
        return cache_path(source, "index", self._cache_dir)

    def _made(self, shard: Place) -> bytes:
        """Make the index of a shard, and keep it: in a file, or else in this process."""
        made = self._in_memory.get(shard.address)
        if made is not None:
            return made
        made = self._fetched(shard) or made_index(shard, self._stores)
        kept = self._kept(shard)
        if kept is None:
            self._in_memory[shard.address] = made
            return made
        try:
            with written_whole(kept) as file:
                file.write(made)
        except OSError as error:
            self._in_memory[shard.address] = made
            warn_user(
                f"the index of {shard.address} could not be kept in {kept.parent} ({error}), and "
                f"is made again by each process that needs it. Write cache_dir= with a directory "
                f"that has room and can be written to.",
                RuntimeWarning,
            )
        return made

    def _fetched(self, shard: Place) -> bytes | None:
        """Return the index that lies beside a shard in a store, if it is one of it."""
        if shard.about is None:
            return None
        try:
            (beside,) = self._stores.look([shard.about.address + BESIDE])
        except (OSError, SourceError):  # many stores refuse access to what is not there
            return None
        if beside.modified_us < shard.about.modified_us:
            return None
        (raw,) = self._stores.read([(beside, 0, beside.size_bytes)])
        try:
            ShardIndex(raw)
        except ValueError:
            return None
        header = np.frombuffer(raw, "<i8", _HEADER).copy()
        if header[1] != shard.stamp.size_bytes:
            return None
        header[2] = shard.stamp.mtime_ns
        return header.tobytes() + raw[8 * _HEADER :]

    def __getstate__(self) -> dict[str, Any]:
        if self._cache_dir is False:
            return self.__dict__
        return {**self.__dict__, "_in_memory": {}}


def make_beside(shard: Place, stores: Stores) -> bool:
    """Make the index of a shard beside it; say whether there was none of it as it is now."""
    place = Path(shard.address + BESIDE)
    if shard.about is not None:
        if Indexes(None, stores)._fetched(shard) is not None:
            return False
        stores.put(shard.about.address + BESIDE, made_index(shard, stores))
        return True
    if _is_of(place, shard.stamp, exactly=False):
        return False
    with written_whole(place) as file:
        file.write(made_index(shard, stores))
    return True


def made_index(shard: Place, stores: Stores) -> bytes:
    """Return the index of a shard, by one look at its headers.

    Raises:
        SourceError: the shard cannot have one; the message names it.
        SourceChangedError: it changed meanwhile.
    """
    file = shard.open(stores)
    read = file.read if shard.about is None else _Ahead(file.read, shard.stamp.size_bytes).read
    try:
        made = index_bytes(read, shard.stamp)
    except SourceError as problem:
        raise SourceError(f"{shard.address}: {problem}") from None
    file.check()
    return made


class _Ahead:
    """Reads headers in blocks that grow as long as the next header is not far: few requests."""

    def __init__(self, read: Read, size_bytes: int) -> None:
        self._read = read
        self._end = size_bytes
        self._first = 0
        self._block = b""
        self._next_bytes = _FIRST_BLOCK_BYTES

    def read(self, offset: int, size_bytes: int) -> bytes:
        behind = self._first + len(self._block)
        if not self._first <= offset <= offset + size_bytes <= behind:
            near = self._first <= offset <= behind + self._next_bytes
            grown = min(2 * self._next_bytes, _LARGEST_BLOCK_BYTES)
            self._next_bytes = grown if near else _FIRST_BLOCK_BYTES
            count = min(max(self._next_bytes, size_bytes), self._end - offset)
            self._first, self._block = offset, self._read(offset, count)
        start = offset - self._first
        return self._block[start : start + size_bytes]


def _is_of(place: Path, stamp: Stamp, *, exactly: bool) -> bool:
    """Say whether a file is an index of a shard of this size and time; not whether it is whole."""
    try:
        with open(place, "rb", buffering=0) as file:
            header = np.frombuffer(file.read(8 * _HEADER), "<i8")
            made_ns = os.fstat(file.fileno()).st_mtime_ns
    except (OSError, ValueError):
        return False
    if len(header) < _HEADER or header[0] != _MAGIC or header[1] != stamp.size_bytes:
        return False
    return bool(header[2] == stamp.mtime_ns or (not exactly and made_ns >= stamp.mtime_ns))
