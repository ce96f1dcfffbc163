"""What is decompressed is bounded by what was asked for; arrays are read once, in place."""

import bz2
import gzip
import json
import lzma
import struct

import numpy as np
import pytest
import zstandard

from forks import Zygote

MIB = 1 << 20

# Prints by how many MiB a program's memory grew at its peak.
MEASURE = """
import json, resource
import numpy as np, torch, headrace
from headrace.data import CSVDataset, StreamedTextLines, StreamedJSONLines
from headrace.data.images.idx import read_idx
path = {path!r}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
{warm}
before = peak()
{work}
print(peak() - before)
"""


@pytest.fixture(scope="module")
def programs():
    zygote = Zygote("headrace.data.images.idx", "pyarrow.csv", "zstandard")
    yield zygote
    zygote.close()


@pytest.fixture
def grown(programs, tmp_path):
    def run(work, path, warm=""):
        program = MEASURE.format(path=str(path), work=work, warm=warm)
        done = programs.run(program, tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        return int(done.stdout)

    return run


def squeeze(kind, block, times):
    """Compress a block many times over, in little memory."""
    packer = {
        "gz": lambda: gzip.zlib.compressobj(6, gzip.zlib.DEFLATED, 31),
        "bz2": bz2.BZ2Compressor,
        "xz": lambda: lzma.LZMACompressor(preset=0),
        "zst": lambda: zstandard.ZstdCompressor().compressobj(),
    }[kind]()
    return b"".join([*(packer.compress(block) for _ in range(times)), packer.flush()])


LINES = {
    "StreamedTextLines": b"x" * 65535 + b"\n",
    "StreamedJSONLines": json.dumps("x" * 65533).encode() + b"\n",
}


@pytest.mark.parametrize("source", LINES)
@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_the_first_line_of_a_file_that_swells_takes_little(grown, tmp_path, kind, source):
    path = tmp_path / f"lines.{kind}"
    path.write_bytes(squeeze(kind, LINES[source] * 64, 48))  # 192 MiB
    assert path.stat().st_size < 4 * MIB
    assert grown(f"next(iter({source}(path)))", path) < 64


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst"])
def test_every_byte_comes_out_whatever_it_swells_to(tmp_path, kind):
    from headrace.data.text.compressed import open_at

    names = {"gz": "gzip", "bz2": "bzip2", "xz": "xz", "zst": "zstd"}
    path = tmp_path / "x"
    random = np.random.default_rng(0).bytes(300_000)
    for block, times in [(b"\n" * MIB, 9), (random, 3), (b"a", 1), (random + b"0" * 70_000, 2)]:
        packed = squeeze(kind, block, times)
        path.write_bytes(packed * 2)
        with open_at(str(path), names[kind], 0) as file:
            assert file.read() == block * times * 2
        with open_at(str(path), names[kind], len(block)) as file:
            pieces = iter(lambda: file.read(7_001), b"")
            assert b"".join(pieces) == block * (times * 2 - 1)


def idx(array, packed):
    head = struct.pack(">BBBB", 0, 0, {1: 8, 4: 12}[array.itemsize], array.ndim)
    data = head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    return gzip.compress(data, 1) if packed else data


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [">u1", ">i4"])
def test_an_idx_file_is_read_once_where_it_lies(grown, tmp_path, dtype, packed):
    array = (np.arange(48 * MIB // np.dtype(dtype).itemsize) % 251).astype(dtype).reshape(-1, 4)
    path, small = tmp_path / "x", tmp_path / "small"
    path.write_bytes(idx(array, packed))
    small.write_bytes(idx(array[:1], packed))
    work = "array = read_idx(path); assert (array[:9].ravel() == np.arange(36)).all()"
    assert grown(work, path, f"read_idx({str(small)!r})") < 48 * 1.3


def test_a_compressed_npz_is_read_once_where_it_lies(grown, tmp_path):
    path, small = tmp_path / "x.npz", tmp_path / "small.npz"
    array = (np.arange(48 * MIB // 4) % 251).astype(np.float32).reshape(4, -1)
    np.savez_compressed(path, x=array, y=np.asfortranarray(array[:, :99]))
    np.savez_compressed(small, x=array[:, :1])
    work = (
        "d = headrace.ArrayDataset.from_npz(path); x, y = d[1].values(); "
        "assert (x[:9] == (np.arange(9) + x[0]) % 251).all() and (y[:9] == x[:9]).all()"
    )
    warm = f"headrace.ArrayDataset.from_npz({str(small)!r})"
    assert grown(work, path, warm) < 48 * 1.3
