"""Forks of this process: how many there were, and who is alive when one comes.

A fork comes at any moment of any other thread, and Python forgets what its hooks raise: nothing
here walks over what others may be changing.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_counter = itertools.count(1)  # next() of it is one step, whatever other threads do
_now = 0


def count() -> int:
    """Return a number that is another one behind each fork of this process.

    What is noted before a fork differs from what is read after it, in all threads: the number
    changes before the fork too, for what another thread does between the fork and our hook.
    """
    return _now


def note() -> None:
    """Change the number: a fork comes, or has come."""
    global _now
    _now = next(_counter)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=note, after_in_parent=note)


class _Reference(weakref.ref[T]):
    __slots__ = ()
    __hash__ = object.__hash__  # whatever it refers to
    __eq__ = object.__eq__


class Alive(Generic[T]):
    """The objects that were added and still live, to be walked while other threads add and drop."""

    def __init__(self) -> None:
        self._found: dict[_Reference[T], None] = {}

    def add(self, item: T) -> None:
        """Add one: no reference to it is kept."""
        # What is called as it dies is no Python code, in which a Ctrl-C would be forgotten.
        self._found[_Reference(item, self._found.pop)] = None

    def __iter__(self) -> Iterator[T]:
        # Each step but the copy may switch threads, and a copy of references to references is one.
        for reference in self._found.copy():
            item = reference()
            if item is not None:
                yield item
