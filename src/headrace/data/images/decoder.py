"""What becomes of an image that is more, or other, than RGB of 8 bits: the options, and a word."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch

from headrace.data.gatherer import Array
from headrace.data.images import depth, orientation
from headrace.data.images.decode import (
    Pixels,
    Place,
    by_pillow,
    by_turbo,
    fit,
    fresh,
    is_jpeg,
    pillow,
    resized,
)
from headrace.errors import OptionError, SourceError, SourceWarning
from headrace.notices import warn_user

if TYPE_CHECKING:
    import PIL.Image

Form: TypeAlias = Literal["tensor", "pil"]
Exif: TypeAlias = Literal["apply", "ignore"]
Deep: TypeAlias = Literal["keep", "scale", "clip"]
Colour: TypeAlias = int | tuple[int, int, int]

_THIS_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # not the file's fault
_OPAQUE = 255


@dataclass(frozen=True)
class Wording:
    """How to write an option of a decoder where it is used, and what to do about broken files."""

    option: str = "ImageDecoder({})"
    broken: str = "Replace it."


@dataclass(frozen=True)
class ImageDecoder:
    """Makes a uint8 tensor (3, H, W) of an image file's path, or of its bytes.

    Args:
        size: height and width to resize to (one number for both): bilinear, antialiased. A JPEG
            that is at least twice as large is decoded at 1/2, 1/4 or 1/8, which is quicker.
        decode: "tensor", or "pil" for Pillow images.
        exif: "apply" turns an image as its EXIF orientation says; "ignore" leaves it lying, as
            torchvision does. None ignores it too, with one warning. (Pillow itself turns TIFFs.)
        background: the colour under an image that is transparent in places: a number or
            ``(red, green, blue)``, 0 to 255. "ignore" drops the transparency, as torchvision does,
            so that the colours which it hides appear. None drops it too, with one warning.
        deep: what becomes of more than 8 bits a channel. "keep": a tensor (1, H, W) of uint16,
            or float32, or int32, as the file holds; "scale": the upper 8 of 16 bits; "clip": what
            torchvision makes of it, 255 for all that is larger. None is an error.
        frame: which image of several in a file (GIF, WebP, APNG, TIFF). None is the first, with one
            warning.

    Raises:
        SourceError: bytes that cannot be decoded, or that an option is needed for.
    """

    size: int | tuple[int, int] | None = None
    decode: Form = "tensor"
    exif: Exif | None = None
    background: Colour | Literal["ignore"] | None = None
    deep: Deep | None = None
    frame: int | None = None
    wording: Wording = field(default=Wording(), repr=False, compare=False, kw_only=True)
    _said: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", checked_size(self.size))
        _check("decode", self.decode, ("tensor", "pil"))
        _check("exif", self.exif, ("apply", "ignore", None))
        _check("deep", self.deep, ("keep", "scale", "clip", None))
        object.__setattr__(self, "background", _checked_background(self.background))
        if self.frame is not None and not (type(self.frame) is int and self.frame >= 0):
            raise OptionError(f"frame={self.frame!r} is no number of an image. Write frame=0.")

    def __call__(self, source: str | os.PathLike[str] | bytes, where: str = "") -> Any:
        """Return the image in a file, or in bytes; ``where`` they are from is for errors."""
        data = source if isinstance(source, bytes) else self.read(os.fspath(source))
        pixels = self.pixels(data, where or ("" if isinstance(source, bytes) else str(source)))
        if self.decode == "pil":
            return pillow().fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def pixels(self, data: bytes, where: str, place: Place = fresh) -> Array:
        """Return an image's pixels, ``(H, W, 3)``, written to ``place(H, W)``; or deep ones.

        Raises:
            SourceError: they cannot be decoded, or an option is needed for them.
        """
        where = where or "the image"
        size = self._size
        if is_jpeg(data):
            found = self._of_jpeg(data, where, place)
            if found is not None:
                return found

        def finish(image: PIL.Image.Image) -> Array:
            loaded, way_up = self._load(image, where)
            pixels = orientation.turned(depth.rows_of(loaded), way_up)
            if pixels.dtype == np.uint8:
                return fit(pixels, size, place)
            wanted = size or pixels.shape[:2]
            return np.array(pixels if pixels.shape[:2] == wanted else resized(pixels, wanted))

        return by_pillow(data, finish, where, self.wording.broken)

    def read(self, path: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            SourceError: it is empty, or cannot be read.
        """
        try:
            with open(path, "rb", buffering=0) as file:
                data = file.read()
        except OSError as error:
            if error.errno in _THIS_PROCESS:
                raise
            raise SourceError(
                f"{path} cannot be read: {error.strerror}. {self.wording.broken}"
            ) from error
        if not data:
            raise SourceError(f"{path} is empty. {self.wording.broken}")
        return data

    def find_fault(self, path: str) -> str:
        """Return why a file cannot be decoded, "" where it can; all of it is looked at."""
        try:
            data = self.read(path)
            if is_jpeg(data) and by_turbo(data, (1, 1), fresh) is not None:
                return ""  # at 1/8, which reads every bit of the file
            by_pillow(data, lambda image: self._load(image, path), path, self.wording.broken)
        except SourceError as error:
            return str(error)
        return ""

    @property
    def _size(self) -> tuple[int, int] | None:
        return checked_size(self.size)

    def _of_jpeg(self, data: bytes, where: str, place: Place) -> Pixels | None:
        size, way_up = self._size, self._way_up(orientation.of_jpeg, data, where)
        if way_up == orientation.UPRIGHT:
            return by_turbo(data, size, place)
        lying = size[::-1] if size and orientation.swaps_sides(way_up) else size
        pixels = by_turbo(data, lying, fresh)
        return None if pixels is None else fit(orientation.turned(pixels, way_up), size, place)

    def _way_up(self, find: Callable[[bytes], int], data: bytes, where: str) -> int:
        """Return how an image is to be turned, with a word where it is left lying."""
        if self.exif == "ignore":
            return orientation.UPRIGHT
        way_up = find(data)
        if self.exif == "apply" or way_up == orientation.UPRIGHT:
            return way_up
        self._say(
            f"EXIF says that {where} is not upright (orientation {way_up}), which is ignored, as "
            f"by torchvision.",
            'exif="apply"',
            "to turn such images",
            'exif="ignore"',
        )
        return orientation.UPRIGHT

    def _load(self, image: PIL.Image.Image, where: str) -> tuple[PIL.Image.Image, int]:
        """Return what is in an open file as RGB, or deep, and how it is to be turned."""
        self._seek(image, where)
        found = depth.of(image)  # Pillow forgets what the file had once it is loaded
        image.load()
        way_up = self._way_up(orientation.of_exif, orientation.exif_of(image.info), where)
        if found is not None and self.deep != "clip":
            image = depth.kept(image, found, self.deep, where, self.wording.option)
            if depth.is_deep(image):
                return image, way_up
        return self._rgb(image, where), way_up

    def _seek(self, image: PIL.Image.Image, where: str) -> None:
        # A photograph with a preview or a depth map behind it (MPO) is a photograph.
        several = image.format != "MPO" and getattr(image, "is_animated", False)
        if self.frame is not None:
            if self.frame and not several:
                raise EOFError(f"it has one image, and frame={self.frame} is asked for")
            if several:
                image.seek(self.frame)
        elif several:
            count = getattr(image, "n_frames", "several")
            self._say(
                f"{where} has {count} images in it, of which the first is read.",
                "frame=1",
                "for another",
                "frame=0",
            )

    def _rgb(self, image: PIL.Image.Image, where: str) -> PIL.Image.Image:
        """Return an image as RGB, on the background where it is transparent."""
        if depth.is_deep(image) or not image.has_transparency_data:
            return image.convert("RGB")
        overlaid = image.convert("RGBA")
        if self.background is None or self.background == "ignore":
            lowest: Any = overlaid.getchannel("A").getextrema()[0]
            if self.background is None and lowest < _OPAQUE:
                self._say(
                    f"{where} is transparent in places, which is dropped, as by torchvision: "
                    f"colours appear that it hides.",
                    "background=(255, 255, 255)",
                    "to put it on white",
                    'background="ignore"',
                )
            return overlaid.convert("RGB")  # as it comes, a palette would have Pillow warn too
        under = pillow().new("RGBA", overlaid.size, (*_rgb_of(self.background), _OPAQUE))
        flat: PIL.Image.Image = pillow().alpha_composite(under, overlaid)
        return flat.convert("RGB")

    def _say(self, what: str, option: str, purpose: str, silence: str) -> None:
        """Warn of the first of each kind, not of all that come after it."""
        if silence in self._said:
            return
        self._said.add(silence)
        write = self.wording.option.format
        warn_user(
            f"{what} Write {write(option)} {purpose}, {write(silence)} to leave it so. There may "
            f"be more of them.",
            SourceWarning,
        )


def checked_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return ``size=`` as (height, width)."""
    pair = (size, size) if isinstance(size, int) else size
    if pair is None:
        return None
    whole = isinstance(pair, (tuple, list)) and len(pair) == 2
    if not whole or not all(isinstance(n, int) and n > 0 for n in pair):
        raise OptionError(f"size={size!r} is no height and width in pixels. Write size=(224, 224).")
    return pair[0], pair[1]


def _check(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        lines = " or ".join(f'{name}="{one}"' for one in known if one is not None)
        raise OptionError(f"{name}={value!r} is unknown. Write {lines}.")


def _checked_background(background: Any) -> Any:
    if background is None or background == "ignore":
        return background
    colour = tuple(background) if isinstance(background, (tuple, list)) else (background,)
    if len(colour) not in (1, 3) or not all(type(n) is int and 0 <= n <= 255 for n in colour):
        raise OptionError(
            f"background={background!r} is no colour. Write background=(255, 255, 255) for white, "
            f'or background="ignore".'
        )
    return colour if len(colour) == 3 else colour[0]


def _rgb_of(colour: Any) -> tuple[int, int, int]:
    return (colour, colour, colour) if isinstance(colour, int) else colour
