"""From the bytes of a sample's files to values, by what their names end with."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from headrace.data.images.decoder import ImageDecoder, Wording
from headrace.errors import OptionError, SourceError
from headrace.extras import import_extra

Decoder: TypeAlias = Callable[[bytes], Any]
Decode: TypeAlias = bool | Mapping[str, Decoder]

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "ppm", "pgm", "pbm", "pnm", "tif", "tiff")
PICKLES = ("pyd", "pkl", "pickle", "pth", "pt", "joblib", "dill")

_WORDING = Wording('TarDataset(..., decode={{"jpg": ImageDecoder({})}})', "Write the shard again.")


class Decoders:
    """The decoder of each suffix; the user's own come first, by whole suffix, then by its end.

    Args:
        decode: True, False for bytes, or functions of bytes by suffix beside those of headrace.
        size: height and width of the images that headrace decodes.

    Raises:
        OptionError: they are something else.
    """

    def __init__(self, decode: Decode, size: int | tuple[int, int] | None) -> None:
        own = {} if isinstance(decode, bool) else decode
        if not isinstance(own, Mapping) or not all(
            isinstance(suffix, str) and callable(function) for suffix, function in own.items()
        ):
            raise OptionError(
                f"decode={decode!r:.80} is none of True, False and functions of bytes by suffix. "
                f'Write decode={{"bin": my_function}}.'
            )
        self._own = {suffix.lower().lstrip("."): own[suffix] for suffix in own}
        self.decode = decode is not False
        if size is not None and not self.decode:
            raise OptionError("size= is of images that are decoded: it goes without decode=False.")
        self._image = ImageDecoder(size, wording=_WORDING)

    def refuse_pickles(self, shard: str, suffixes: tuple[str, ...]) -> None:
        """Raise where files would have to be unpickled, which can run any code that is in them.

        Raises:
            SourceError: there are such files.
        """
        for suffix in suffixes:
            end = suffix.rpartition(".")[2]
            if self.decode and end in PICKLES and self._own_of(suffix) is None:
                raise SourceError(
                    f"{shard} has files that end with .{suffix}: pickles, which may run any code "
                    f"when they are read, and are not read here. Write TarDataset(..., "
                    f'decode=False) for bytes, or, if you trust them, decode={{"{suffix}": '
                    f"pickle.loads}}."
                )

    def value(self, suffix: str, data: bytes, where: Callable[[], str]) -> Any:
        """Return what is in a file.

        Raises:
            SourceError: it cannot be decoded; the message says ``where``.
        """
        own = self._own_of(suffix)
        if own is not None:
            try:
                return own(data)
            except Exception as error:
                error.add_note(f"headrace: in decode[{suffix!r}], of {where()}")
                raise
        end = suffix.rpartition(".")[2]
        if end in IMAGES:
            return self._image(data, where())
        known = _KNOWN.get(end)
        if known is None:
            return data
        try:
            return known(data)
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # whatever a broken file makes a parser raise
            raise SourceError(
                f"{where()} cannot be decoded: {error}. Write the shard again, or "
                f'DataLoader(..., on_error="skip").'
            ) from error

    def _own_of(self, suffix: str) -> Decoder | None:
        if not self._own:
            return None
        return self._own.get(suffix) or self._own.get(suffix.rpartition(".")[2])

    @property
    def identity(self) -> str:
        """What tells the values from those of other options."""
        return f"{self.decode} {sorted(self._own)} {self._image}"


def _array(data: bytes) -> Any:
    return np.load(io.BytesIO(data), allow_pickle=False)


def _arrays(data: bytes) -> dict[str, Any]:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return dict(archive)


def _tensors(data: bytes) -> Any:
    return import_extra("safetensors.torch", "safetensors").load(data)


_KNOWN: dict[str, Decoder] = {
    **dict.fromkeys(("txt", "text", "transcript"), lambda data: data.decode("utf-8")),
    **dict.fromkeys(("cls", "cls2", "index", "inx", "id"), int),
    **dict.fromkeys(("json", "jsn"), json.loads),
    "npy": _array,
    "npz": _arrays,
    "safetensors": _tensors,
}
