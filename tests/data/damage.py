"""Files of every kind that is read, damaged at random: what reading them raises. A program.

``python damage.py SEED COUNT KIND...`` prints a JSON list of the damages whose errors are not
headrace's. It runs in a process of its own: a reader that crashes, hangs or takes all memory is
seen by who started it.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import traceback
import warnings
from pathlib import Path

import numpy as np
import pandas
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy
import torch
import zstandard

import headrace
from headrace import data
from headrace.data.images.idx import read_idx

ROWS = 60


def _csv():
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {
            "a": rng.integers(0, 9, ROWS),
            "b": rng.normal(size=ROWS).round(3),
            "c": rng.choice(["red", "green", "blue"], ROWS),
            "y": rng.integers(0, 2, ROWS),
        }
    )
    return frame.to_csv(index=False).encode()


def _lines():
    return "".join(f'{{"number": {i}, "text": "line {i} \u00e9"}}\n' for i in range(ROWS)).encode()


def _parquet():
    images = []
    for value in range(ROWS):
        file = io.BytesIO()
        PIL.Image.new("RGB", (8, 8), (value, 0, 0)).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": f"{value}.png"})
    table = pa.table(
        {
            "x": np.arange(ROWS, dtype=np.float32),
            "text": [f"text {i}" for i in range(ROWS)],
            "list": [list(range(i % 5)) for i in range(ROWS)],
            "image": images,
        }
    )
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=17, compression="snappy")
    return file.getvalue()


def _npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _npz(save):
    file = io.BytesIO()
    save(file, x=np.arange(ROWS * 3, dtype=np.float32).reshape(ROWS, 3), y=np.arange(ROWS))
    return file.getvalue()


def _safetensors():
    return safetensors.numpy.save({"x": np.ones((ROWS, 3), np.float32), "y": np.arange(ROWS)})


def _idx():
    array = np.arange(ROWS * 12, dtype=np.uint8).reshape(ROWS, 4, 3)
    return struct.pack(">BBBB3I", 0, 0, 8, 3, *array.shape) + array.tobytes()


def _image(kind):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (24, 20, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(12):
            name = f"{'long/' * 40 if number == 3 else ''}{number:03d}"
            parts = {"jpg": _image("JPEG"), "json": b'{"a": [1, 2]}', "cls": b"3"}
            parts["npy"] = _npy(np.ones(3))
            for suffix, content in parts.items():
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def _cifar(root):
    rows = {b"data": np.zeros((10, 3072), np.uint8), b"labels": list(range(10))}
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True, exist_ok=True)
    content = pickle.dumps(rows, protocol=2)
    for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "test_batch"]:
        (folder / name).write_bytes(content)
    meta = {b"label_names": [b"a"] * 10, b"num_cases_per_batch": 10}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return content


def all_of(dataset):
    for batch in headrace.DataLoader(dataset, 7, collate_fn=list):
        del batch


def stream_of(dataset):
    for sample in dataset:
        del sample


def read_images(path):
    folder = path.parent / "folder" / "class"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    path.rename(folder / path.name)
    all_of(data.ImageFolder(folder.parent))


def read_cifar(path):
    folder = path.parent / "cifar-10-batches-py"
    if not folder.exists():
        _cifar(path.parent)
    path.rename(folder / "data_batch_5")
    all_of(data.CIFAR10(path.parent))


CSV, LINES = _csv(), _lines()
# What is in the file, its name, how it is read.
KINDS = {
    "csv": (CSV, "x.csv", lambda p: all_of(data.CSVDataset(p, target="y"))),
    "csv.gz": (gzip.compress(CSV), "x.csv.gz", lambda p: all_of(data.CSVDataset(p, target="y"))),
    "csv.xz": (lzma.compress(CSV), "x.csv.xz", lambda p: all_of(data.CSVDataset(p))),
    "parquet": (_parquet(), "x.parquet", lambda p: all_of(data.ParquetDataset(p))),
    "text": (LINES, "x.txt", lambda p: all_of(data.TextLines(p))),
    "jsonl": (LINES, "x.jsonl", lambda p: all_of(data.JSONLines(p))),
    "text.gz": (gzip.compress(LINES), "x.gz", lambda p: stream_of(data.StreamedTextLines(p))),
    "text.bz2": (bz2.compress(LINES), "x.bz2", lambda p: stream_of(data.StreamedTextLines(p))),
    "jsonl.zst": (zstandard.compress(LINES), "x", lambda p: stream_of(data.StreamedJSONLines(p))),
    "npy": (
        _npy(np.arange(ROWS * 3.0).reshape(ROWS, 3)),
        "x.npy",
        lambda p: all_of(headrace.ArrayDataset.from_npy(p)),
    ),
    "npz": (_npz(np.savez), "x.npz", lambda p: all_of(headrace.ArrayDataset.from_npz(p))),
    "npz packed": (
        _npz(np.savez_compressed),
        "x.npz",
        lambda p: all_of(headrace.ArrayDataset.from_npz(p)),
    ),
    "safetensors": (
        _safetensors(),
        "x.safetensors",
        lambda p: all_of(headrace.ArrayDataset.from_safetensors(p)),
    ),
    "idx": (_idx(), "x-ubyte", lambda p: read_idx(str(p))),
    "idx.gz": (gzip.compress(_idx()), "x-ubyte.gz", lambda p: read_idx(str(p))),
    "jpeg": (_image("JPEG"), "x.jpg", read_images),
    "png": (_image("PNG"), "x.png", read_images),
    "tiff": (_image("TIFF"), "x.tif", read_images),
    "webp": (_image("WEBP"), "x.webp", read_images),
    "tar": (_tar(), "x.tar", lambda p: all_of(data.TarDataset(str(p)))),
    "cifar": (_cifar(Path(tempfile.mkdtemp())), "x", read_cifar),
}


def damaged(content, rng):
    """Return a file with one to three things wrong, and what they are."""
    data_, what = bytearray(content), []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        kind = rng.choice(["flip", "bytes", "cut", "drop", "repeat", "zeros", "ones", "head"])
        at = rng.randrange(len(data_) or 1)
        size = min(rng.choice([1, 2, 4, 8, 64]), len(data_) - at)
        if kind == "flip" and data_:
            data_[at] ^= 1 << rng.randrange(8)
        elif kind == "bytes":
            data_[at : at + size] = rng.randbytes(size)
        elif kind == "cut":
            del data_[at:]
        elif kind == "drop":
            del data_[at : at + size]
        elif kind == "repeat":
            data_[at:at] = data_[at : at + size]
        elif kind == "zeros":
            data_[at : at + size] = bytes(size)
        elif kind == "ones":
            data_[at : at + size] = b"\xff" * size
        elif kind == "head" and data_:  # most of what decides lies there
            data_[rng.randrange(min(64, len(data_)))] = rng.randrange(256)
        what.append(f"{kind} at {at}, {size}")
    return bytes(data_), what


def one(kind, seed, folder):
    """Read one damaged file; return what came where it is none of headrace's errors."""
    content, name, read = KINDS[kind]
    harmed, what = damaged(content, random.Random(seed))
    path = folder / name
    path.write_bytes(harmed)
    try:
        read(path)
    except headrace.HeadraceError as error:
        if path.stem in str(error) or isinstance(error, headrace.errors.MissingColumnError):
            return None
        return f"no name: {error!r}", what
    except MemoryError as error:  # it may be right, and larger than what there is
        named = any(path.stem in note for note in getattr(error, "__notes__", ()))
        return None if named else (f"no name: {error!r}", what)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})", what
    return None


def main():
    seed, count, *kinds = [int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()
    folder = Path(tempfile.mkdtemp())
    for kind in kinds:
        one(kind, 0, folder)  # what is imported on the way is not counted
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), resource.RLIM_INFINITY))
    wrong = []
    for kind in kinds:
        for number in range(seed, seed + count):
            signal.alarm(20)  # a reader that hangs is ended by it
            print(kind, number, file=sys.stderr, flush=True)
            found = one(kind, number, folder)
            if found:
                wrong.append((kind, number, *found))
    signal.alarm(0)
    print(json.dumps(wrong))


if __name__ == "__main__":
    main()
