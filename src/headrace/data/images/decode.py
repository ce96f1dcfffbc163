"""From an image file to rows of pixels: JPEG by libjpeg-turbo, everything else by Pillow.

libjpeg-turbo (simplejpeg) writes straight into the memory that the caller names, without the
interpreter's lock. Whatever it does not take goes to Pillow, which then has the last word: CMYK,
files with warnings in them, files that are larger than Pillow's limit on decompression bombs.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
import torch

from headrace.errors import OptionError, SourceError
from headrace.extras import import_extra

if TYPE_CHECKING:
    import PIL.Image

R = TypeVar("R")
Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
Place: TypeAlias = Callable[[int, int], Pixels]
Form: TypeAlias = Literal["tensor", "pil"]

_JPEG = b"\xff\xd8\xff"
_SCALES = (8, 4, 2, 1)  # those whose inverse transforms libjpeg-turbo has vector code for
_TURBO_COLOURS = ("YCbCr", "RGB", "Gray")
_THIS_PROCESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # not the file's fault


@dataclass(frozen=True)
class Decoder:
    """Reads an image file as RGB: a tensor (3, H, W) on rows (H, W, 3), or a Pillow image.

    ``size`` is ``(height, width)`` to resize to, None to leave images as they are.
    """

    size: tuple[int, int] | None
    form: Form

    def __call__(self, path: str) -> Any:
        """Return the image in ``path``.

        Raises:
            SourceError: it cannot be read or decoded.
        """
        pixels = decode(path, self.size)
        if self.form == "pil":
            return pillow().fromarray(pixels)
        return torch.from_numpy(pixels).permute(2, 0, 1)


def checked_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """Return ``size=`` as (height, width)."""
    pair = (size, size) if isinstance(size, int) else size
    if pair is None:
        return None
    whole = isinstance(pair, (tuple, list)) and len(pair) == 2
    if not whole or not all(isinstance(n, int) and n > 0 for n in pair):
        raise OptionError(f"size={size!r} is no height and width in pixels. Write size=(224, 224).")
    return pair[0], pair[1]


def fresh(height: int, width: int) -> Pixels:
    """Return uninitialised rows of pixels."""
    return np.empty((height, width, 3), np.uint8)


def decode(path: str, size: tuple[int, int] | None = None, place: Place = fresh) -> Pixels:
    """Return an image file's pixels as RGB, ``(H, W, 3)``, written to ``place(H, W)``.

    With ``size``, a JPEG is decoded at the smallest of 1/8, 1/4, 1/2 and 1/1 at which it is no
    smaller than ``size`` in either direction; then the image is resized to ``size`` as
    ``torchvision.transforms.v2.Resize(size)`` resizes a tensor: bilinear, antialiased.

    Raises:
        SourceError: the file cannot be read or decoded.
    """
    data = _read(path)
    if data.startswith(_JPEG):
        pixels = _turbo(data, size, place)
        if pixels is not None:
            return pixels

    def finish(image: PIL.Image.Image) -> Pixels:
        return _fit(np.array(image.convert("RGB")), size, place)

    return _with_pillow(path, data, finish)


def find_fault(path: str) -> str:
    """Return why an image file cannot be decoded, "" where it can; all of it is looked at."""
    try:
        data = _read(path)
        if data.startswith(_JPEG) and _turbo(data, (1, 1), fresh) is not None:
            return ""  # at 1/8, which reads every bit of the file
        _with_pillow(path, data, lambda image: image.convert("RGB"))
    except SourceError as error:
        return str(error)
    return ""


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.read()
    except OSError as error:
        if error.errno in _THIS_PROCESS:
            raise
        raise SourceError(f"{path} cannot be read: {error.strerror}. {_REMEDY}") from error
    if not data:
        raise SourceError(f"{path} is empty. {_REMEDY}")
    return data


_REMEDY = (
    'Replace the file, or write ImageFolder(..., on_error="skip") to leave out all that cannot '
    "be decoded."
)


def _turbo(data: bytes, size: tuple[int, int] | None, place: Place) -> Pixels | None:
    """Decode a JPEG, or return None for what Pillow should have a look at."""
    turbo = _simplejpeg()
    try:
        height, width, colours, _ = turbo.decode_jpeg_header(data)
        if colours not in _TURBO_COLOURS or _may_be_a_bomb(height, width):
            return None
        scale = 1 if size is None else _scale(height, width, size)
        rows, columns = -(-height // scale), -(-width // scale)
        least = (0, 0) if scale == 1 else (rows, columns)
        direct = size is None or (rows, columns) == size
        out = place(rows, columns) if direct else fresh(rows, columns)
        # buffer= takes anything that is large enough, so its shape had to be known before.
        turbo.decode_jpeg(data, min_height=least[0], min_width=least[1], buffer=out)
    except ValueError:
        return None
    return out if direct else _fit(out, size, place)


def _scale(height: int, width: int, size: tuple[int, int]) -> int:
    """Return the largest divisor at which a JPEG is no smaller than ``size``."""
    fits = (s for s in _SCALES if -(-height // s) >= size[0] and -(-width // s) >= size[1])
    return next(fits, 1)


def _may_be_a_bomb(height: int, width: int) -> bool:
    limit = pillow().MAX_IMAGE_PIXELS  # above it Pillow warns, above twice as much it refuses
    return limit is not None and height * width > limit


def _with_pillow(path: str, data: bytes, use: Callable[[PIL.Image.Image], R]) -> R:
    """Open an image with Pillow and use it, with an error that names the file."""
    try:
        with pillow().open(io.BytesIO(data)) as image:
            return use(image)
    except MemoryError:
        raise
    except Exception as error:  # its decoders raise whatever a broken file makes them
        what = str(error).rstrip(".") or type(error).__name__
        if isinstance(error, pillow().UnidentifiedImageError):
            what = "it is of no format that Pillow knows"
        raise SourceError(f"{path} cannot be decoded: {what}. {_REMEDY}") from error


def _fit(pixels: Pixels, size: tuple[int, int] | None, place: Place) -> Pixels:
    """Return pixels in their place, resized where they are not of ``size``."""
    out = place(*(size or pixels.shape[:2]))
    if pixels.shape == out.shape:
        out[...] = pixels
        return out
    planes = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    resized = torch.nn.functional.interpolate(
        planes, size=out.shape[:2], mode="bilinear", antialias=True
    )
    out[...] = resized[0].permute(1, 2, 0).numpy()
    return out


@cache
def _simplejpeg() -> Any:
    return import_extra("simplejpeg", "images")


@cache
def pillow() -> Any:
    """Return the module ``PIL.Image``."""
    return import_extra("PIL.Image", "images")
