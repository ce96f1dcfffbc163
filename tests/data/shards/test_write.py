"""Writing shards: read again by headrace and by webdataset, the same bytes, after real kills."""

import hashlib
import io
import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.forked import FORK

from headrace import DataLoader
from headrace.data import ArrayDataset, ImageFolder, TarDataset, write_shards
from headrace.data.shards.index import BESIDE
from headrace.data.shards.write import pack_folder
from headrace.errors import InUseError, OptionError, SourceError
from headrace.locks import take

from .conftest import jpeg
from .test_tar import by_webdataset


def made(count):
    return [{"__key__": f"k{n}", "txt": f"text {n}", "cls": n} for n in range(count)]


def digests(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.suffix == ".tar"
    }


def test_what_is_written_is_read_by_both(tmp_path):
    paths = write_shards(made(20), tmp_path / "{:03d}.tar", shard_bytes=12_000)
    assert len(paths) == 4
    assert paths == sorted(map(str, tmp_path.glob("*.tar")))
    assert list(TarDataset(paths)) == made(20)
    raw = by_webdataset(paths)
    assert raw == list(TarDataset(paths, decode=False))
    assert all(os.path.getsize(path) <= 12_000 + 10_240 for path in paths)


def test_the_index_beside_is_used_though_the_copy_has_another_time(tmp_path, monkeypatch):
    from headrace.data.shards import index

    paths = write_shards(made(3), tmp_path / "{}.tar")
    assert os.path.exists(paths[0] + BESIDE)
    monkeypatch.setattr(index, "members_of", None)
    os.utime(paths[0], (1_000, 1_000))
    assert list(TarDataset(paths)) == made(3)


def test_an_index_beside_that_is_older_than_its_shard_is_not_used(tmp_path):
    paths = write_shards(made(3), tmp_path / "a{}.tar")
    os.utime(paths[0] + BESIDE, (1_000, 1_000))
    other = write_shards(made(3)[::-1], tmp_path / "b{}.tar")
    assert os.path.getsize(other[0]) == os.path.getsize(paths[0])
    with open(paths[0], "r+b") as shard, open(other[0], "rb") as copied:
        shard.write(copied.read())  # in place, of the same size
    assert [s["cls"] for s in TarDataset(paths)] == [2, 1, 0]


def test_every_kind_of_value_comes_back(tmp_path):
    pixels = torch.arange(3 * 8 * 9, dtype=torch.uint8).reshape(3, 8, 9)
    sample = {
        "__key__": "a/b",
        "png": pixels,
        "mask.png": Image.fromarray(np.eye(5, dtype=np.uint8) * 255),
        "jpg": jpeg(),
        "json": {"a": [1, None], "é": 2.5},
        "txt": "é",
        "cls": torch.tensor(7),
        "id": np.int64(3),
        "npy": torch.arange(4.0),
        "npz": {"x": np.arange(2), "y": torch.ones(1)},
        "safetensors": {"w": torch.ones(2, dtype=torch.bfloat16)},
        "bin": b"\0\1",
    }
    (path,) = write_shards([sample], tmp_path / "{}.tar")
    found = TarDataset(path)[0]
    assert list(found) == list(sample)
    torch.testing.assert_close(found["png"], pixels)
    assert found["mask.png"].shape == (3, 5, 5)
    assert (found["json"], found["txt"], found["cls"], found["id"]) == (sample["json"], "é", 7, 3)
    np.testing.assert_array_equal(found["npy"], np.arange(4.0))
    np.testing.assert_array_equal(found["npz"]["y"], [1])
    torch.testing.assert_close(found["safetensors"], sample["safetensors"])
    assert found["bin"] == b"\0\1"
    assert TarDataset(path, decode=False)[0]["jpg"] == jpeg()


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        ((1, 2), "is a tuple.*dataset.map"),
        ({"txt": 3}, "sample 0: 'txt' is a int.*a text is wanted"),
        ({"cls": 1.5}, "a whole number is wanted"),
        ({"thing": object()}, "only bytes can be written"),
        ({"pkl": {}}, "only bytes"),
        ({"npy": np.array([{}], object)}, "'npy' is a ndarray"),
        ({"npz": {"a": [{}]}}, "Python objects"),
        ({"jpg": torch.zeros(3, 4, 4)}, "uint8 tensor"),
        ({"JPG": b""}, "lower case"),
        ({"__key__": "a.b", "txt": "x"}, "a key has no dot"),
        ({"__key__": ".a", "txt": "x"}, "a key has no dot"),
        ({"__key__": "a"}, "is empty"),
    ],
)
def test_what_would_not_be_read_as_it_was_is_not_written(tmp_path, sample, said):
    with pytest.raises(SourceError, match=said):
        write_shards([sample], tmp_path / "{}.tar")
    assert not list(tmp_path.glob("*.tar*"))


def test_a_loader_makes_the_samples_side_by_side(tmp_path):
    data = ArrayDataset(np.arange(20)).map(_numbered)
    loader = DataLoader(data, batch_size=None, num_workers=2)
    write_shards(data, tmp_path / "a/{}.tar", shard_bytes=9_000)
    write_shards(loader, tmp_path / "b/{}.tar", shard_bytes=9_000)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert len(digests(tmp_path / "a")) > 1


def _numbered(number):
    return {"cls": int(number), "json": [int(number)]}


@pytest.mark.parametrize(
    ("out", "options"),
    [
        ("out.tar", {}),
        ("{}{}.tar", {}),
        ("{x}.tar", {}),
        ("ftp://b/{}.tar", {}),
        ("{}.tar", {"shard_bytes": 0}),
    ],
)
def test_places_and_sizes_that_cannot_be(tmp_path, monkeypatch, out, options):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match="Write"):
        write_shards(made(1), out, **options)


def test_nothing_is_written_over(tmp_path):
    write_shards(made(4), tmp_path / "{}.tar", shard_bytes=4_000)
    before = digests(tmp_path)
    with pytest.raises(FileExistsError, match="resume=True"):
        write_shards(made(4), tmp_path / "{}.tar")
    (tmp_path / "0.tar").unlink()
    with pytest.raises(FileExistsError, match=r"1\.tar is there already"):
        write_shards(made(9), tmp_path / "{}.tar", shard_bytes=4_000)
    assert digests(tmp_path).items() >= {k: v for k, v in before.items() if k != "0.tar"}.items()


def test_two_writers_exclude_each_other(tmp_path):
    with take(tmp_path / ".writing.lock", "it", "wait"), pytest.raises(InUseError):
        write_shards(made(1), tmp_path / "{}.tar")


class Slow:
    """A dataset that is read no faster than it is killed."""

    def __init__(self, count, seconds=0.0):
        self.read = []
        self._count, self._seconds = count, seconds

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        self.read.append(index)
        time.sleep(self._seconds)
        return {"npy": np.full(300, index), "cls": index}


def test_a_writer_that_is_killed_leaves_whole_shards_and_is_gone_on_from(tmp_path):
    write_shards(Slow(60), tmp_path / "whole/{:03d}.tar", shard_bytes=20_000)
    folder = tmp_path / "killed"
    random = np.random.default_rng(0)
    for _ in range(6):
        child = FORK.Process(
            target=write_shards,
            args=(Slow(60, 0.01), folder / "{:03d}.tar"),
            kwargs={"shard_bytes": 20_000, "resume": True},
        )
        child.start()
        child.join(float(random.uniform(0.05, 0.25)))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        for path in folder.glob("*.tar"):
            assert len(TarDataset(path, cache_dir=tmp_path / "c")) > 0
    dataset = Slow(60)
    there = len(list(folder.glob("*.tar")))
    write_shards(dataset, folder / "{:03d}.tar", shard_bytes=20_000, resume=True)
    assert digests(folder) == digests(tmp_path / "whole")
    if there:
        assert dataset.read[:1] != [0]


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for n in range(6):
            (folder / name / f"{n}.jpg").write_bytes(jpeg(n))
    (folder / "cat" / ".DS_Store").write_bytes(b"x")
    return folder


def test_a_folder_is_packed_as_its_files_are(photographs, tmp_path):
    paths = pack_folder(photographs, tmp_path / "out", shard_bytes=8_000, classes=True)
    assert len(paths) > 1
    dataset = TarDataset(tmp_path / "out")
    folder = ImageFolder(photographs)
    assert len(dataset) == len(folder) == 12
    for sample, (image, label) in zip(dataset, folder, strict=True):
        torch.testing.assert_close(sample["jpg"], image)
        assert sample["cls"] == label
    assert by_webdataset(paths) == list(TarDataset(paths, decode=False))
    again = pack_folder(photographs, tmp_path / "again", shard_bytes=8_000, classes=True)
    assert digests(tmp_path / "out") == digests(tmp_path / "again")
    os.unlink(again[1])
    pack_folder(photographs, tmp_path / "again", shard_bytes=8_000, classes=True, resume=True)
    assert digests(tmp_path / "out") == digests(tmp_path / "again")


def test_a_folder_is_packed_in_an_order_of_a_seed(photographs, tmp_path):
    def keys(name, **options):
        pack_folder(photographs, tmp_path / name, shard_bytes=8_000, **options)
        return [s["__key__"] for s in TarDataset(tmp_path / name)]

    plain, first, again = keys("a"), keys("b", shuffle=1), keys("c", shuffle=1)
    assert plain == sorted(plain)
    assert first == again != plain
    assert sorted(first) == plain


def test_folders_that_cannot_be_packed(photographs, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no files"):
        pack_folder(tmp_path / "empty", out)
    pack_folder(photographs, out, shard_bytes=8_000)
    with pytest.raises(FileExistsError):
        pack_folder(photographs, out, shard_bytes=8_000)
    with pytest.raises((SourceError, FileExistsError), match=r"\.tar"):
        pack_folder(photographs, out, shard_bytes=80_000, resume=True)
    (photographs / "alone.jpg").write_bytes(b"x")
    with pytest.raises(SourceError, match="in no folder of a class"):
        pack_folder(photographs, tmp_path / "o2", classes=True)
    (photographs / "alone.JPG").write_bytes(b"x")
    with pytest.raises(SourceError, match="second"):
        pack_folder(photographs, tmp_path / "o2")
    (photographs / "alone.JPG").unlink()
    (photographs / "README").write_bytes(b"x")
    with pytest.raises(SourceError, match="no suffix"):
        pack_folder(photographs, tmp_path / "o2")


def test_a_sample_larger_than_a_shard_has_one_to_itself(tmp_path):
    sizes = [10, 50_000, 10]
    samples = [{"bin": io.BytesIO(bytes(n)).getvalue()} for n in sizes]
    assert len(write_shards(samples, tmp_path / "{}.tar", shard_bytes=2_000)) == 3
    assert [len(s["bin"]) for s in TarDataset(tmp_path)] == sizes
