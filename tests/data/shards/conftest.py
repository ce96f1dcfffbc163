"""Shards as people have them: written by webdataset, by tarfile, by the tar program."""

import io
import tarfile

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def jpeg(seed=0, height=24, width=32):
    import PIL.Image

    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 255, (height // 8, width // 8, 3), np.uint8)
    image = PIL.Image.fromarray(rows).resize((width, height))
    out = io.BytesIO()
    image.save(out, "jpeg")
    return out.getvalue()


def write_tar(path, files, format=tarfile.USTAR_FORMAT):
    """Write pairs of a name and bytes."""
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


def samples(count, first=0):
    """Files of samples: a text and a class each."""
    for number in range(first, first + count):
        yield f"{number:06d}.txt", f"text {number}".encode()
        yield f"{number:06d}.cls", str(number % 7).encode()


@pytest.fixture
def shards(tmp_path):
    """Three shards of 5, 1 and 4 samples."""
    first = 0
    for shard, count in enumerate((5, 1, 4)):
        write_tar(tmp_path / f"{shard:03d}.tar", samples(count, first))
        first += count
    return tmp_path
