"""Images of more than 8 bits a channel: which they are, and their values as the file holds them.

Pillow reads grey images of 16 bits and of floats as they are; ``convert("RGB")`` then clips them at
255. Colours of 16 bits it reads as 8, without a word; and it stretches a PGM to 65535.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeAlias

import numpy as np

from headrace.data.gatherer import Array
from headrace.data.images.decode import pillow
from headrace.errors import SourceError

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_WHITE_IS_ZERO = 0
_OF_16_BITS = ("PPM", "PNG")  # whose numbers Pillow, or an older one, has as 32 bits
BYTE = 255
_MOST = 65535
_WIDE_COLOUR = re.compile(r";16[LBN]\b")
_CODESTREAM = b"\xff\x4f\xff\x51"  # of JPEG 2000: its start, and the marker of its sizes
_COMPONENTS = 40  # bytes from there to what is said of the components

# Images are of Pillow, whose type has no attributes of the formats.
Depth: TypeAlias = tuple[Literal["grey", "colour"], int]


def of(image: Any) -> Depth | None:
    """Return what an image that was opened, not loaded yet, has beyond 8 bits; None for no more.

    "grey" comes with the largest value that its whole numbers may have (0 where that is not known),
    "colour" is what Pillow makes 8 bits of.
    """
    if image.mode == "I" and image.format in _OF_16_BITS:
        return "grey", _maximum(image.tile[0].args)
    if image.mode.startswith("I;16"):
        twelve = any("I;12" in str(tile.args) for tile in image.tile)
        return "grey", 4095 if twelve else _MOST
    if image.mode in ("I", "F"):
        return "grey", 0
    return ("colour", _MOST) if _is_wide_colour(image) else None


def is_deep(image: Any) -> bool:
    """Say whether a loaded image has more than 8 bits a channel."""
    return str(image.mode).startswith("I") or image.mode == "F"


def _maximum(args: Any) -> int:
    return int(args[1]) if isinstance(args, tuple) else _MOST


def _is_wide_colour(image: Any) -> bool:
    if image.format == "PPM":
        return any(isinstance(t.args, tuple) and t.args[-1] > BYTE for t in image.tile)
    if image.format == "TIFF":
        return any(bits > 8 for bits in image.tag_v2.get(_BITS_PER_SAMPLE, (8,)))
    if image.format == "JPEG2000":
        return _bits_of_jpeg2000(image) > 8
    return any(_WIDE_COLOUR.search(str(tile.args)) for tile in image.tile)


def _bits_of_jpeg2000(image: Any) -> int:
    place = image.fp.tell()
    image.fp.seek(0)
    head = image.fp.read(1 << 16)
    image.fp.seek(place)
    at = head.find(_CODESTREAM)
    known = at >= 0 and at + _COMPONENTS < len(head)
    return (head[at + _COMPONENTS] & 0x7F) + 1 if known else 8


def kept(image: Any, found: Depth, deep: str | None, where: str, option: str) -> Any:
    """Return a loaded image with all its values ("keep"), or 8 bits of each ("scale").

    Raises:
        SourceError: neither was asked for, or that is not possible.
    """
    kind, most = found
    what = (
        f"{where} has more than 8 bits a channel ({'colour' if kind == 'colour' else image.mode})"
    )
    scale = option.format('deep="scale"')
    if kind == "colour":
        if deep == "scale":
            return image
        raise SourceError(
            f"{what}, of which Pillow reads the upper 8. Write {scale} for these, or "
            f"ImageFolder(..., loader=fn) with a function of the path that reads them all: "
            f"cv2.imread(path, cv2.IMREAD_UNCHANGED), say."
        )
    keep, clip = option.format('deep="keep"'), option.format('deep="clip"')
    if deep is None:
        raise SourceError(
            f"{what}, which RGB of 8 bits would clip. Write {keep} for a tensor (1, H, W) with its "
            f"values, {scale} for their upper 8 bits, or {clip} for what torchvision makes of it."
        )
    if deep == "keep":
        return pillow().fromarray(_values(image, most, what)) if image.mode == "I" else image
    if not most:
        raise SourceError(
            f"{what}, whose range is not known. Write {keep}, and scale its values in a transform."
        )
    return pillow().fromarray(_upper_bits(image, most))


def _values(image: Any, most: int, what: str) -> Array:
    """Return the whole numbers of an image that Pillow has as 32 bits."""
    values: Array = np.asarray(image)
    if image.format in _OF_16_BITS:  # stretched to 65535: each value has one place there
        return np.rint(values * (most / _MOST)).astype(np.uint16)
    tags: Any = getattr(image, "tag_v2", None)
    unsigned = tags is not None and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1
    if unsigned and values.size and values.min() < 0:
        raise SourceError(
            f"{what}: unsigned numbers of 32 bits above 2147483647. Write ImageFolder(..., "
            f"loader=fn) with a function of the path that reads them, such as tifffile.imread."
        )
    return values


def _upper_bits(image: Any, most: int) -> Array:
    values = np.asarray(image).astype(np.uint32)
    if image.format in _OF_16_BITS:
        most = _MOST
    tags: Any = getattr(image, "tag_v2", {})
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = most - values
    return (values // ((most + 1) // (BYTE + 1))).astype(np.uint8)


def rows_of(image: Any) -> Array:
    """Return an image's pixels as (H, W, channels), in the machine's byte order."""
    pixels: Array = np.array(image)
    if pixels.dtype.byteorder not in ("=", "|"):
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
