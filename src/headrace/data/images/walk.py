"""The files of a tree of directories: each once, and without what no person put there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

IsValid: TypeAlias = Callable[[str], bool]

# What macOS, Windows, Linux, Python, Synology and QNAP leave in directories of people's own.
_SYSTEM = {
    *("__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin"),
    *("system volume information", "lost+found", "__pycache__"),
    *("@eadir", "#recycle", "#snapshot", "@recycle", "@__thumb"),
}


def is_hidden(name: str) -> bool:
    """Say whether a file or directory is hidden, or a system's own, by its name."""
    return name.startswith(".") or name.casefold() in _SYSTEM


@dataclass
class Found:
    """What a walk saw beside the files that it gives; paths in the order in which they were met."""

    hidden: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)  # links to what is there by another path
    broken: list[str] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)  # of files that are not taken


@dataclass(frozen=True)
class _Place:
    """A directory by the path to it, its real path, and the number of the top that it is under."""

    path: str
    real: str
    top: int


class Walk:
    """Finds the files under several tops, in the order of their paths.

    A file that several paths lead to is taken by the one without links, else by the first. Real
    paths are looked at only where there are links: without them nothing can come twice.
    """

    def __init__(self, tops: list[str], is_valid: IsValid, found: Found) -> None:
        self._is_valid = is_valid
        self._found = found
        self._files: list[dict[str, list[str]]] = [{} for _ in tops]
        self._taken: dict[str, set[str]] = {}  # names of the files taken in each real directory
        self._links: list[tuple[str, _Place]] = []
        self._linked_files: list[tuple[str, str, _Place]] = []
        for number, top in enumerate(tops):
            if os.path.islink(top):
                above = os.path.realpath(os.path.dirname(top))
                self._links.append((top, _Place("", above, number)))
            else:
                self._enter(_Place(top, os.path.realpath(top), number))
        self._follow()

    def files(self) -> list[list[str]]:
        """Return the paths under each top, as torchvision orders them: by directory, then name."""
        return [
            [os.path.join(path, name) for path in sorted(places) for name in sorted(places[path])]
            for places in self._files
        ]

    def _enter(self, first: _Place) -> None:
        waiting = [first]
        while waiting:
            place = waiting.pop()
            if place.real in self._taken:
                self._found.again.append(place.path)
                continue
            names = list(self._look(place, waiting))
            self._taken[place.real] = set(names)
            self._files[place.top][place.path] = names

    def _look(self, place: _Place, waiting: list[_Place]) -> Iterator[str]:
        with os.scandir(place.path) as entries:
            for entry in entries:
                if entry.is_symlink():
                    self._note_link(entry, place)
                elif entry.is_dir():
                    if is_hidden(entry.name):
                        self._found.hidden.append(entry.path)
                    else:
                        real = os.path.join(place.real, entry.name)
                        waiting.append(_Place(entry.path, real, place.top))
                elif self._takes(entry.path, entry.name):
                    yield entry.name

    def _note_link(self, entry: os.DirEntry[str], place: _Place) -> None:
        if leads_to_directory(entry):
            if is_hidden(entry.name):
                self._found.hidden.append(entry.path)
            else:
                self._links.append((entry.path, place))
        elif self._takes(entry.path, entry.name):
            self._linked_files.append((entry.path, entry.name, place))
        elif not is_hidden(entry.name) and not os.path.exists(entry.path):
            self._found.broken.append(entry.path)

    def _takes(self, path: str, name: str) -> bool:
        if not self._is_valid(path):
            ending = os.path.splitext(name)[1].lower()
            self._found.endings[ending] += not is_hidden(name)
            return False
        if is_hidden(name):
            self._found.hidden.append(path)
            return False
        return True

    def _follow(self) -> None:
        """Take what only links lead to: directories, and the links in those; then files."""
        while self._links:
            links, self._links = self._links, []
            for path, place in sorted(links, key=lambda link: (link[1].top, link[0])):
                real = os.path.realpath(path)
                above = os.path.join(place.real, "").startswith(os.path.join(real, ""))
                if above or real in self._taken:
                    self._found.again.append(path)
                else:
                    self._enter(_Place(path, real, place.top))
        for path, name, place in sorted(self._linked_files, key=lambda f: (f[2].top, f[0])):
            directory, target = os.path.split(os.path.realpath(path))
            taken = self._taken.setdefault(directory, set())
            if target in taken:
                self._found.again.append(path)
            else:
                taken.add(target)
                self._files[place.top][place.path].append(name)


def leads_to_directory(link: os.DirEntry[str]) -> bool:
    """Say whether an entry is a directory, or a link to one."""
    try:
        return link.is_dir()
    except OSError:  # links in a circle lead nowhere
        return False


def leads_up(link: str) -> bool:
    """Say whether a link leads to the directory that it is in, or to one above."""
    real = os.path.join(os.path.realpath(link), "")
    return os.path.join(os.path.realpath(os.path.dirname(link)), "").startswith(real)
