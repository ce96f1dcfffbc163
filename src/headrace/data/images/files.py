"""Directories of images, one for each class, and the compact list of what is in them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from headrace.data.images.layout import Layout
from headrace.data.images.walk import IsValid, Walk, is_hidden, leads_to_directory, leads_up
from headrace.data.shared_list import SharedList
from headrace.errors import OptionError, SampleIndexError

Sample: TypeAlias = tuple[str, int]
Directory: TypeAlias = str | os.PathLike[str]
Order: TypeAlias = Literal["number", "text"]

IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)


class FileTable(Sequence[Sample]):
    """Paths and classes of many files, where workers read them without copying them."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._paths = SharedList([path for path, _ in samples])
        self.targets = SharedList([target for _, target in samples])

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        try:
            return self._paths[index], self.targets[index]
        except SampleIndexError:
            raise SampleIndexError(
                f"index {index} is out of range for {len(self)} images. "
                f"Write an index from 0 to {len(self) - 1}."
            ) from None

    def __iter__(self) -> Iterator[Sample]:
        return zip(self._paths, self.targets, strict=True)


def find_classes(
    directory: Directory, order: Order | None = None, layout: Layout | None = None
) -> tuple[list[str], dict[str, int]]:
    """Return the names of the directories in ``directory``, in order, and the number of each.

    Hidden directories and those of systems are left out. Names that are all numbers are sorted as
    numbers, with a warning where torchvision has another order, unless ``order`` says which.

    Raises:
        SourceError: there are none.
    """
    seen = layout or Layout(directory)
    names: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if not leads_to_directory(entry):
                seen.note_beside(entry)
            elif is_hidden(entry.name):
                seen.found.hidden.append(entry.path)
            elif entry.is_symlink() and leads_up(entry.path):
                seen.found.again.append(entry.path)
            else:
                names.append(entry.name)
    if not names:
        raise seen.without_classes()
    classes = sorted(names)
    if order != "text" and _are_numbers(classes):
        by_number = sorted(classes, key=float)  # of equal ones, the order stays
        if order is None and by_number != classes:
            seen.other_order = (by_number, classes)
        classes = by_number
    if layout is None:
        seen.tell()
    return classes, {name: number for number, name in enumerate(classes)}


def make_dataset(  # noqa: PLR0917 - torchvision's
    directory: Directory,
    class_to_idx: dict[str, int],
    extensions: str | tuple[str, ...] | None = None,
    is_valid_file: IsValid | None = None,
    allow_empty: bool = False,
    layout: Layout | None = None,
) -> list[Sample]:
    """Return the path and class of each image.

    That is by class, then by directory, then by name, as in torchvision. Links are followed; a file
    that several paths lead to is taken once. Hidden files and those of systems are left out.

    Raises:
        SourceError: a class has no image, and ``allow_empty`` is not set.
    """
    is_valid = checked_is_valid(extensions, is_valid_file)
    seen = layout or Layout(directory)
    names = sorted(class_to_idx)
    if _are_numbers(names):  # whose numbers then say which of the two orders it is
        names = sorted(names, key=class_to_idx.__getitem__)
    root = os.path.expanduser(directory)
    tops = [os.path.join(root, name) for name in names]
    files = Walk(tops, is_valid, seen.found).files()
    empty = [name for name, found in zip(names, files, strict=True) if not found]
    if empty and not allow_empty:
        raise seen.without_images(empty, extensions)
    if extensions is not None:
        seen.look_at(dict(zip(tops, files, strict=True)), extensions)
    if layout is None:
        seen.tell()
    return [
        (path, class_to_idx[name])
        for name, paths in zip(names, files, strict=True)
        for path in paths
    ]


def checked_is_valid(
    extensions: str | tuple[str, ...] | None, is_valid_file: IsValid | None
) -> IsValid:
    """Return the function that says which files are images.

    Raises:
        OptionError: both are given, or none.
    """
    if (extensions is None) == (is_valid_file is None):
        raise OptionError("give one of extensions= and is_valid_file=, not both or none of them.")
    if is_valid_file is not None:
        return is_valid_file
    assert extensions is not None
    return _Ending(extensions)


class _Ending:
    def __init__(self, endings: str | tuple[str, ...]) -> None:
        self._endings = endings if isinstance(endings, str) else tuple(endings)

    def __call__(self, path: str) -> bool:
        return path.lower().endswith(self._endings)


def torchvisions_classes(directory: Directory) -> tuple[list[str], dict[str, int]]:
    """Return what ``torchvision.datasets.folder.find_classes`` finds: all directories, as text.

    Raises:
        SourceError: there are none.
    """
    with os.scandir(directory) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir())
    if not classes:
        raise Layout(directory).without_classes()
    return classes, {name: number for number, name in enumerate(classes)}


def torchvisions_dataset(
    directory: Directory,
    class_to_idx: dict[str, int],
    extensions: tuple[str, ...] | None,
    is_valid_file: IsValid | None,
    allow_empty: bool,
) -> list[Sample]:
    """Return what ``torchvision.datasets.folder.make_dataset`` finds: all links are followed.

    Raises:
        SourceError: a class has no image, and ``allow_empty`` is not set.
    """
    is_valid = checked_is_valid(extensions, is_valid_file)
    samples: list[Sample] = []
    empty = []
    for name in sorted(class_to_idx):
        top = os.path.join(os.path.expanduser(directory), name)
        walked = sorted((root, names) for root, _, names in os.walk(top, followlinks=True))
        paths = [os.path.join(root, file) for root, names in walked for file in sorted(names)]
        valid = [path for path in paths if is_valid(path)]
        samples += [(path, class_to_idx[name]) for path in valid]
        empty += [] if valid else [name]
    if empty and not allow_empty:
        raise Layout(directory).without_images(empty, extensions)
    return samples


def _are_numbers(names: Sequence[str]) -> bool:
    return all(_NUMBER.fullmatch(name) for name in names)
