"""Directories of images, one for each class, and the compact list of what is in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from headrace.errors import OptionError, SampleIndexError, SourceError

Sample: TypeAlias = tuple[str, int]
IsValid: TypeAlias = Callable[[str], bool]
Directory: TypeAlias = str | os.PathLike[str]

IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class FileTable(Sequence[Sample]):
    """Paths and classes of many files in a few arrays: 12 bytes a file and its name.

    A list of a million tuples would be 200 MB that every forked worker copies bit by bit (to look
    at a Python object is to write its reference count), and that is pickled for one that is
    spawned.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        folders: dict[str, int] = {}
        names: list[bytes] = []
        folder_of = np.empty(len(samples), np.int32)
        for number, (path, _) in enumerate(samples):
            before, separator, name = path.rpartition(os.sep)
            folder_of[number] = folders.setdefault(before + separator, len(folders))
            names.append(os.fsencode(name))
        self._folders = list(folders)
        self._folder_of = folder_of
        self._names = b"".join(names)
        self._ends = np.cumsum([0, *map(len, names)], dtype=np.int64)
        self.classes = np.array([target for _, target in samples], np.int32)

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise SampleIndexError(
                f"index {index} is out of range for {len(self)} images. "
                f"Write an index from 0 to {len(self) - 1}."
            )
        name = self._names[self._ends[number] : self._ends[number + 1]]
        folder = self._folders[self._folder_of[number]]
        return folder + os.fsdecode(name), int(self.classes[number])

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))


def find_classes(directory: Directory) -> tuple[list[str], dict[str, int]]:
    """Return the names of the directories in ``directory``, sorted, and the number of each.

    Raises:
        SourceError: there are none.
    """
    with os.scandir(directory) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir())
    if not classes:
        raise SourceError(
            f"{os.fspath(directory)} has no directories in it. ImageFolder needs one for each "
            f"class, with images in it: {os.path.join(os.fspath(directory), 'cat', '1.jpg')}."
        )
    return classes, {name: number for number, name in enumerate(classes)}


def make_dataset(
    directory: Directory,
    class_to_idx: dict[str, int],
    extensions: str | tuple[str, ...] | None = None,
    is_valid_file: IsValid | None = None,
    allow_empty: bool = False,
) -> list[Sample]:
    """Return the path and class of each image, in torchvision's order.

    That is by class, then by directory, then by name; links are followed.

    Raises:
        SourceError: a class has no image, and ``allow_empty`` is not set.
    """
    if (extensions is None) == (is_valid_file is None):
        raise OptionError("give one of extensions= and is_valid_file=, not both or none of them.")
    if extensions is not None:
        is_valid_file = _Ending(extensions)
    assert is_valid_file is not None
    samples: list[Sample] = []
    empty: list[str] = []
    for name in sorted(class_to_idx):
        found = _files_in(os.path.join(os.path.expanduser(directory), name), is_valid_file)
        if not found:
            empty.append(name)
        samples += [(path, class_to_idx[name]) for path in found]
    if empty and not allow_empty:
        endings = f" whose name ends in {extensions}" if extensions is not None else ""
        raise SourceError(
            f"{os.fspath(directory)}: there is no image{endings} in {', '.join(empty)}. Put some "
            f"there, remove the directory, or write ImageFolder(..., allow_empty=True)."
        )
    return samples


class _Ending:
    def __init__(self, endings: str | tuple[str, ...]) -> None:
        self._endings = endings if isinstance(endings, str) else tuple(endings)

    def __call__(self, path: str) -> bool:
        return path.lower().endswith(self._endings)


def _files_in(directory: str, is_valid_file: IsValid) -> list[str]:
    walked = sorted((root, names) for root, _, names in os.walk(directory, followlinks=True))
    paths = [os.path.join(root, name) for root, names in walked for name in sorted(names)]
    return [path for path in paths if is_valid_file(path)]
