"""Files of tokens as others write them."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}


def write_flat(path: Path, tokens: Any, dtype: str = "uint16") -> Path:
    np.asarray(tokens, dtype).tofile(path)
    return path


def write_llm_c(path: Path, tokens: Sequence[int], *, magic: int = 20240520) -> Path:
    head = np.zeros(256, np.int32)
    head[:3] = magic, 1, len(tokens)
    dtype = np.uint16 if magic == 20240520 else np.uint32
    path.write_bytes(head.tobytes() + np.asarray(tokens, dtype).tobytes())
    return path


def write_megatron(
    stem: Path, documents: Sequence[Sequence[Sequence[int]]], dtype: str = "uint16", **odd: Any
) -> Path:
    """Write documents, each of several sequences, byte by byte as Megatron-LM describes it."""
    sequences = [np.asarray(s, dtype) for document in documents for s in document]
    stem.with_suffix(".bin").write_bytes(b"".join(s.tobytes() for s in sequences))
    bounds = np.cumsum([0, *(len(document) for document in documents)])
    place, places = 0, []
    for sequence in sequences:
        places.append(place)
        place += sequence.nbytes
    index = b"MMIDIDX\x00\x00"
    index += struct.pack("<QB", odd.get("version", 1), odd.get("code", CODES[dtype]))
    index += struct.pack("<QQ", len(sequences), len(bounds))
    index += struct.pack(f"<{len(sequences)}i", *odd.get("lengths", map(len, sequences)))
    index += struct.pack(f"<{len(places)}q", *odd.get("places", places))
    index += struct.pack(f"<{len(bounds)}q", *odd.get("bounds", bounds))
    index += odd.get("modes", b"")
    stem.with_suffix(".idx").write_bytes(index)
    return stem
