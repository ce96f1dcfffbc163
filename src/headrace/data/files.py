"""Files that sources read and the files that they keep: stamps, and a cache."""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, Self, TypeAlias

from headrace.errors import SourceChangedError

PathLike: TypeAlias = str | os.PathLike[str]

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
