"""Where shards are written to: a directory of this machine, or a store."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from headrace.data.files import Stamp, cache_path
from headrace.data.shards.index import BESIDE, Indexes, index_bytes, make_beside
from headrace.data.shards.places import Place
from headrace.data.stores.local import LocalFile
from headrace.data.stores.remote import Stores, is_remote, shown
from headrace.locks import take
from headrace.written import written_whole

Write = Callable[[BinaryIO], None]


class Target:
    """A directory of this machine.

    Args:
        stores: reads and writes what is elsewhere.
    """

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    def alone(self, pattern: str) -> Any:
        """Hold the directory, alone among all programs.

        Raises:
            InUseError: another holds it.
        """
        folder = Path(pattern.format(0)).parent
        folder.mkdir(parents=True, exist_ok=True)
        return _held(folder / ".writing.lock", str(folder))

    def place(self, path: str) -> Place | None:
        """Return the place of a shard, None where there is none."""
        return Place.local(path) if os.path.exists(path) else None

    def write(self, path: str, write: Write) -> None:
        """Write a shard, whole or not at all, and its index beside it."""
        with written_whole(Path(path)) as out:
            write(out)
        make_beside(Place.local(path), self._stores)

    def samples(self, place: Place) -> int:
        """Return how many samples a shard has, and see to its index."""
        make_beside(place, self._stores)  # of one that was killed between a shard and its index
        return Indexes(None, self._stores).summary(place).samples


class StoreTarget(Target):
    """A store: a shard is written to a file first, and put there when it is whole.

    Only the programs of this machine are kept from writing to one place at the same time.
    """

    def alone(self, pattern: str) -> Any:
        """Hold the place, alone among the programs of this machine.

        Raises:
            InUseError: another holds it.
        """
        folder = shown(pattern.format(0)).rpartition("/")[0]
        lock = cache_path(f"/{folder}", "writing.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        return _held(lock, folder)

    def place(self, path: str) -> Place | None:
        """Return the place of a shard, None where there is none."""
        try:
            return Place.remote(self._stores.look([path])[0])
        except FileNotFoundError:
            return None

    def write(self, path: str, write: Write) -> None:
        """Put a shard, and its index beside it."""
        with tempfile.NamedTemporaryFile(suffix=".tar") as out:
            write(out)  # type: ignore[arg-type]
            out.flush()
            self._stores.put(path, Path(out.name).read_bytes())
            place = self.place(path)
            if place is None:
                raise FileNotFoundError(2, "it was put there, and is not there", shown(path))
            file = LocalFile(out.name, Stamp.of(out.name))
            self._stores.put(path + BESIDE, index_bytes(file.read, place.stamp))


def target_of(pattern: str, stores: Stores) -> Target:
    """Return what writes to an address."""
    return StoreTarget(stores) if is_remote(pattern) else Target(stores)


def _held(lock: Path, folder: str) -> Any:
    return take(lock, f"the folder of shards {folder}", "Write to another directory.")
