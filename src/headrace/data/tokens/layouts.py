"""How files of tokens are laid out: flat, with llm.c's header, or in Megatron's pair of files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import SourceError, SourceWarning
from headrace.notices import warn_user

Offsets = npt.NDArray[np.int64]

# Megatron-LM's index: this magic, the version as uint64, a code of the type, the numbers of
# sequences and of document boundaries as uint64; then lengths as int32, places and boundaries as
# int64.
_IDX_MAGIC = b"MMIDIDX\x00\x00"
_IDX_HEAD = np.dtype(
    [("magic", "S9"), ("version", "<u8"), ("code", "u1"), ("sequences", "<u8"), ("bounds", "<u8")]
)
_IDX_TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_IDX_FLOATS = {6: "float64", 7: "float32"}

# llm.c's files: 256 numbers of 32 bits (this magic, version, number of tokens), then the tokens.
_HEADED: dict[int, np.dtype[Any]] = {20240520: np.dtype("<u2"), 20240801: np.dtype("<u4")}
_HEADER_BYTES = 1024

_LOOKED_AT = 1 << 16
_FEWEST = 64  # tokens that say something about their type
_NO_VOCABULARY = 1 << 24  # is so large
_UNPACK = "Unpack it first, or make a corpus of its texts: headrace tokenize."
_OTHERS = {
    b"\x93NUMPY": ("a .npy file", "Write TokenBlocks(np.load(path, mmap_mode='r'), length)."),
    b"PK\x03\x04": ("a zip archive (.npz or .pt)", _UNPACK),
    b"\x1f\x8b\x08\x00": ("compressed by gzip", _UNPACK),
    b"\x1f\x8b\x08\x08": ("compressed by gzip", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", _UNPACK),
    b"PAR1": ("a Parquet file", "Make a corpus of its texts: headrace tokenize."),
    _IDX_MAGIC: ("an index of Megatron's", "Name the .bin beside it."),
}


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a file lie, and where its documents begin and end, if that is known."""

    dtype: np.dtype[Any]
    offset_bytes: int
    tokens: int
    documents: Offsets | None = None


def header_of(path: str) -> Layout | None:
    """Return the layout that a header of llm.c's says, None where there is none.

    Raises:
        SourceError: the file is not as long as its header says.
    """
    size_bytes = os.path.getsize(path)
    with open(path, "rb") as file:
        raw = file.read(_HEADER_BYTES)
    if len(raw) < _HEADER_BYTES:
        return None
    head = np.frombuffer(raw, "<i4")
    dtype = _HEADED.get(int(head[0]))
    if dtype is None:
        return None
    tokens = int(head[2])
    if size_bytes != _HEADER_BYTES + tokens * dtype.itemsize:
        raise SourceError(
            f"{path} has the header of llm.c's files, which says {tokens:,} tokens of "
            f"{dtype.itemsize} bytes, but {size_bytes - _HEADER_BYTES:,} bytes follow. It was cut "
            f"short, or is no such file: write it again."
        )
    return Layout(dtype, _HEADER_BYTES, tokens)


def flat(path: str, dtype: np.dtype[Any]) -> Layout:
    """Return the layout of a file that is nothing but tokens.

    Raises:
        SourceError: it is a file of another kind, or its size is no multiple of a token's.
    """
    with open(path, "rb") as file:
        beginning = file.read(_LOOKED_AT)
    for magic, (kind, remedy) in _OTHERS.items():
        if beginning.startswith(magic):
            raise SourceError(f"{path} is {kind}, and no file of tokens alone. {remedy}")
    _doubt(path, dtype, beginning)
    size_bytes = os.path.getsize(path)
    if size_bytes % dtype.itemsize:
        raise SourceError(
            f"{path} has {size_bytes:,} bytes, which are no whole tokens of {dtype.itemsize} "
            f"({dtype.name}). Give it the dtype= that it was written with."
        )
    return Layout(dtype, 0, size_bytes // dtype.itemsize)


def _doubt(path: str, dtype: np.dtype[Any], beginning: bytes) -> None:
    """Warn of tokens that are those of another type: all numbers are tokens."""
    whole = len(beginning) // 8 * 8
    tokens = np.frombuffer(beginning[:whole], dtype)
    if len(tokens) < _FEWEST:
        return
    if dtype.itemsize == 2 and not tokens[1::2].any() and tokens.any():
        what = "every second token is 0, as in a file of uint32 or int32"
    elif dtype.itemsize > 2 and int(tokens.max()) >= _NO_VOCABULARY:
        what = f"there are tokens like {int(tokens.max()):,}, as in a file of uint16"
    else:
        return
    warn_user(
        f"{path}, read as {dtype.name}: {what}. Give it the dtype= that it was written with.",
        SourceWarning,
    )


def megatron(idx: str, path: str) -> Layout:
    """Return the layout that Megatron's index says of the file beside it.

    Raises:
        SourceError: it is no such index, is damaged, or does not fit the file.
    """
    size_bytes = os.path.getsize(idx)
    with open(idx, "rb") as file:
        raw = file.read(_IDX_HEAD.itemsize)
        if not raw.startswith(_IDX_MAGIC) or len(raw) < _IDX_HEAD.itemsize:
            raise SourceError(
                f"{idx} is no index of Megatron's: it does not begin with {_IDX_MAGIC!r}. Name the "
                f"index that belongs to {path}, or rename this file and give dtype=."
            )
        head = np.frombuffer(raw, _IDX_HEAD)[0]
        sequences, bounds = int(head["sequences"]), int(head["bounds"])
        wanted = _IDX_HEAD.itemsize + 12 * sequences + 8 * bounds
        # Behind them there may be a byte for each sequence: its modality.
        if int(head["version"]) != 1 or size_bytes not in (wanted, wanted + sequences):
            raise SourceError(
                f"{idx} says version {head['version']}, {sequences:,} sequences and {bounds:,} "
                f"boundaries of documents, which are {wanted:,} bytes; it has {size_bytes:,}. It "
                f"is damaged, or of a version that is not known here: write it again."
            )
        lengths = np.frombuffer(file.read(4 * sequences), "<i4")
        places = np.frombuffer(file.read(8 * sequences), "<i8")
        documents = np.frombuffer(file.read(8 * bounds), "<i8")
    code = int(head["code"])
    if code not in _IDX_TYPES:
        kind = _IDX_FLOATS.get(code, f"the unknown code {code}")
        raise SourceError(f"{idx} says that its tokens are {kind}: tokens are integers.")
    dtype = np.dtype(_IDX_TYPES[code])
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    data_bytes = os.path.getsize(path)
    if (lengths < 0).any() or not np.array_equal(places, ends[:-1] * dtype.itemsize):
        raise SourceError(f"{idx} is damaged: its sequences do not lie one behind the other.")
    if data_bytes != int(ends[-1]) * dtype.itemsize:
        raise SourceError(
            f"{idx} says {int(ends[-1]):,} tokens of {dtype.itemsize} bytes, but {path} has "
            f"{data_bytes:,} bytes. The two do not belong together, or one was cut short."
        )
    whole = len(documents) and documents[0] == 0 and documents[-1] == sequences
    if not whole or (np.diff(documents) < 0).any():
        raise SourceError(f"{idx} is damaged: its documents are not all sequences, in order.")
    return Layout(dtype, 0, int(ends[-1]), ends[documents])
