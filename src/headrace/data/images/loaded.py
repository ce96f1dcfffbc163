"""Sets of images that are small enough to be in memory as a whole."""

from __future__ import annotations

from typing import Any

import torch

from headrace.data.columns import columns
from headrace.data.gatherer import Gatherer
from headrace.data.images.decode import pillow
from headrace.data.images.decoder import Form
from headrace.data.images.vision import Directory, Function, VisionSource
from headrace.errors import OptionError


class LoadedImages(VisionSource):
    """Base of MNIST and CIFAR: ``data`` and ``targets`` in memory, gathered where they may be.

    Pickling the dataset pickles where its files are. Only when ``data`` or ``targets`` have been
    asked for, and may have been changed, do they travel with it.
    """

    classes: list[str]

    def __init__(
        self,
        root: Directory,
        train: bool,
        transform: Function | None,
        target_transform: Function | None,
        decode: Form | None,
    ) -> None:
        super().__init__(root, transform, target_transform, decode)
        if isinstance(train, str):  # "test" would be true
            raise OptionError(
                f"train={train!r} is no truth value. Write train=True or train=False."
            )
        self.train = train
        self._seen = False  # whether anybody else has had data or targets in hand
        self._data, self._targets = self._load()

    def _load(self) -> tuple[Any, Any]:
        """Return ``data`` and ``targets`` from the files."""
        raise NotImplementedError

    def _planes(self) -> Any:
        """Return ``data`` as (samples, channels, H, W): a tensor or array that shares memory."""
        raise NotImplementedError

    def _pixels(self, index: int) -> Any:
        """Return one image as Pillow takes it: an array (H, W) or (H, W, 3)."""
        raise NotImplementedError

    @property
    def data(self) -> Any:
        """All images, as torchvision has them; may be changed or replaced."""
        self._seen = True
        return self._data

    @data.setter
    def data(self, data: Any) -> None:
        self._seen = True
        self._data = data

    @property
    def targets(self) -> Any:
        """All class numbers, as torchvision has them; may be changed or replaced."""
        self._seen = True
        return self._targets

    @targets.setter
    def targets(self, targets: Any) -> None:
        self._seen = True
        self._targets = targets

    @property
    def class_to_idx(self) -> dict[str, int]:
        """The number of each class."""
        return {name: number for number, name in enumerate(self.classes)}

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return ``(image, class number)``, transformed."""
        target = int(self._targets[index])
        if self.form == "pil":
            return self._transformed(pillow().fromarray(self._pixels(index)), target)
        image = torch.as_tensor(self._planes()[index])
        # A transform that changes its argument must not change the dataset.
        return self._transformed(image.clone() if self.transform else image, target)

    def __gather__(self) -> Gatherer | None:
        """Join the gather protocol, where samples are not transformed one by one."""
        if self.form == "pil" or self.transform or self.target_transform:
            return None
        targets = torch.as_tensor(self._targets)
        known = targets.dtype == torch.int64 and targets.ndim == 1
        return columns((self._planes(), targets)) if known else None

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if not self._seen:
            del state["_data"], state["_targets"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if not self._seen:
            self._data, self._targets = self._load()

    def extra_repr(self) -> str:
        """Return which part this is."""
        return f"Split: {'Train' if self.train else 'Test'}"
