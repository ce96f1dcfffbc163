"""Files converted once: arrays in a cache directory, mapped into memory at every later start.

An entry is a directory with a raw file for each array and ``meta.json``, which says what it was
made from (paths, sizes and times of change of the sources, options, version of this format) and
how long each file has to be. It comes into being by one rename, under a lock that the kernel
releases when its holder dies. So an entry is whole, or it is not there; a process that was killed
leaves a ``.tmp`` directory, which the next one that converts removes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self, TypeAlias

import numpy as np

from headrace.data.files import PathLike
from headrace.data.gatherer import Array
from headrace.data.stores.remote import Object, is_remote
from headrace.errors import OptionError, SourceChangedError, SourceError
from headrace.locks import take

VERSION = 1
SMALL_BYTES = 1 << 26  # up to here a table is read into memory, unless told otherwise
_META = "meta.json"

Key: TypeAlias = dict[str, Any]
Extra: TypeAlias = dict[str, Any]
CacheDir: TypeAlias = PathLike | Literal[False] | None


def paths_of(path: PathLike | Sequence[PathLike]) -> tuple[str, ...]:
    """Return one path or several as text.

    Raises:
        OptionError: there are none.
    """
    several = [path] if isinstance(path, (str, os.PathLike)) else path
    paths = tuple(os.fspath(p) for p in several)
    if not paths:
        raise OptionError("there are no files to read: the list of paths is empty.")
    return paths


def cache_directory(cache_dir: CacheDir, size_bytes: int) -> str | None:
    """Return where a converted table is kept, None for memory."""
    if cache_dir is False:
        return None
    if cache_dir is None:
        return None if size_bytes <= SMALL_BYTES else os.fspath(default_directory())
    return os.path.abspath(cache_dir)


def describe(
    paths: Sequence[str],
    options: Mapping[str, Any],
    objects: Mapping[str, Object] | None = None,
) -> Key:
    """Return what an entry is made from, as JSON holds it; ``objects`` are not on this machine.

    Raises:
        FileNotFoundError: a path is not there.
    """
    files = []
    for path in paths:
        about = (objects or {}).get(path)
        if about is not None:
            files.append([path, about.stamp.size_bytes, about.stamp.mtime_ns])
            continue
        found = os.stat(path)
        files.append([os.path.abspath(path), found.st_size, found.st_mtime_ns])
    key: Key = json.loads(json.dumps({"version": VERSION, "files": files, "options": options}))
    return key


def check_unchanged(key: Key) -> None:
    """Check that the sources are what they were when ``key`` was made.

    Raises:
        SourceChangedError: one has another size or time of change, or is gone.
    """
    for path, size, mtime_ns in key["files"]:
        if is_remote(path):
            continue  # each read looks
        try:
            found = os.stat(path)
        except FileNotFoundError:
            raise SourceChangedError(
                f"{path} was removed while it was read. Make the dataset again."
            ) from None
        if (found.st_size, found.st_mtime_ns) != (size, mtime_ns):
            raise SourceChangedError(
                f"{path} changed while it was read: it had {size:,} bytes, now {found.st_size:,}. "
                f"Make the dataset again when nothing writes to the file."
            )


def default_directory() -> Path:
    """Return where entries go unless told: ``$XDG_CACHE_HOME/headrace/tables``, or ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "headrace" / "tables"


def entry_of(directory: str | os.PathLike[str], key: Key) -> Path:
    """Return the directory of an entry: its name follows from the paths and the options."""
    paths = [path for path, _, _ in key["files"]]
    text = json.dumps([paths, key["options"]], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Path(os.path.abspath(directory)) / f"{Path(paths[0]).stem[:80]}-{digest}"


class Memory:
    """Takes arrays in pieces and keeps them in memory."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[Array]] = {}

    def has(self, name: str) -> bool:
        """Say whether an array has begun."""
        return name in self._pieces

    def append(self, name: str, piece: Array) -> None:
        """Add rows to the end of an array."""
        self._pieces.setdefault(name, []).append(piece)

    def rewrite(self, name: str, change: Callable[[Array], None]) -> None:
        """Have ``change`` edit an array in place, a piece at a time."""
        pieces = [np.array(piece) for piece in self._pieces[name]]
        for piece in pieces:
            change(piece)
        self._pieces[name] = pieces

    def arrays(self) -> dict[str, Array]:
        """Return what was taken in."""
        return {name: np.concatenate(pieces) for name, pieces in self._pieces.items()}


class Files:
    """Takes arrays in pieces and writes each to a file of a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, IO[bytes]] = {}
        self._kinds: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._rows: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()

    def has(self, name: str) -> bool:
        """Say whether an array has begun."""
        return name in self._files

    def append(self, name: str, piece: Array) -> None:
        """Add rows to the end of an array."""
        if name not in self._files:
            path = self._directory / f"{len(self._files)}.bin"
            self._files[name] = open(path, "w+b", buffering=0)  # noqa: SIM115 closed by __exit__
            self._kinds[name] = piece.dtype.str, piece.shape[1:]
            self._rows[name] = 0
        _write(self._files[name], piece)
        self._rows[name] += len(piece)

    def rewrite(self, name: str, change: Callable[[Array], None]) -> None:
        """Have ``change`` edit an array in place, a piece at a time.

        Not through a memory map: a full disk would be a bus error.
        """
        dtype, shape = self._kinds[name]
        file, row_bytes = self._files[name], np.dtype(dtype).itemsize * int(np.prod(shape))
        step = max(1, (1 << 22) // row_bytes)
        for start in range(0, self._rows[name], step):
            count = min(step, self._rows[name] - start)
            file.seek(start * row_bytes)
            piece = np.frombuffer(bytearray(file.read(count * row_bytes)), dtype)
            change(piece.reshape(count, *shape))
            file.seek(start * row_bytes)
            _write(file, piece)

    def finish(self, key: Key, extra: Extra) -> None:
        """Write what the arrays are beside them."""
        arrays = {
            name: [Path(file.name).name, *self._kinds[name], self._rows[name]]
            for name, file in self._files.items()
        }
        text = json.dumps({"key": key, "arrays": arrays, "extra": extra})
        (self._directory / _META).write_text(text, encoding="utf-8")


Sink: TypeAlias = Memory | Files


def _write(file: IO[bytes], piece: Array) -> None:
    rest = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
    while len(rest):
        rest = rest[file.write(rest) :]


def opened(entry: Path, key: Key) -> tuple[dict[str, Array], Extra] | None:
    """Return an entry's arrays, mapped, and what was said with them; None if it is not that one."""
    try:
        meta = json.loads((entry / _META).read_text(encoding="utf-8"))
        if meta["key"] != key:
            return None
        arrays = {name: _mapped(entry, *kind) for name, kind in meta["arrays"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None  # absent, cut short by a power cut, or not ours: it is made again
    return arrays, meta["extra"]


def _mapped(entry: Path, file: str, dtype: str, shape: Sequence[int], rows: int) -> Array:
    path, whole = entry / file, (rows, *shape)
    kind = np.dtype(dtype)
    if path.stat().st_size != int(np.prod(whole)) * kind.itemsize:
        raise ValueError(f"{path} has another length than {_META} says")
    if not np.prod(whole):
        return np.empty(whole, kind)
    mapped: Array = np.memmap(path, kind, "r", shape=whole)
    return mapped


def converted(
    entry: Path, key: Key, convert: Callable[[Sink], Extra], *, private: bool = False
) -> tuple[dict[str, Array], Extra]:
    """Return the arrays of an entry, made by ``convert`` if it is not there or out of date.

    ``private`` keeps other users of the machine from it.

    Raises:
        SourceChangedError: a source changed meanwhile.
        OSError: the directory cannot be written to, or its disk is full.
    """
    ready = opened(entry, key)
    if ready is not None:
        return ready
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = take(entry.with_name(f"{entry.name}.lock"), f"the table {entry}", "", _say_waiting)
    except OSError as error:
        raise _unwritable(entry, error) from error
    with lock:
        ready = opened(entry, key)  # another process may have been quicker
        if ready is None:
            _build(entry, key, convert, 0o700 if private else 0o777)
            ready = opened(entry, key)
    if ready is None:
        raise SourceError(f"{entry} was removed or changed by another program while it was made.")
    return ready


def _build(entry: Path, key: Key, convert: Callable[[Sink], Extra], mode: int) -> None:
    new, old = entry.with_name(entry.name + ".tmp"), entry.with_name(entry.name + ".old")
    for debris in (new, old):
        shutil.rmtree(debris, ignore_errors=True)
    try:
        new.mkdir(mode)
        with Files(new) as files:
            extra = convert(files)
            check_unchanged(key)
            files.finish(key, extra)
        if entry.exists():
            entry.rename(old)  # who has it mapped keeps it
        new.rename(entry)
    except OSError as error:
        raise _unwritable(entry, error) from error
    finally:
        for debris in (new, old):
            shutil.rmtree(debris, ignore_errors=True)


def _unwritable(entry: Path, error: OSError) -> OSError:
    if error.filename is not None and not str(error.filename).startswith(str(entry.parent)):
        return error  # of the source: it says so itself
    return type(error)(
        error.errno,
        f"{error.strerror}; nothing is left behind. The converted table goes to {entry.parent}: "
        f"write cache_dir= with a directory that has room",
        str(entry),
    )


def _say_waiting(reason: str) -> None:
    print(f"headrace: {reason}: waiting for it", file=sys.stderr, flush=True)
