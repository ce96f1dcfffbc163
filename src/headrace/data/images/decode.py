"""From the bytes of an image to rows of pixels: JPEG by libjpeg-turbo, everything else by Pillow.

libjpeg-turbo (simplejpeg) writes straight into the memory that the caller names, without the
interpreter's lock. Whatever it does not take goes to Pillow, which then has the last word: CMYK,
files with warnings in them, files that are larger than Pillow's limit on decompression bombs.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import torch

from headrace.data.gatherer import Array
from headrace.errors import SourceError
from headrace.extras import import_extra

if TYPE_CHECKING:
    import PIL.Image

R = TypeVar("R")
Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
Place: TypeAlias = Callable[[int, int], Pixels]
Size: TypeAlias = tuple[int, int]

_JPEG = b"\xff\xd8\xff"
_SCALES = (8, 4, 2, 1)  # those whose inverse transforms libjpeg-turbo has vector code for
_TURBO_COLOURS = ("YCbCr", "RGB", "Gray")
_WHOLE_IN_FLOAT32 = 2  # bytes of the integers that float32 holds exactly


def is_jpeg(data: bytes) -> bool:
    """Say whether bytes begin as a JPEG does, whatever their file is called."""
    return data.startswith(_JPEG)


def fresh(height: int, width: int) -> Pixels:
    """Return uninitialised rows of pixels."""
    return np.empty((height, width, 3), np.uint8)


def by_turbo(data: bytes, size: Size | None, place: Place) -> Pixels | None:
    """Decode a JPEG, or return None for what Pillow should have a look at.

    With ``size``, it is decoded at the smallest of 1/8, 1/4, 1/2 and 1/1 at which it is no smaller
    than ``size`` in either direction, and then resized.
    """
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
    return out if direct else fit(out, size, place)


def _scale(height: int, width: int, size: Size) -> int:
    """Return the largest divisor at which a JPEG is no smaller than ``size``."""
    fits = (s for s in _SCALES if -(-height // s) >= size[0] and -(-width // s) >= size[1])
    return next(fits, 1)


def _may_be_a_bomb(height: int, width: int) -> bool:
    limit = pillow().MAX_IMAGE_PIXELS  # above it Pillow warns, above twice as much it refuses
    return limit is not None and height * width > limit


def by_pillow(data: bytes, use: Callable[[PIL.Image.Image], R], where: str, remedy: str) -> R:
    """Open an image with Pillow and use it, with an error that names the place.

    Raises:
        SourceError: Pillow cannot decode it, or ``use`` refuses it.
    """
    try:
        with pillow().open(io.BytesIO(data)) as image:
            return use(image)
    except SourceError:
        raise
    except MemoryError as error:  # the file may be right, and the memory too small
        error.add_note(f"headrace: while decoding {where}")
        raise
    except Exception as error:  # its decoders raise whatever a broken file makes them
        what = str(error).rstrip(".") or type(error).__name__
        if isinstance(error, pillow().UnidentifiedImageError):
            what = "it is of no format that Pillow knows"
        raise SourceError(f"{where} cannot be decoded: {what}. {remedy}") from error


def fit(pixels: Pixels, size: Size | None, place: Place) -> Pixels:
    """Return pixels in their place, resized where they are not of ``size``."""
    out = place(*(size or pixels.shape[:2]))
    out[...] = pixels if pixels.shape == out.shape else resized(pixels, out.shape[:2])
    return out


def resized(pixels: Array, size: Size) -> Array:
    """Return rows of pixels of any type resized: bilinear, antialiased, whole numbers rounded.

    This is what ``torchvision.transforms.v2.Resize(size)`` does with a tensor.
    """
    planes = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).unsqueeze(0)
    kind = planes.dtype
    if kind is not torch.uint8:  # which has a way of its own, to the bit that of torchvision
        exact = kind.is_floating_point or kind.itemsize <= _WHOLE_IN_FLOAT32
        planes = planes.to(torch.float32 if exact else torch.float64)
    planes = torch.nn.functional.interpolate(planes, size=size, mode="bilinear", antialias=True)
    if not kind.is_floating_point and planes.is_floating_point():
        planes = planes.round_()  # between the values around it, so that it is in their range
    rows: Array = planes[0].to(kind).permute(1, 2, 0).numpy()
    return rows


@cache
def _simplejpeg() -> Any:
    return import_extra("simplejpeg", "images")


@cache
def pillow() -> Any:
    """Return the module ``PIL.Image``."""
    return import_extra("PIL.Image", "images")
