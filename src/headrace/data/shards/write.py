"""Writing shards: one after the other from samples, or side by side from a folder of files."""

from __future__ import annotations

import io
import itertools
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from headrace.data.files import PathLike
from headrace.data.images.walk import Found, Walk
from headrace.data.progress import Progress
from headrace.data.shards.encode import File, files_of
from headrace.data.shards.headers import BLOCK
from headrace.data.shards.index import split_name
from headrace.data.shards.targets import Target, target_of
from headrace.data.stores.remote import Options, Stores, is_remote, shown, shown_path
from headrace.errors import OptionError, SourceError
from headrace.machine import available_cores

SHARD_BYTES = 256 << 20

_AT_ONCE = 4  # threads more than this wait for the same disk


def write_shards(
    dataset: Iterable[Any],
    out: PathLike,
    *,
    shard_bytes: int = SHARD_BYTES,
    resume: bool = False,
    storage_options: Options | None = None,
) -> list[str]:
    """Write samples to tar shards that :class:`TarDataset` and WebDataset read; return their paths.

    Args:
        dataset: a map-style dataset or anything that yields samples: dicts of values by suffix, and
            ``"__key__"`` where samples have names of their own. What the values become follows from
            the suffix, as :class:`TarDataset` reads it: bytes stay what they are; ``json``,
            ``txt``, ``cls``, ``npy``, ``npz``, ``safetensors``, and ``jpg`` or ``png`` from a uint8
            tensor (3, H, W) or a Pillow image. A ``DataLoader(dataset, batch_size=None,
            num_workers=4)`` makes the samples side by side.
        out: where to, with the number of the shard in braces: ``"out/{:05d}.tar"``, or
            ``"s3://bucket/train/{:05d}.tar"``.
        shard_bytes: a shard ends before it would have more bytes than this; a larger sample has one
            to itself.
        resume: go on where a run that was killed stopped: shards that are there are kept, and their
            samples passed over, unread where the dataset is map-style. The samples have to be those
            of that run, in its order.
        storage_options: of the store, as of :class:`TarDataset`.

    The same samples give the same bytes. Each shard takes its place when it is whole, with its
    index (``out/00000.tar.index``) beside it.

    Raises:
        OptionError: ``out`` without a number, or shards of no size.
        FileExistsError: there are such shards, and ``resume`` is false.
        SourceError: a sample that is no dict, or a value that cannot be written.
        InUseError: another program is writing there.
    """
    pattern = _checked(out, shard_bytes)
    target = target_of(pattern, Stores(storage_options))
    with target.alone(pattern):
        done = _done(target, pattern, resume)
        samples = _from(dataset, sum(count for _, count in done))
        total = len(dataset) if isinstance(dataset, Sized) else None
        paths = [path for path, _ in done]
        with Progress("writing shards", total, "samples") as progress:
            for group in _groups(samples, shard_bytes):
                path = pattern.format(len(paths))
                _check_free(target, path)
                _write(target, path, (file for files in group for file in files))
                paths.append(path)
                progress.advance(len(group))
    return paths


def pack_folder(
    folder: PathLike,
    out: PathLike,
    *,
    shard_bytes: int = SHARD_BYTES,
    classes: bool = False,
    shuffle: int | None = None,
    resume: bool = False,
    storage_options: Options | None = None,
) -> list[str]:
    """Write the files of a folder to tar shards, several at once; return their paths.

    Args:
        folder: its files, those of its folders too; those named alike up to the first dot of their
            name are one sample. Hidden files are left out.
        out: where to: ``"out/{:05d}.tar"``, or a directory for that; also in a store.
        shard_bytes: a shard ends before it would have more bytes than this.
        classes: add ``.cls``, the number of the first folder by its name: classes as an
            :class:`ImageFolder` has them.
        shuffle: a seed; the samples are put in an order that follows from it. Without, they are in
            the order of their paths.
        resume: keep the shards that are there, and write those that are not.
        storage_options: of the store, as of :class:`TarDataset`.

    The same files give the same bytes.

    Raises:
        OptionError: ``out`` without a number, or shards of no size.
        FileExistsError: there are such shards, and ``resume`` is false.
        SourceError: a folder without files, or files that are no file of a sample.
        InUseError: another program is writing there.
    """
    given = os.fspath(out)
    pattern = _checked(given if "{" in given else os.path.join(given, "{:05d}.tar"), shard_bytes)
    target = target_of(pattern, Stores(storage_options))
    samples = _samples_in(os.fspath(folder), classes)
    if shuffle is not None:
        order = np.random.default_rng(shuffle).permutation(len(samples))
        samples = [samples[n] for n in order]
    groups = list(_cut(samples, shard_bytes))
    with target.alone(pattern):
        paths = [pattern.format(n) for n in range(len(groups))]
        kept = _kept(target, paths, [*map(len, groups)], resume)
        _check_free(target, pattern.format(len(groups)))

        def write(number: int) -> int:
            if paths[number] not in kept:
                _write(
                    target, paths[number], (f for sample in groups[number] for f in sample.files())
                )
            return len(groups[number])

        threads = min(_AT_ONCE, max(1, int(available_cores())))
        with (
            Progress("writing shards", len(samples), "samples") as progress,
            ThreadPoolExecutor(threads) as pool,
        ):
            for written in pool.map(write, range(len(groups))):
                progress.advance(written)
    return paths


class _Packed(NamedTuple):
    """A sample of a folder: where its files are, and its class."""

    key: str
    paths: list[tuple[str, str]]  # suffix, path
    size_bytes: int
    label: int | None

    def files(self) -> Iterator[File]:
        for suffix, path in self.paths:
            yield File(f"{self.key}.{suffix}", Path(path).read_bytes())
        if self.label is not None:
            yield File(f"{self.key}.cls", str(self.label).encode())


def _samples_in(folder: str, classes: bool) -> list[_Packed]:
    (paths,) = Walk([folder], lambda _: True, Found()).files()
    grouped: dict[str, list[tuple[str, str]]] = {}
    for path in paths:
        name = os.path.relpath(path, folder).replace(os.sep, "/")
        key, suffix = split_name(name)
        if not suffix:
            raise SourceError(
                f"{path} has no suffix, by which it would be a file of a sample. Rename it, or "
                f"move it out of {folder}."
            )
        others = grouped.setdefault(key, [])
        if any(suffix == other for other, _ in others):
            raise SourceError(
                f"{path} is the second .{suffix} of the sample {key!r}: suffixes are read in lower "
                f"case. Rename one of them."
            )
        others.append((suffix, path))
    if not grouped:
        raise SourceError(f"there are no files in {folder}. Write the folder of the samples.")
    numbers: dict[str, int] = {}
    if classes:
        flat = next((key for key in grouped if "/" not in key), None)
        if flat is not None:
            raise SourceError(
                f"{flat!r} is in no folder of a class. Write {folder}/CLASS/{flat}, or leave "
                f"classes= out."
            )
        names = sorted({key.partition("/")[0] for key in grouped})
        numbers = {name: number for number, name in enumerate(names)}
    return [
        _Packed(key, files, _tar_bytes(files) + classes * 2 * BLOCK, numbers.get(key.split("/")[0]))
        for key, files in grouped.items()
    ]


def _tar_bytes(files: Iterable[tuple[str, str]]) -> int:
    return sum(_padded(os.stat(path).st_size) for _, path in files)


def _padded(size_bytes: int) -> int:
    return BLOCK + -(-size_bytes // BLOCK) * BLOCK


def _checked(out: PathLike, shard_bytes: int) -> str:
    pattern = os.path.expanduser(os.fspath(out))
    if shard_bytes < 1:
        raise OptionError(f"shard_bytes={shard_bytes} is no size. Write shard_bytes=256 << 20.")
    if "://" in pattern and (pattern.startswith("http") or not is_remote(pattern)):
        raise OptionError(
            f"{shown(pattern)} is no place to write shards to. Write a directory, or an address in "
            f"a store: 's3://bucket/train/{{:05d}}.tar'."
        )
    try:
        if pattern.format(0) != pattern.format(1):
            return pattern
    except (IndexError, KeyError, ValueError):
        pass
    raise OptionError(
        f"{pattern!r} has no place for the number of a shard. Write 'out/{{:05d}}.tar'."
    )


def _done(target: Target, pattern: str, resume: bool) -> list[tuple[str, int]]:
    """Return the shards that are there, and how many samples each has."""
    done = []
    for number in itertools.count():
        path = pattern.format(number)
        place = target.place(path)
        if place is None:
            break
        if not resume:
            raise _there(path)
        done.append((path, target.samples(place)))
    return done


def _kept(target: Target, paths: Sequence[str], counts: Sequence[int], resume: bool) -> set[str]:
    """Return which of the shards are there, whole."""
    kept = set()
    for path, count in zip(paths, counts, strict=True):
        place = target.place(path)
        if place is None:
            continue
        if not resume:
            raise _there(path)
        if (found := target.samples(place)) != count:
            raise SourceError(
                f"{shown_path(path)} has {found:,} samples and would have {count:,}: it was packed "
                f"of other files, or with other options. Write to another directory."
            )
        kept.add(path)
    return kept


def _check_free(target: Target, path: str) -> None:
    if target.place(path) is not None:
        raise _there(path)


def _there(path: str) -> FileExistsError:
    return FileExistsError(
        f"{shown_path(path)} is there already, and is not written over. Remove it, write to "
        f"another directory, or write resume=True to go on behind what is there."
    )


def _from(dataset: Iterable[Any], first: int) -> Iterator[list[File]]:
    """Yield the files of each sample from one on."""
    samples: Iterable[Any]
    if hasattr(dataset, "__getitem__") and isinstance(dataset, Sized):
        samples = (dataset[number] for number in range(first, len(dataset)))
    else:
        samples = itertools.islice(dataset, first, None)
    for number, sample in enumerate(samples, first):
        yield files_of(sample, number)


def _groups(samples: Iterator[list[File]], shard_bytes: int) -> Iterator[list[list[File]]]:
    group: list[list[File]] = []
    used = 0
    for files in samples:
        size = sum(_padded(len(file.data)) for file in files)
        if group and used + size > shard_bytes:
            yield group
            group, used = [], 0
        group.append(files)
        used += size
    if group:
        yield group


def _cut(samples: Sequence[_Packed], shard_bytes: int) -> Iterator[Sequence[_Packed]]:
    first = used = 0
    for number, sample in enumerate(samples):
        if used and used + sample.size_bytes > shard_bytes:
            yield samples[first:number]
            first, used = number, 0
        used += sample.size_bytes
    yield samples[first:]


def _write(target: Target, path: str, files: Iterable[File]) -> None:
    target.write(path, partial(_write_tar, files))


def _write_tar(files: Iterable[File], out: BinaryIO) -> None:
    """Write an archive of which nothing depends on when and by whom it is written."""
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
