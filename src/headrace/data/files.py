"""Files that sources read and the files that they keep: stamps, a cache, writing all or nothing."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, BinaryIO, Self, TypeAlias

from headrace.errors import SourceChangedError
from headrace.written import told

PathLike: TypeAlias = str | os.PathLike[str]

_ABANDONED_S = 60.0
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Stamp:
    """What tells that a file is still the one that was looked at: its size and time."""

    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, path: PathLike) -> Self:
        """Return the stamp of a file as it is now."""
        found = os.stat(path)
        return cls(found.st_size, found.st_mtime_ns)

    def check(self, path: PathLike) -> None:
        """Raise where the file is no longer the one that this stamp was taken of.

        Raises:
            SourceChangedError: another size or time of change, or the file is gone.
        """
        try:
            found = os.stat(path)
        except OSError as error:
            raise SourceChangedError(
                f"{os.fspath(path)} cannot be found any more ({error.strerror}): it was there when "
                f"it was opened. Put it back, or make the dataset again."
            ) from error
        if found.st_size != self.size_bytes or found.st_mtime_ns != self.mtime_ns:
            raise SourceChangedError(
                f"{os.fspath(path)} has changed since it was opened: it had {self.size_bytes:,} "
                f"bytes and has {found.st_size:,}. Leave files alone while they are read, and make "
                f"the dataset again to read the new one."
            )


def fill(buffer: Any, file: IO[bytes]) -> int:
    """Read a file into all of a buffer of bytes; return how many there were.

    In pieces: the files of zipfile and gzip make each read of theirs as bytes of its own first.
    """
    view, filled = memoryview(buffer), 0
    while filled < len(view):
        piece = file.readinto(view[filled : filled + _PIECE_BYTES])  # type: ignore[attr-defined]
        if not piece:
            break
        filled += piece
    return filled


def cache_path(source: PathLike, suffix: str, directory: PathLike | None = None) -> Path:
    """Return where what is derived from a file is kept: a name that follows from its path.

    ``directory`` None is ``headrace`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``.
    """
    if directory is None:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        directory = os.path.join(base, "headrace")
    place = os.path.abspath(source)
    key = blake2b(os.fsencode(place), digest_size=8).hexdigest()
    name = os.path.basename(place)
    return Path(directory) / f"{name[:100]}-{key}.{suffix}"


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write; it takes the place of ``path`` at the end, or leaves no trace.

    Any number of processes may write the same file, and any of them may be killed: the last one
    to finish wins, readers see one whole file or another, and what a killed one left behind is
    removed by the next one to write.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        with told(path, "it was not written, and nothing is left behind"):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(path)
            with open(part, "xb") as file:
                _lock(file)
                yield file
                file.flush()
                os.fsync(file.fileno())  # or a power cut may leave the name without the bytes
                os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _remove_abandoned(path: Path) -> None:
    """Remove the parts of writers that were killed: nobody holds their lock any more."""
    for part in path.parent.glob(f"{path.name}.*.part"):
        with contextlib.suppress(OSError), open(part, "rb") as file:
            # A moment lies between a writer's open and its lock.
            if time.time() - os.stat(part).st_mtime > _ABANDONED_S and _lock(file):
                part.unlink()


def _lock(file: BinaryIO) -> bool:
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows refuses to remove what is open
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
