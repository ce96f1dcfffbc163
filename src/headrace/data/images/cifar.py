"""CIFAR-10 and CIFAR-100: the Python version that torchvision downloads, or the binary one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from headrace.data.images.decode import Pixels
from headrace.data.images.decoder import Form
from headrace.data.images.loaded import LoadedImages
from headrace.data.images.unpickle import read_pickle
from headrace.data.images.vision import Directory, Function
from headrace.errors import SourceError

T = TypeVar("T")

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """The files of one version of CIFAR, and what the labels are called in it."""

    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    key: str = ""
    names_key: str = ""
    label_bytes: int = 1  # before each image of the binary version; the last one counts


class CIFAR10(LoadedImages):
    """60,000 small photographs of 10 classes, from ``root/cifar-10-batches-py`` (or ``-bin``).

    A sample is ``(image, class number)``, the image a uint8 tensor of shape (3, 32, 32); where
    there is a ``transform``, it is handed a Pillow image as torchvision hands it, unless ``decode``
    says otherwise. ``data`` is an array (samples, 32, 32, 3), ``targets`` a list. Without
    transforms, batches are gathered.

    Args:
        root: the directory in which the files were unpacked.
        train: the training or the test part.
        transform: called with the image.
        target_transform: called with the class number.
        download: accepted as in torchvision; the files have to be there.
        decode: "tensor" or "pil": what images are, with or without a transform.

    The Python version consists of pickles. They are read by an interpreter that knows arrays of
    uint8 and plain values, so that a file from anywhere can do no harm.

    Raises:
        SourceError: a file is missing, is damaged, or holds anything else.
    """

    base_folder = "cifar-10-batches-py"
    _pickled = Layout(
        base_folder,
        tuple(f"data_batch_{n}" for n in range(1, 6)),
        ("test_batch",),
        "batches.meta",
        "labels",
        "label_names",
    )
    _binary = Layout(
        "cifar-10-batches-bin",
        tuple(f"data_batch_{n}.bin" for n in range(1, 6)),
        ("test_batch.bin",),
        "batches.meta.txt",
    )
    _data: Pixels
    _targets: list[int]

    def __init__(
        self,
        root: Directory,
        train: bool = True,
        transform: Function | None = None,
        target_transform: Function | None = None,
        download: bool = False,  # noqa: ARG002
        *,
        decode: Form | None = None,
    ) -> None:
        super().__init__(root, train, transform, target_transform, decode)

    def _load(self) -> tuple[Pixels, list[int]]:
        layout, folder = self._layout()
        pickled = layout is self._pickled
        read_names = _pickled_names if pickled else _text_names
        self.classes = read_names(_file(folder, layout.names), layout)
        read = _read_pickled if pickled else _read_binary
        parts = [
            read(_file(folder, name), layout, len(self.classes))
            for name in (layout.train if self.train else layout.test)
        ]
        planes = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
        targets = [label for _, labels in parts for label in labels]
        return planes.transpose(0, 2, 3, 1), targets

    def _layout(self) -> tuple[Layout, str]:
        for layout in (self._pickled, self._binary):
            folder = os.path.join(self.root, layout.folder)
            if os.path.isdir(folder):
                return layout, folder
        raise SourceError(
            f"there is no {self._pickled.folder} or {self._binary.folder} in {self.root}. Unpack "
            f"the download there, or fetch it with torchvision: "
            f"torchvision.datasets.{type(self).__name__}({os.fspath(self.root)!r}, download=True)."
        )

    def _planes(self) -> Any:
        return self._data.transpose(0, 3, 1, 2)

    def _pixels(self, index: int) -> Any:
        return self._data[index]


class CIFAR100(CIFAR10):
    """Of 100 classes, from ``root/cifar-100-python`` (or ``-binary``); else as :class:`CIFAR10`."""

    base_folder = "cifar-100-python"
    _pickled = Layout(base_folder, ("train",), ("test",), "meta", "fine_labels", "fine_label_names")
    _binary = Layout(
        "cifar-100-binary", ("train.bin",), ("test.bin",), "fine_label_names.txt", label_bytes=2
    )


def _file(folder: str, name: str) -> str:
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        raise SourceError(f"there is no {name} in {folder}. Unpack the download again.")
    return path


def _read_pickled(path: str, layout: Layout, classes: int) -> tuple[Pixels, list[int]]:
    content = read_pickle(path)
    pixels: Any = content.get("data")
    labels = _list_of(int, content.get(layout.key))
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise SourceError(f"{path}: 'data' is no array (samples, {_PIXELS}). {_AGAIN}")
    if labels is None or len(labels) != len(pixels):
        raise SourceError(f"{path}: {layout.key!r} is no list of {len(pixels):,} numbers. {_AGAIN}")
    _check_labels(path, min(labels), max(labels), classes)
    return pixels, labels


def _read_binary(path: str, layout: Layout, classes: int) -> tuple[Pixels, list[int]]:
    record = layout.label_bytes + _PIXELS
    raw = np.fromfile(path, np.uint8)
    if len(raw) == 0 or len(raw) % record:
        raise SourceError(
            f"{path} has {len(raw):,} bytes, which are not whole records of {record}. {_AGAIN}"
        )
    records = raw.reshape(-1, record)
    labels = records[:, layout.label_bytes - 1]
    _check_labels(path, int(labels.min()), int(labels.max()), classes)
    return records[:, layout.label_bytes :], labels.tolist()


def _list_of(kind: type[T], values: Any) -> list[T] | None:
    """Return ``values`` if it is a list of one plain type."""
    fits = type(values) is list and all(type(value) is kind for value in values)
    return values if fits else None


def _check_labels(path: str, low: int, high: int, classes: int) -> None:
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise SourceError(f"{path}: label {wrong} is none of the {classes} classes. {_AGAIN}")


def _pickled_names(path: str, layout: Layout) -> list[str]:
    names = _list_of(str, read_pickle(path).get(layout.names_key))
    if not names:
        raise SourceError(f"{path}: {layout.names_key!r} is no list of names. {_AGAIN}")
    return names


def _text_names(path: str, _: Layout) -> list[str]:
    with open(path, encoding="utf-8", errors="replace") as file:
        names = [line.strip() for line in file if line.strip()]
    if not names:
        raise SourceError(f"{path} has no names of classes in it. {_AGAIN}")
    return names


_AGAIN = "Unpack the download again."
