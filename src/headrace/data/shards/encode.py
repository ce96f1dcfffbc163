"""From a sample to the files of a shard: by what their names end with, decode.py backwards."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from headrace.data.images.decode import pillow
from headrace.data.shards.decode import PICKLES
from headrace.data.shards.index import split_name
from headrace.errors import SourceError
from headrace.extras import import_extra

KEY = "__key__"

_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP"}
_LINE = 'dataset.map(lambda sample: {"jpg": sample[0], "cls": sample[1]})'


class File(NamedTuple):
    """A file of a shard: its name, and what is in it."""

    name: str
    data: bytes


def files_of(sample: Any, number: int) -> list[File]:
    """Return the files of a sample.

    Args:
        sample: a dict of values by suffix; ``"__key__"`` is its name, else ``number`` is.
        number: of the sample.

    Raises:
        SourceError: it is no such dict, or a value is nothing that its suffix stands for.
    """
    if not isinstance(sample, Mapping):
        raise SourceError(
            f"sample {number} is a {type(sample).__name__}, and a shard holds dicts of values by "
            f"suffix. Write {_LINE}."
        )
    key = str(sample.get(KEY, f"{number:09d}"))
    files = []
    for suffix, value in sample.items():
        if suffix == KEY:
            continue
        name = f"{key}.{suffix}"
        if split_name(name) != (key, suffix):
            raise SourceError(
                f"sample {number}: {name!r} would not be read as the file {suffix!r} of the sample "
                f"{key!r}: a key has no dot in its last part and does not begin with one, a suffix "
                f"has no '/' and is in lower case. Rename them."
            )
        files.append(File(name, _data(value, suffix, number)))
    if not files:
        raise SourceError(f"sample {number} ({key!r}) is empty. Write {_LINE}.")
    return files


def _data(value: Any, suffix: str, number: int) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    end = suffix.rpartition(".")[2]
    writer = _WRITERS.get(end)
    try:
        if writer is None or end in PICKLES:
            raise TypeError("only bytes can be written to a file of that name")
        return writer(value, end)
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        raise SourceError(
            f"sample {number}: {suffix!r} is a {type(value).__name__} that cannot be written "
            f"({error}). Make bytes of it, or give it the suffix of what it is: json, txt, cls, "
            f"npy, npz, safetensors, jpg, png."
        ) from error


def _text(value: Any, _: str) -> bytes:
    if not isinstance(value, str):
        raise TypeError("a text is wanted")
    return value.encode()


def _number(value: Any, _: str) -> bytes:
    whole = value.item() if isinstance(value, (torch.Tensor, np.generic)) else value
    if not isinstance(whole, int):
        raise TypeError("a whole number is wanted")
    return str(int(whole)).encode()


def _json(value: Any, _: str) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _array(value: Any, _: str) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(value), allow_pickle=False)
    return out.getvalue()


def _arrays(value: Any, _: str) -> bytes:
    out = io.BytesIO()
    arrays: dict[str, Any] = {name: np.asarray(array) for name, array in value.items()}
    if any(array.dtype.hasobject for array in arrays.values()):
        raise TypeError("an array of Python objects")
    np.savez(out, **arrays)
    return out.getvalue()


def _tensors(value: Any, _: str) -> bytes:
    saved: bytes = import_extra("safetensors.torch", "safetensors").save(dict(value))
    return saved


def _image(value: Any, end: str) -> bytes:
    image = value
    if isinstance(value, torch.Tensor):
        if value.dtype != torch.uint8 or value.ndim != 3:
            raise TypeError(f"a uint8 tensor (3, H, W) is wanted, not {tuple(value.shape)}")
        rows = value.permute(1, 2, 0).contiguous().numpy()
        image = pillow().fromarray(rows[:, :, 0] if rows.shape[2] == 1 else rows)
    out = io.BytesIO()
    image.save(out, _FORMATS[end])
    return out.getvalue()


_WRITERS: dict[str, Callable[[Any, str], bytes]] = {
    **dict.fromkeys(("txt", "text", "transcript"), _text),
    **dict.fromkeys(("cls", "cls2", "index", "inx", "id"), _number),
    **dict.fromkeys(("json", "jsn"), _json),
    **dict.fromkeys(_FORMATS, _image),
    "npy": _array,
    "npz": _arrays,
    "safetensors": _tensors,
}
