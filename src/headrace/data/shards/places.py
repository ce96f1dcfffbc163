"""A shard where it lies: a file on this machine, or an object in a store."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.data.files import PathLike, Stamp
from headrace.data.stores.local import LocalFile
from headrace.data.stores.remote import Object, RemoteFile, Stores, shown

File = LocalFile | RemoteFile


@dataclass(frozen=True)
class Place:
    """Where a shard lies, and what it was when it was found."""

    address: str  # without what may be secret
    stamp: Stamp
    about: Object | None = None  # of one in a store

    @classmethod
    def local(cls, path: PathLike) -> Place:
        """Return the place of a file."""
        return cls(str(path), Stamp.of(path))

    @classmethod
    def remote(cls, about: Object) -> Place:
        """Return the place of an object."""
        return cls(shown(about.address), about.stamp, about)

    def open(self, stores: Stores) -> File:
        """Open the shard.

        Raises:
            SourceChangedError: it is no longer what it was.
        """
        if self.about is None:
            return LocalFile(self.address, self.stamp)
        return RemoteFile(self.about, stores)
