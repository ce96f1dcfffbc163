"""What is odd about a tree of images: each kind one warning, with the line to write."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence

from headrace.data.images.walk import Found
from headrace.errors import SourceError, SourceWarning
from headrace.notices import warn_user

_SPLITS = {
    *("train", "training", "trn", "val", "valid", "validation", "eval", "dev"),
    *("test", "testing", "tst", "holdout"),
}
# Images that Pillow opens, but torchvision's list has not; and those that it needs a plugin for.
_OPENED = (".gif", ".jfif", ".jpe", ".jp2", ".tga", ".avif", ".ico", ".pbm", ".pnm", ".dds")
_CONVERTED = (".heic", ".heif", ".jxl", ".svg", ".cr2", ".nef", ".arw", ".dng", ".dcm", ".exr")
_SHOWN = 3


class Layout:
    """What was seen of a root and its classes; :meth:`tell` warns of it."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)
        self.found = Found()
        self.other_order: tuple[list[str], list[str]] | None = None
        self._loose: list[str] = []
        self._nested: dict[str, list[str]] = {}
        self._classes: list[str] = []
        self._extensions: tuple[str, ...] = ()

    def note_beside(self, entry: os.DirEntry[str]) -> None:
        """Take in what lies in the root and is no directory."""
        if entry.is_symlink() and not os.path.exists(entry.path):
            self.found.broken.append(entry.path)
        elif not entry.name.startswith("."):
            self._loose.append(entry.name)

    def look_at(
        self, files: Mapping[str, Sequence[str]], extensions: str | tuple[str, ...]
    ) -> None:
        """Take in the files of each class: are they in directories that look like classes?"""
        self._extensions = (extensions,) if isinstance(extensions, str) else tuple(extensions)
        self._classes = [os.path.basename(top) for top in files]
        for top, paths in files.items():
            inside = _directories(top, paths)
            if inside:
                self._nested[os.path.basename(top)] = inside

    def without_classes(self) -> SourceError:
        """Return the error for a root without directories."""
        left_out = f" but {_some(self._inside(self.found.hidden))}" if self.found.hidden else ""
        return SourceError(
            f"{self.root} has no directories in it{left_out}. ImageFolder needs one for each "
            f"class, with images in it: {os.path.join(self.root, 'cat', '1.jpg')}. Where there are "
            f"no classes, put the images in one directory of it: {os.path.join(self.root, 'all')}."
        )

    def without_images(
        self, empty: Sequence[str], extensions: str | tuple[str, ...] | None
    ) -> SourceError:
        """Return the error for classes without an image."""
        endings = f" whose name ends in {extensions}" if extensions is not None else ""
        unread = [e for e in (*_OPENED, *_CONVERTED) if self.found.endings[e]]
        other = f" There are files ending in {', '.join(unread)}." if unread else ""
        again = self._inside(self.found.again)
        if again:
            other += f" Links to what is there by another path are not followed: {_some(again)}."
        return SourceError(
            f"{self.root}: there is no image{endings} in {', '.join(empty)}.{other} Put some "
            f"there, remove the directory, or write ImageFolder(..., allow_empty=True)."
        )

    def tell(self) -> None:
        """Warn of each kind of oddness once."""
        for text in (*self._of_files(), *self._of_directories()):
            warn_user(f"{self.root}: {text}", SourceWarning)

    def _of_files(self) -> list[str]:
        found, said = self.found, []
        if found.hidden:
            said.append(
                f"what is hidden, or a system's own, is left out: "
                f"{_some(self._inside(found.hidden))}. torchvision reads it; so does "
                f"ImageFolder(..., like_torchvision=True)."
            )
        if found.again:
            said.append(
                f"links to what is there by another path are not followed, so that each image "
                f"comes once: {_some(self._inside(found.again))}. torchvision follows them; so "
                f"does ImageFolder(..., like_torchvision=True)."
            )
        if found.broken:
            said.append(
                f"links that lead nowhere are left out: {_some(self._inside(found.broken))}. Put "
                f"there what they lead to, or remove them."
            )
        loose = [n for n in sorted(self._loose) if n.lower().endswith(self._extensions or ("",))]
        if loose and self._extensions:
            said.append(
                f"images that lie in no class are left out: {_some(loose)}. Move them to the "
                f"directory of their class."
            )
        return [*said, *self._of_endings()]

    def _of_endings(self) -> list[str]:
        if not self._extensions:
            return []
        said = []
        counts = self.found.endings
        opened = [e for e in _OPENED if counts[e] and e not in self._extensions]
        if opened:
            count, also = sum(counts[e] for e in opened), ", ".join(opened)
            said.append(
                f"{count:,} files ending in {also} are left out, as by torchvision. To read them, "
                f"write ImageFolder(..., is_valid_file=lambda path: path.lower().endswith("
                f"{(*self._extensions, *opened)}))."
            )
        converted = [e for e in _CONVERTED if counts[e] and e not in self._extensions]
        if converted:
            count = sum(counts[e] for e in converted)
            said.append(
                f"{count:,} files ending in {', '.join(converted)} are left out: Pillow alone does "
                f"not read them. Convert them, or write ImageFolder(..., loader=fn, "
                f"is_valid_file=fn) with functions of the path that do."
            )
        return said

    def _of_directories(self) -> list[str]:
        said = []
        names = self._classes
        splits = [name for name in names if name.casefold() in _SPLITS]
        if splits and (len(splits) > 1 or len(splits) == len(names)):
            each = " and ".join(f"ImageFolder({os.path.join(self.root, n)!r})" for n in splits[:2])
            said.append(f"{_some(splits)} are taken for classes. If they are splits, write {each}.")
        elif nested := self._suspicious():
            name = next(iter(nested))
            said.append(
                f"class {name!r} has no images of its own, but directories of them: "
                f"{_some(nested[name])}. They are all of class {name!r}. If they are classes, "
                f"write ImageFolder({os.path.join(self.root, name)!r})."
            )
        alike = _alike(names)
        if alike:
            said.append(
                f"{' and '.join(map(repr, alike))} are two classes, whose names look the same. If "
                f"they are one, put their images in one directory."
            )
        if self.other_order is not None:
            ours, theirs = self.other_order
            place = next(i for i, name in enumerate(ours) if name != theirs[i])
            said.append(
                f"classes are sorted as numbers: number {place} is {ours[place]!r}, with "
                f'torchvision {theirs[place]!r}. Write ImageFolder(..., class_order="number") to '
                f'say so, or class_order="text" for the numbers of a model trained with those.'
            )
        return said

    def _suspicious(self) -> dict[str, list[str]]:
        """Return the classes of which all images lie deeper, where that may be a mistake."""
        if len(self._classes) == 1:
            return self._nested
        return {name: inside for name, inside in self._nested.items() if len(inside) > 1}

    def _inside(self, paths: Sequence[str]) -> list[str]:
        return sorted(os.path.relpath(path, self.root) for path in paths)


def _directories(top: str, paths: Sequence[str]) -> list[str]:
    """Return the directories in ``top`` that all its files are in; none if one is beside them."""
    inside: dict[str, None] = {}
    for path in paths:
        name, deeper, _ = path[len(top) + 1 :].partition(os.sep)
        if not deeper:
            return []
        inside[name] = None
    return [*inside]


def _alike(names: Sequence[str]) -> tuple[str, str] | None:
    """Return two names that differ by case, blanks or their way of writing accents only."""
    seen: dict[str, str] = {}
    for name in names:
        plain = unicodedata.normalize("NFKC", name).casefold().strip()
        if plain in seen:
            return seen[plain], name
        seen[plain] = name
    return None


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {more:,} more" if more > 0 else "")
