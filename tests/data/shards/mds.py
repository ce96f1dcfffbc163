"""MDS shards, written byte by byte as the format is documented; the real writer: test_streaming."""

import bz2
import gzip
import json

import numpy as np

from headrace.data.text.compressed import _zstd

COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "zstd": lambda raw: _zstd().compress(raw)}


def array(values, dtype=True, shape=True):
    """An array that says its type, and its shape."""
    codes = {"uint8": 8, "int16": 17, "float32": 34, "int64": 65}
    head = bytes([codes[values.dtype.name]]) if dtype else b""
    if shape:
        head += bytes([values.ndim << 2]) + np.array(values.shape, np.uint8).tobytes()
    return head + values.tobytes()


def shard_bytes(columns, rows):
    """A shard of rows of bytes; ``columns`` is (name, encoding, size) of each."""
    samples = []
    for row in rows:
        sizes = [len(row[name]) for name, _, size in columns if size is None]
        samples.append(np.array(sizes, "<u4").tobytes() + b"".join(row[c[0]] for c in columns))
    config = json.dumps({"columns": [list(c) for c in columns]}).encode()
    first = 4 * (len(rows) + 2) + len(config)
    ends = first + np.cumsum([0, *map(len, samples)])
    head = np.array([len(rows), *ends], "<u4").tobytes()
    return head + config + b"".join(samples)


def write_mds(directory, columns, shards, compression=None):
    """Write shards of rows and their index; return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    listed = []
    for number, rows in enumerate(shards):
        raw = shard_bytes(columns, rows)
        name = f"shard.{number:05d}.mds"
        about = {
            "column_encodings": [c[1] for c in columns],
            "column_names": [c[0] for c in columns],
            "column_sizes": [c[2] for c in columns],
            "compression": compression,
            "format": "mds",
            "hashes": [],
            "raw_data": {"basename": name, "bytes": len(raw), "hashes": {}},
            "samples": len(rows),
            "size_limit": 1 << 26,
            "version": 2,
            "zip_data": None,
        }
        if compression:
            kind = compression.partition(":")[0]
            raw, name = COMPRESS[kind](raw), f"{name}.{kind}"
            about["zip_data"] = {"basename": name, "bytes": len(raw), "hashes": {}}
        (directory / name).write_bytes(raw)
        listed.append(about)
    index = {"version": 2, "shards": listed}
    (directory / "index.json").write_text(json.dumps(index))
    return directory


PLAIN = [("cls", "int", 8), ("text", "str", None)]


def plain_rows(count, first=0):
    return [
        {"cls": np.int64(n).tobytes(), "text": f"text {n}".encode()}
        for n in range(first, first + count)
    ]


def plain(directory, counts=(5, 1, 4), **options):
    """Shards of a number and a text."""
    firsts = np.cumsum([0, *counts])
    shards = [plain_rows(n, int(first)) for n, first in zip(counts, firsts, strict=False)]
    return write_mds(directory, PLAIN, shards, **options)
