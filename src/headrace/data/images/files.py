"""Directories of images, one for each class, and the compact list of what is in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from headrace.data.shared_list import SharedList
from headrace.errors import OptionError, SampleIndexError, SourceError

Sample: TypeAlias = tuple[str, int]
IsValid: TypeAlias = Callable[[str], bool]
Directory: TypeAlias = str | os.PathLike[str]

IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


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
