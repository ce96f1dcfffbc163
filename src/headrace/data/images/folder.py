"""A directory of images for each class."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch

from headrace.collate.stack import Prestacked
from headrace.data.identity import function_identity
from headrace.data.images.decode import Pixels, fresh
from headrace.data.images.decoder import Colour, Deep, Exif, Form, ImageDecoder, Wording
from headrace.data.images.files import (
    IMG_EXTENSIONS,
    FileTable,
    Order,
    Sample,
    find_classes,
    make_dataset,
    torchvisions_classes,
    torchvisions_dataset,
)
from headrace.data.images.layout import Layout
from headrace.data.images.vision import Directory, Function, VisionSource
from headrace.data.images.walk import IsValid
from headrace.data.progress import Progress
from headrace.errors import OptionError, SourceError, SourceWarning
from headrace.machine import available_cores
from headrace.memory import alloc

_AT_ONCE = 1024  # files whose check is under way
_WORDING = Wording(
    "ImageFolder(..., {})",
    'Replace the file, or write ImageFolder(..., on_error="skip") to leave out all that cannot be '
    "decoded.",
)


class ImageFolder(VisionSource):
    """Images in directories named for their classes: ``root/cat/1.jpg``, ``root/dog/x/2.png``.

    Layout, order of classes and files, and attributes are those of
    ``torchvision.datasets.ImageFolder``. A sample is ``(image, class number)``. The image is a
    uint8 tensor of shape (3, H, W), a view of the decoder's rows (H, W, 3): channels last in
    memory, as the batches (batch, 3, H, W) are that the default collation makes of it. Where there
    is a ``transform``, it is handed a Pillow image as torchvision hands it, unless ``decode`` says
    otherwise.

    Args:
        root: the directory.
        transform: called with the image.
        target_transform: called with the class number.
        loader: called with a path in place of the decoder; what it returns is the image.
        is_valid_file: called with each path; says which files are images. By default their names
            tell, as torchvision's ``IMG_EXTENSIONS`` has them.
        allow_empty: a class may be without images.
        size: height and width to resize to (one number for both), so that images make batches.
            They are stretched to it, as ``v2.Resize((h, w))`` does: bilinear, antialiased. A JPEG
            that is at least twice as large is decoded at 1/2, 1/4 or 1/8, which is quicker.
        decode: "tensor" or "pil": what images are, with or without a transform.
        on_error: "raise", or "skip": every file is decoded once now, by as many threads as there
            are cores, and those that cannot be are left out, listed in ``skipped`` as pairs
            (path, reason), with a warning.
        exif: "apply" turns images as their EXIF orientation says, "ignore" leaves them lying.
        background: the colour under images that are transparent in places, or "ignore".
        deep: images of more than 8 bits a channel: "keep" their values, "scale", or "clip".
        frame: which image of several in a file. These four as in :class:`ImageDecoder`.
        class_order: names of classes that are all numbers are sorted as such ("number"), or as
            torchvision sorts them: "10" before "2" ("text"). None sorts them as numbers, with a
            warning where the two differ.
        like_torchvision: the files and classes of torchvision, and its pixels, without a word:
            hidden and system's directories, links followed again and again, names sorted as text,
            deep images clipped, orientation and transparency dropped; where no other option says
            otherwise.

    Hidden files and directories, and those of systems (``.ipynb_checkpoints``, ``__MACOSX``,
    ``._1.jpg``), are left out, a file that several paths lead to comes once, and a tree that looks
    like another one (``train`` and ``val`` as classes) is warned of.

    Images are RGB whatever the file holds, as Pillow's ``convert("RGB")`` makes them, but for deep
    ones. Paths and classes are in a :class:`SharedList`, which workers read without copying it,
    until ``samples`` and ``targets`` are asked for, which are lists.

    Raises:
        SourceError: there is no class, or a class without an image; when a sample is asked for: a
            file that cannot be read or decoded, or one larger than Pillow's limit.
        MissingExtraError: when a sample is asked for, without ``pip install "headrace[images]"``.
    """

    def __init__(  # noqa: PLR0917 - torchvision's
        self,
        root: Directory,
        transform: Function | None = None,
        target_transform: Function | None = None,
        loader: Callable[[str], Any] | None = None,
        is_valid_file: IsValid | None = None,
        allow_empty: bool = False,
        *,
        size: int | tuple[int, int] | None = None,
        decode: Form | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        exif: Exif | None = None,
        background: Colour | Literal["ignore"] | None = None,
        deep: Deep | None = None,
        frame: int | None = None,
        class_order: Order | None = None,
        like_torchvision: bool = False,
    ) -> None:
        super().__init__(root, transform, target_transform, decode)
        asked = (size, decode, exif, background, deep, frame)
        if loader is not None and any(option is not None for option in asked):
            raise OptionError(
                "loader= decides what images are: size=, decode=, exif=, background=, deep= and "
                "frame= go without it."
            )
        _check_options(loader, is_valid_file, class_order, on_error)
        if like_torchvision:
            exif, deep, frame = exif or "ignore", deep or "clip", frame or 0
            background = "ignore" if background is None else background  # 0 is black
        self._decoder = ImageDecoder(
            size, self.form, exif, background, deep, frame, wording=_WORDING
        )
        self.size = self._decoder.size
        self.like_torchvision = like_torchvision
        self.class_order = class_order
        self._loader = loader
        self._sizes_differ = False
        self.extensions = IMG_EXTENSIONS if is_valid_file is None else None
        self._layout: Layout | None = Layout(self.root)
        self.classes, self.class_to_idx = self.find_classes(self.root)
        found = self._found(is_valid_file, allow_empty)
        self.skipped: list[tuple[str, str]] = []
        if on_error == "skip":
            found = self._without_faults(found)
        self._files: Sequence[Sample] = FileTable(found)
        self._targets: list[int] | None = None

    def find_classes(self, directory: Directory) -> tuple[list[str], dict[str, int]]:
        """Return the classes and the number of each; a subclass may find them another way."""
        if self.like_torchvision:
            return torchvisions_classes(directory)
        return find_classes(directory, self.class_order, self._layout)

    @staticmethod
    def make_dataset(
        directory: Directory,
        class_to_idx: dict[str, int],
        extensions: str | tuple[str, ...] | None = None,
        is_valid_file: IsValid | None = None,
        allow_empty: bool = False,
    ) -> list[Sample]:
        """Return the pairs (path, class number); a subclass may find them another way."""
        return make_dataset(directory, class_to_idx, extensions, is_valid_file, allow_empty)

    def _found(self, is_valid_file: IsValid | None, allow_empty: bool) -> list[Sample]:
        """Return the samples, with one word on all that is odd about the tree."""
        asked = (self.root, self.class_to_idx, self.extensions, is_valid_file, allow_empty)
        layout, self._layout = self._layout, None  # of now: later calls look for themselves
        assert layout is not None
        if type(self).make_dataset is not ImageFolder.make_dataset:
            found = self.make_dataset(*asked)
        elif self.like_torchvision:
            found = torchvisions_dataset(*asked)
        else:
            found = make_dataset(*asked, layout)
        layout.tell()
        return found

    @property
    def samples(self) -> list[Sample]:
        """The pairs (path, class number): a list that may be changed."""
        if not isinstance(self._files, list):
            self._files = list(self._files)
        return self._files

    @samples.setter
    def samples(self, samples: list[Sample]) -> None:
        self._files = samples

    @property
    def imgs(self) -> list[Sample]:
        """The same as ``samples``."""
        return self.samples

    @imgs.setter
    def imgs(self, samples: list[Sample]) -> None:
        self.samples = samples

    @property
    def targets(self) -> list[int]:
        """The class number of each image."""
        if self._targets is None:
            files = self._files
            if isinstance(files, FileTable):
                self._targets = list(files.targets)
            else:
                self._targets = [target for _, target in files]
        return self._targets

    @targets.setter
    def targets(self, targets: list[int]) -> None:
        self._targets = targets

    @property
    def loader(self) -> Callable[[str], Any]:
        """What makes an image of a path."""
        return self._loader or self._decode_as(self.form)

    @loader.setter
    def loader(self, loader: Callable[[str], Any]) -> None:
        self._loader = loader

    def _decode_as(self, form: Form) -> ImageDecoder:
        """Return the decoder, which a transform set since may have given another form."""
        if self._decoder.decode != form:
            self._decoder = replace(self._decoder, decode=form)
        return self._decoder

    def _identity(self) -> str:
        return f"{super()._identity()} {self._decoder} {function_identity(self._loader)}"

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return ``(image, class number)``, transformed."""
        path, target = self._files[index]
        return self._transformed(self.loader(path), target)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """Return the samples at ``indices``; images of one size are decoded into one block."""
        if len(indices) == 0 or not self._makes_blocks():
            return [self[index] for index in indices]
        block = _Block(len(indices))
        files = [self._files[index] for index in indices]
        decoder = self._decode_as("tensor")
        pixels = [
            decoder.pixels(decoder.read(path), path, partial(block.place, number))
            for number, (path, _) in enumerate(files)
        ]
        targets = [target for _, target in files]
        if self.target_transform is not None:
            targets = [self.target_transform(target) for target in targets]
        batch = block.batch()
        if batch is not None:  # one call for all of its rows
            return Prestacked(list(zip(batch.unbind(), targets, strict=True)), {0: batch})
        self._sizes_differ = True  # from now on no block is begun that would not be filled
        images = [torch.from_numpy(rows).permute(2, 0, 1) for rows in pixels]
        return list(zip(images, targets, strict=True))

    def _makes_blocks(self) -> bool:
        overridden = type(self).__getitem__ is not ImageFolder.__getitem__
        plain = self.form == "tensor" and self.transform is None and self._loader is None
        deep = self._decoder.deep == "keep"  # what has no place in a block of uint8
        return plain and not overridden and not self._sizes_differ and not deep

    def _without_faults(self, found: list[Sample]) -> list[Sample]:
        good: list[Sample] = []
        threads = max(1, math.ceil(available_cores()))
        with (
            ThreadPoolExecutor(threads) as pool,
            Progress(f"checking the images in {self.root}", len(found), "files") as progress,
        ):
            for start in range(0, len(found), _AT_ONCE):
                some = found[start : start + _AT_ONCE]
                for sample, fault in zip(
                    some, pool.map(self._decoder.find_fault, [p for p, _ in some]), strict=True
                ):
                    if fault:
                        self.skipped.append((sample[0], fault))
                    else:
                        good.append(sample)
                    progress.advance()
        if self.skipped and not good:
            raise SourceError(
                f"none of the {len(found)} images in {self.root} can be decoded. The first one: "
                f"{self.skipped[0][1]}"
            )
        if self.skipped:
            warnings.warn(
                f"{len(self.skipped)} of {len(found)} images in {self.root} are left out: they "
                f"cannot be decoded, see .skipped",
                SourceWarning,
                stacklevel=3,
            )
        return good


def _check_options(loader: Any, is_valid_file: Any, class_order: Any, on_error: Any) -> None:
    for name, function in (("loader", loader), ("is_valid_file", is_valid_file)):
        if function is not None and not callable(function):
            raise OptionError(f"{name}={function!r:.80} cannot be called. Write a function.")
    if class_order not in (None, "number", "text"):
        raise OptionError(
            f'class_order={class_order!r} is unknown. Write class_order="number" or '
            f'class_order="text".'
        )
    if on_error not in ("raise", "skip"):
        raise OptionError(
            f'on_error={on_error!r} is unknown. Write on_error="raise" or on_error="skip".'
        )


class _Block:
    """Memory for the images of a batch, each as large as the first of them is."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._block: torch.Tensor | None = None
        self._rows: Any = None
        self._placed: set[int] = set()

    def place(self, number: int, height: int, width: int) -> Pixels:
        """Return where to decode image ``number``: in the block, if it is of the first's size."""
        if self._block is None:
            self._block = alloc((self._count, height, width, 3), torch.uint8)
            self._rows = self._block.numpy()
        if self._rows.shape[1:3] != (height, width):
            self._placed.discard(number)
            return fresh(height, width)
        self._placed.add(number)
        row: Pixels = self._rows[number]
        return row

    def batch(self) -> torch.Tensor | None:
        """Return the block as a batch (batch, 3, H, W), None if an image is not in it."""
        if self._block is None or len(self._placed) < self._count:
            return None
        return self._block.permute(0, 3, 1, 2)
