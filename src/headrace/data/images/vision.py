"""What all datasets of images share: a root, transforms, and the form in which images come."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeAlias

from headrace.data.compose import Source
from headrace.data.identity import function_identity
from headrace.data.images.decoder import Form
from headrace.errors import OptionError

Function: TypeAlias = Callable[[Any], Any]
Directory: TypeAlias = str | os.PathLike[str]


class VisionSource(Source):
    """Base of the datasets of images, with torchvision's attributes.

    ``form`` is how images come: as ``decode=`` says, else as Pillow images where there is a
    ``transform``, because that is what torchvision hands to it, and as tensors where there is none.
    """

    def __init__(
        self,
        root: Directory,
        transform: Function | None,
        target_transform: Function | None,
        decode: Form | None,
    ) -> None:
        if decode not in (None, "tensor", "pil"):
            raise OptionError(
                f'decode={decode!r} is unknown. Write decode="tensor" or decode="pil".'
            )
        for name, function in (("transform", transform), ("target_transform", target_transform)):
            if function is not None and not callable(function):
                raise OptionError(
                    f"{name}={function!r:.80} cannot be called. Write {name}= with a function, "
                    f"such as torchvision.transforms.ToTensor()."
                )
        self.root = os.path.expanduser(root) if isinstance(root, str) else root
        self.transform = transform
        self.target_transform = target_transform
        self._decode: Form | None = decode

    @property
    def form(self) -> Form:
        """How images come: "tensor" or "pil"."""
        return self._decode or ("tensor" if self.transform is None else "pil")

    def _transformed(self, image: Any, target: Any) -> tuple[Any, Any]:
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            target = self.target_transform(target)
        return image, target

    def __len__(self) -> int:
        """Return the number of images."""
        raise NotImplementedError

    def _identity(self) -> str:
        functions = map(function_identity, (self.transform, self.target_transform))
        return f"{os.path.abspath(self.root)} {self.extra_repr()} {self.form} {[*functions]}"

    def extra_repr(self) -> str:
        """Return further lines for ``repr``."""
        return ""

    def __repr__(self) -> str:
        lines = [f"Number of datapoints: {len(self)}", f"Root location: {self.root}"]
        lines += self.extra_repr().splitlines()
        if self.transform is not None or self.target_transform is not None:
            described = [
                *_described("Transform: ", self.transform),
                *_described("Target transform: ", self.target_transform),
            ]
            lines.append("\n".join(["StandardTransform", *described]))
        return "\n    ".join([f"Dataset {type(self).__name__}", *lines])


def _described(head: str, transform: Function | None) -> list[str]:
    if transform is None:
        return []
    first, *more = repr(transform).splitlines()
    return [head + first, *(" " * len(head) + line for line in more)]
