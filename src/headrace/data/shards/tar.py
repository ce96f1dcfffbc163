"""Samples in tar archives, in any order, without unpacking them."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from headrace.data.progress import Progress
from headrace.data.shards.addresses import Addresses, find_shards
from headrace.data.shards.decode import Decode, Decoders
from headrace.data.shards.index import CacheDir, Indexes, Summary
from headrace.data.shards.places import File
from headrace.data.shards.sharded import Fetched, Open, ShardedDataset, bytes_of
from headrace.data.stores.remote import Options, Stores
from headrace.data.text.known import PROGRAMS, compression_of
from headrace.errors import OptionError, SourceError, SourceWarning
from headrace.notices import warn_user

_LOOKED_AT_BYTES = 64


class TarDataset(ShardedDataset):
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
            ``headrace`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``; False keeps it in memory, and
            nothing on the disk. It is made again when the shard's size or time differs. An index
            beside a shard (``headrace shards index``) is used where it is not older than the shard.
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
        cache_dir: CacheDir = None,
        storage_options: Options | None = None,
        shuffle_shards: int | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise OptionError(
                f'on_error={on_error!r} is unknown. Write on_error="raise" or on_error="skip".'
            )
        self._decoders = Decoders(decode, size)
        stores = Stores(storage_options)
        super().__init__(
            find_shards(urls, ".tar", stores),
            stores,
            shuffle_shards=shuffle_shards,
            cache_dir=cache_dir,
            cache_bytes=cache_bytes,
        )
        self.skipped: list[tuple[str, str]] = []
        self._indexes = Indexes(cache_dir, stores)
        with Progress("indexing shards", len(self.urls), "shards") as progress:
            counts = [self._first_look(n, on_error, progress) for n in range(len(self.urls))]
        self._count(counts)
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

    def _opened(self, number: int) -> Open:
        index = self._indexes.open(self._places[number])
        return Open(self._file(number), index)

    def _sample(self, shard: Open, row: int, fetched: Fetched) -> dict[str, Any]:
        file, samples = shard
        suffixes = samples.summary.suffixes
        key = samples.key(row)
        sample: dict[str, Any] = {"__key__": key}
        value = self._decoders.value if self._decoders.decode else None
        for kind, offset, size in samples.members(row):
            suffix = suffixes[kind]
            where = partial(_where, file, key, suffix, offset)
            data = bytes_of(file, offset, size, fetched, where)
            sample[suffix] = data if value is None else value(suffix, data, where)
        return sample

    def _identity(self) -> str:
        return f"{self._shards_identity()} {self._decoders.identity} {self.skipped}"


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
