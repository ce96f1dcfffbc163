"""Which way up an image is: what EXIF says of it, and turning rows of pixels by it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from headrace.data.gatherer import Array

UPRIGHT = 1
_TAG = 0x0112
_SHORT = 3
_AS_TEXT = "Raw profile type exif"  # how ImageMagick long wrote it into PNGs
_EXIF = b"Exif\0\0"
_START_OF_SCAN, _END, _APP1 = 0xDA, 0xD9, 0xE1


def of_jpeg(data: bytes) -> int:
    """Return the orientation that a JPEG's EXIF names, 1 to 8; 1 where it names none."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a byte of padding before the marker
            at += 1
            continue
        if marker in (_START_OF_SCAN, _END):
            break
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _APP1 and data[at + 4 : at + 10] == _EXIF:
            return of_exif(data[at + 10 : at + 2 + length])
        at += 2 + max(2, length)
    return UPRIGHT


def of_exif(exif: bytes) -> int:
    """Return the orientation in a block of EXIF, 1 to 8; 1 where it has none, or is damaged.

    It is a TIFF header and its first directory: entries of 12 bytes, the value of a short in the
    last 4. Nothing else is looked at, so that other damage in it does no harm.
    """
    exif = exif.removeprefix(_EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return UPRIGHT
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for number in range(count):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, start + 2 + 12 * number)
            if tag == _TAG:
                return value if kind == _SHORT and 1 <= value <= 8 else UPRIGHT
    except struct.error:
        pass
    return UPRIGHT


def exif_of(info: Mapping[Any, Any]) -> bytes:
    """Return the EXIF in what Pillow knows of a loaded image; b"" where there is none."""
    found = info.get("exif", b"")
    written = info.get(_AS_TEXT)
    if not found and isinstance(written, str):  # a blank line, a name, a length, then digits
        try:
            return bytes.fromhex("".join(written.split("\n")[3:]))
        except ValueError:
            return b""
    return found if isinstance(found, bytes) else b""


def swaps_sides(orientation: int) -> bool:
    """Say whether turning exchanges height and width."""
    return orientation >= 5


def turned(pixels: Array, orientation: int) -> Array:
    """Return rows of pixels (H, W, channels) upright: a view.

    The eight are those of EXIF 2.3, 4.6.4: mirrored (2), by half a turn (3), both (4), along the
    main diagonal (5), a quarter to the right (6), along the other diagonal (7), to the left (8).
    """
    view: Any = pixels
    if swaps_sides(orientation):
        view = np.swapaxes(view, 0, 1)
    if orientation in (3, 4, 7, 8):
        view = view[::-1]
    if orientation in (2, 3, 6, 7):
        view = view[:, ::-1]
    found: Array = view
    return found
