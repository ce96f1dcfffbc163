"""MNIST and the sets in its format, as torchvision's download leaves them on disk."""

from __future__ import annotations

import os
import string
from typing import Any

import numpy as np
import torch

from headrace.data.images.decoder import Form
from headrace.data.images.idx import read_idx
from headrace.data.images.loaded import LoadedImages
from headrace.data.images.vision import Directory, Function
from headrace.errors import OptionError, SourceError


class MNIST(LoadedImages):
    """The handwritten digits, from ``root/MNIST/raw/train-images-idx3-ubyte`` (or ``.gz``).

    A sample is ``(image, class number)``, the image a uint8 tensor of shape (1, 28, 28); where
    there is a ``transform``, it is handed a Pillow image of mode "L" as torchvision hands it,
    unless ``decode`` says otherwise. ``data`` is a tensor (samples, 28, 28), ``targets`` an int64
    tensor (samples,). Without transforms, batches are gathered.

    Args:
        root: the directory in which there is one named ``MNIST``.
        train: the training or the test part.
        transform: called with the image.
        target_transform: called with the class number.
        download: accepted as in torchvision; the files have to be there.
        decode: "tensor" or "pil": what images are, with or without a transform.

    Raises:
        SourceError: a file is missing, is no IDX file or is damaged.
    """

    classes = [
        *("0 - zero", "1 - one", "2 - two", "3 - three", "4 - four"),
        *("5 - five", "6 - six", "7 - seven", "8 - eight", "9 - nine"),
    ]
    _data: torch.Tensor
    _targets: torch.Tensor

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

    @property
    def raw_folder(self) -> str:
        """Where the files are."""
        return os.path.join(self.root, type(self).__name__, "raw")

    @property
    def _prefix(self) -> str:
        return "train" if self.train else "t10k"

    def _load(self) -> tuple[torch.Tensor, torch.Tensor]:
        images_path, images = self._read(f"{self._prefix}-images-idx3-ubyte", 3)
        labels_path, labels = self._read(f"{self._prefix}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise SourceError(
                f"{images_path} has {len(images):,} images and {labels_path} {len(labels):,} "
                f"labels. Fetch both files again."
            )
        if len(labels) and labels.max() >= len(self.classes):
            raise SourceError(
                f"{labels_path}: label {labels.max()} is none of the {len(self.classes)} classes. "
                f"Fetch the file again, or read it with another class of these sets."
            )
        return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))

    def _read(self, name: str, dimensions: int) -> tuple[str, np.ndarray[Any, np.dtype[Any]]]:
        path = os.path.join(self.raw_folder, name)
        path = next((p for p in (path, f"{path}.gz") if os.path.isfile(p)), "")
        if not path:
            kind = type(self).__name__
            split = f", split={self.split!r}" if isinstance(self, EMNIST) else ""
            raise SourceError(
                f"there is no {name} (or {name}.gz) in {self.raw_folder}. Put it there, or fetch "
                f"it with torchvision: "
                f"torchvision.datasets.{kind}({os.fspath(self.root)!r}{split}, download=True)."
            )
        array = read_idx(path)
        if array.dtype != np.uint8 or array.ndim != dimensions:
            raise SourceError(
                f"{path} holds {array.ndim} dimensions of {array.dtype.name}, not {dimensions} of "
                f"uint8. Fetch the file again."
            )
        return path, array

    def _planes(self) -> Any:
        return self._data.unsqueeze(1)

    def _pixels(self, index: int) -> Any:
        return self._data[index].numpy()


class FashionMNIST(MNIST):
    """Pictures of clothes, from ``root/FashionMNIST/raw``; otherwise as :class:`MNIST`."""

    classes = [
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ]


class KMNIST(MNIST):
    """Old Japanese handwriting, from ``root/KMNIST/raw``; otherwise as :class:`MNIST`."""

    classes = ["o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"]


class EMNIST(MNIST):
    """Handwritten letters and digits, from ``root/EMNIST/raw/emnist-SPLIT-train-images-...``.

    Args:
        root: the directory in which there is one named ``EMNIST``.
        split: "byclass", "bymerge", "balanced", "letters", "digits" or "mnist".
        options: those of :class:`MNIST`.

    Images are transposed in these files, and come as they are there, as in torchvision.
    """

    splits = ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")
    _merged = sorted({*string.digits, *string.ascii_letters} - {*"cijklmopsuvwxyz"})
    classes_split_dict = {
        "byclass": sorted(string.digits + string.ascii_letters),
        "bymerge": _merged,
        "balanced": _merged,
        "letters": ["N/A", *string.ascii_lowercase],
        "digits": list(string.digits),
        "mnist": list(string.digits),
    }

    def __init__(self, root: Directory, split: str, **options: Any) -> None:
        if split not in self.splits:
            raise OptionError(f"split={split!r} is unknown. Write one of {', '.join(self.splits)}.")
        self.split = split
        self.classes = self.classes_split_dict[split]
        super().__init__(root, **options)

    def _identity(self) -> str:
        return f"{super()._identity()} {self.split}"

    @property
    def _prefix(self) -> str:
        return f"emnist-{self.split}-{'train' if self.train else 'test'}"
