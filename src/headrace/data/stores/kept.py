"""Shards of stores that are kept in a directory: read there once they are, by ranges until then.

Fetching is the business of the processes beside (``io_process.py``), in which a lock lets one of
all on the machine fetch a shard; this side only looks which are there.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from headrace.data.files import PathLike, Stamp, cache_path
from headrace.data.stores.local import LocalFile
from headrace.data.stores.remote import Object, RemoteFile, Stores, shown
from headrace.errors import OptionError
from headrace.notices import warn_user

FOLDER = "shards"

_ASK_AGAIN_S = 2.0  # for what could not be fetched, or was given up


class KeptFile(LocalFile):
    """A shard that is kept; its name says what it is a copy of, and one that is open may go."""

    def __init__(self, path: Path, about: Object, remote: RemoteFile) -> None:
        super().__init__(path, Stamp.of(path))
        self.path = remote.path
        if self.stamp.size_bytes != about.size_bytes:
            raise FileNotFoundError(path)

    def check(self) -> None:
        """Do nothing: no other shard has its name."""


class Kept:
    """The shards of a directory.

    Args:
        cache_dir: the directory; None is the default place.
        cache_bytes: how many bytes of shards are kept.

    Raises:
        OptionError: no size.
    """

    def __init__(self, cache_dir: PathLike | None, cache_bytes: int) -> None:
        if cache_bytes < 1:
            raise OptionError(f"cache_bytes={cache_bytes} keeps nothing. Write 100 << 30.")
        place = cache_path("x", "shard", cache_dir).parent
        self.folder = Path(os.path.abspath(place)) / FOLDER
        self.cache_bytes = cache_bytes
        self._warned = False
        self._asked: dict[str, float] = {}  # when a shard was last asked for

    def check_window(self, sizes: Iterable[int], window: int) -> None:
        """Raise where the shards that are mixed at a time may be more than is kept.

        Raises:
            OptionError: it says the number to write.
        """
        needed = sum(sorted(sizes)[-window:])
        if needed > self.cache_bytes:
            raise OptionError(
                f"cache_bytes={self.cache_bytes:,} is less than the {window} largest shards have, "
                f"{needed:,} bytes, so that each would be fetched again and again. Write "
                f"cache_bytes={needed} or more, or fewer shuffle_shards=."
            )

    def path_of(self, about: Object) -> Path:
        """Return where a shard is kept, when it is."""
        suffix = f"{about.stamp.mtime_ns:x}.shard"
        return cache_path(f"/{shown(about.address)}", suffix, self.folder)

    def open(self, about: Object, remote: RemoteFile) -> KeptFile | None:
        """Return a shard if it is kept whole."""
        path = self.path_of(about)
        try:
            found = KeptFile(path, about, remote)
        except OSError:
            return None
        with contextlib.suppress(OSError):  # given up this moment: it is open
            os.utime(path)  # the one that is used last is given up last
        return found

    def fetch_unless_kept(self, about: Object, stores: Stores) -> None:
        """Have a shard fetched that is not there; returns at once."""
        path = self.path_of(about)
        try:
            os.utime(path)  # what is needed next is given up last
        except OSError:
            self.fetch(about, stores)

    def fetch(self, about: Object, stores: Stores) -> None:
        """Have a shard fetched; returns at once."""
        path = str(self.path_of(about))
        now = time.monotonic()
        if now - self._asked.get(path, -_ASK_AGAIN_S) < _ASK_AGAIN_S:
            return
        self._asked[path] = now
        problem = stores.fetch(about, path, self.cache_bytes)
        if problem and not self._warned:
            self._warned = True
            warn_user(
                f"shards are not kept in {self.folder}, but read by ranges each time: {problem}. "
                f"Make room, or write cache_dir= with another directory.",
                RuntimeWarning,
            )
