"""What a decoder would have to be told of a set of images, found without an epoch of decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headrace.data.images import depth, orientation
from headrace.data.images.decode import by_pillow, is_jpeg
from headrace.data.images.decoder import ImageDecoder
from headrace.errors import SourceError

_MOST = 500


@dataclass
class Survey:
    """The files that were looked at, and those of each kind among them."""

    looked_at: int
    lying: list[str] = field(default_factory=list)
    transparent: list[str] = field(default_factory=list)
    deep: list[str] = field(default_factory=list)
    deep_colour: list[str] = field(default_factory=list)
    several: list[str] = field(default_factory=list)


def survey(paths: Sequence[str]) -> Survey:
    """Look at up to 500 files, spread evenly; those that cannot be decoded are passed over."""
    places = np.unique(np.linspace(0, len(paths) - 1, min(_MOST, len(paths))).astype(int))
    found = Survey(len(places))
    decoder = ImageDecoder()
    for place in places.tolist():
        try:
            _look(paths[place], decoder, found)
        except SourceError:
            continue
    return found


def _look(path: str, decoder: ImageDecoder, found: Survey) -> None:
    data = decoder.read(path)
    if is_jpeg(data):
        if orientation.of_jpeg(data) != orientation.UPRIGHT:
            found.lying.append(path)
        return

    def look(opened: Any) -> None:
        kind = depth.of(opened)
        if kind is not None:
            (found.deep_colour if kind[0] == "colour" else found.deep).append(path)
        if getattr(opened, "is_animated", False):
            found.several.append(path)
        if opened.has_transparency_data:
            lowest = opened.convert("RGBA").getchannel("A").getextrema()[0]
            if lowest < depth.BYTE:
                found.transparent.append(path)
        else:
            opened.load()  # what a PNG says behind its pixels is read by then
        if orientation.of_exif(orientation.exif_of(opened.info)) != orientation.UPRIGHT:
            found.lying.append(path)

    by_pillow(data, look, path, "")
