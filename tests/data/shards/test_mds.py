"""Mosaic's MDS shards: every kind of column, compressed or not, local and through a server."""

import io
import json
import pickle
from decimal import Decimal

import numpy as np
import pytest
import torch

from headrace import DataLoader, GroupSampler
from headrace.data import ImageDecoder, MDSDataset
from headrace.errors import OptionError, SourceChangedError, SourceError
from headrace.testing import assert_exact_resume

from .conftest import jpeg
from .mds import PLAIN, array, plain, write_mds
from .test_remote import web  # noqa: F401

WANTED = [{"cls": n, "text": f"text {n}"} for n in range(10)]


@pytest.mark.parametrize("compression", [None, "zstd", "zstd:7", "gz", "bz2"])
def test_all_samples_by_their_numbers(tmp_path, compression):
    data = MDSDataset(plain(tmp_path / "data", compression=compression))
    assert len(data) == 10
    assert list(data) == WANTED
    assert data[-1] == WANTED[9]
    assert data.__getitems__([7, 0, 7]) == [WANTED[7], WANTED[0], WANTED[7]]
    assert repr(data) == "MDSDataset(3 shards, 10 samples)"
    with pytest.raises(IndexError):
        data[10]


def test_a_directory_that_mosaic_has_decompressed_in(tmp_path):
    """Its cache keeps the index, and has the shards as they are; some it has not come to yet."""
    where = plain(tmp_path / "data", compression="zstd")
    plain(tmp_path / "raw")
    for number in (0, 2):
        name = f"shard.{number:05d}.mds"
        (where / name).write_bytes((tmp_path / "raw" / name).read_bytes())
        (where / f"{name}.zstd").unlink()
    assert list(MDSDataset(where)) == WANTED


def test_an_index_in_the_present_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(plain(tmp_path / "data"))
    assert list(MDSDataset("index.json")) == list(MDSDataset(".")) == WANTED


def test_the_index_or_several_directories(tmp_path):
    one, other = plain(tmp_path / "a"), plain(tmp_path / "b", (2,))
    assert list(MDSDataset(one / "index.json")) == WANTED
    assert list(MDSDataset([one, str(other)])) == WANTED + WANTED[:2]


def test_workers_share_what_was_decompressed_and_resume(tmp_path):
    data = MDSDataset(plain(tmp_path / "data", (7, 9), compression="zstd"))

    def make():
        return DataLoader(data, 6, shuffle=True, seed=1, num_workers=2)

    seen = sorted(n for batch in make() for n in batch["cls"].tolist())
    assert seen == list(range(16))
    assert_exact_resume(make)
    assert list(pickle.loads(pickle.dumps(data))) == list(data)


IMAGE = jpeg(1, 24, 32)
PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def png():
    import PIL.Image

    out = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(out, "png")
    return out.getvalue()


def several(parts, before=b""):
    sizes = np.array([len(parts), *map(len, parts)], "<u4").tobytes()
    return before + sizes + b"".join(parts)


PIL = np.array([4, 2, 3], "<u4").tobytes() + b"RGB" + PIXELS.tobytes()
FLOATS = np.array([[1.5, -2.0]], np.float32)
RGB = torch.from_numpy(PIXELS).permute(2, 0, 1)

KINDS = {
    "bytes": ("bytes", None, b"\0\xff", b"\0\xff"),
    "str": ("str", None, "ä".encode(), "ä"),
    "int": ("int", 8, np.int64(-3).tobytes(), -3),
    "json": ("json", None, b'{"a": [1, null]}', {"a": [1, None]}),
    "str_int": ("str_int", None, b"123456789012345678901", 123456789012345678901),
    "str_float": ("str_float", None, b"0.1", 0.1),
    "str_decimal": ("str_decimal", None, b"0.10", Decimal("0.10")),
    **{
        name: (
            name,
            np.dtype(name).itemsize,
            np.dtype(name).type(7).tobytes(),
            np.dtype(name).type(7),
        )
        for name in ("uint8", "int16", "uint32", "uint64", "int64", "float16", "float32", "float64")
    },
    "an array": ("ndarray", None, array(FLOATS), FLOATS),
    "an array of a type": ("ndarray:float32", None, array(FLOATS, dtype=False), FLOATS),
    "an array of a shape": ("ndarray:float32:1,2", 8, FLOATS.tobytes(), FLOATS),
    "png": ("png", None, png(), RGB),
    "pil": ("pil", None, PIL, RGB),
    "a list of png": ("list[png]", None, several([png(), png()], bytes(4)), [RGB, RGB]),
    "a list of pil": ("list[pil]", None, several([PIL], bytes(4)), [RGB]),
    "an empty list": ("list[jpeg]", None, several([], bytes(4)), []),
}


def same(one, other):
    if isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(other, (np.ndarray, np.generic)):
        return one.dtype == other.dtype and one.shape == other.shape and (one == other).all()
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_column(tmp_path, kind):
    encoding, size, raw, wanted = KINDS[kind]
    columns = [("a", "str", None), ("x", encoding, size), ("z", "int", 8)]
    row = {"a": b"before", "x": raw, "z": np.int64(5).tobytes()}
    where = write_mds(tmp_path / "data", columns, [[row, row]])
    for sample in MDSDataset(where):
        assert (sample["a"], sample["z"]) == ("before", 5)
        assert same(sample["x"], wanted)
    assert MDSDataset(where, decode=False)[1] == row
    assert MDSDataset(where, decode={"x": len})[0]["x"] == len(raw)


def test_images_are_those_of_the_decoder(tmp_path):
    columns = [("image", "jpeg", None), ("all", "jpeg_array", None)]
    row = {"image": IMAGE, "all": several([IMAGE, IMAGE])}
    where = write_mds(tmp_path / "data", columns, [[row]])
    [sample] = MDSDataset(where, size=(8, 12))
    wanted = ImageDecoder((8, 12))(IMAGE)
    assert torch.equal(sample["image"], wanted)
    assert [torch.equal(image, wanted) for image in sample["all"]] == [True, True]


def test_arrays_may_be_written_and_batches_are_collated(tmp_path):
    columns = [("x", "ndarray:float32:1,2", 8), ("y", "float32", 4)]
    row = {"x": FLOATS.tobytes(), "y": np.float32(2).tobytes()}
    data = MDSDataset(write_mds(tmp_path / "data", columns, [[row] * 4]))
    data[0]["x"][0, 0] = 9
    [batch] = DataLoader(data, 4)
    assert (batch["x"].dtype, batch["x"].shape) == (torch.float32, (4, 1, 2))
    assert (batch["y"].dtype, batch["y"].tolist()) == (torch.float32, [2.0] * 4)


# What is wrong, and what the error says.
def _edit(change):
    def edit(where):
        index = json.loads((where / "index.json").read_text())
        change(index["shards"][0], index)
        (where / "index.json").write_text(json.dumps(index))

    return edit


def _cut(where):
    path = where / "shard.00000.mds"
    path.write_bytes(path.read_bytes()[:-3])


def _other_size(shard, _index):
    shard["raw_data"]["bytes"] -= 4


WRONG = {
    "no index": (lambda where: (where / "index.json").unlink(), "there is no index.json in"),
    "no JSON": (lambda where: (where / "index.json").write_text("["), "is no index of MDS shards"),
    "a list": (lambda where: (where / "index.json").write_text("[]"), "is no index of MDS shards"),
    "an old version": (_edit(lambda s, i: i.update(version=1)), "is of version 1, and version 2"),
    "another format": (_edit(lambda s, i: s.update(format="xsv")), "of the format 'xsv'"),
    "columns of other lengths": (_edit(lambda s, i: s["column_sizes"].pop()), "is no index"),
    "a shard elsewhere": (
        _edit(lambda s, i: s["raw_data"].update(basename="../x")),
        "is not below its directory",
    ),
    "another kind": (
        _edit(lambda s, i: s.update(column_encodings=["int", "tokens"])),
        r"'text' is of the kind 'tokens', which is unknown here. Write decode=\{'text'",
    ),
    "pickles": (
        _edit(lambda s, i: s.update(column_encodings=["int", "pkl"])),
        "'text' holds pickles, which may run any code",
    ),
    "cut short": (_cut, r"has [\d,]+ bytes, and the index says [\d,]+: it was cut short"),
    "another compression": (
        _edit(
            lambda s, i: s.update(
                compression="br",
                zip_data={**s["raw_data"], "basename": "0.mds.br"},
                raw_data={**s["raw_data"], "basename": "0.mds"},
            )
        ),
        "compressed with 'br'; there are 'zstd', 'gz', 'bz2' here",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_as_it_is_opened(tmp_path, name):
    edit, message = WRONG[name]
    where = plain(tmp_path / "data")
    edit(where)
    with pytest.raises(SourceError, match=message):
        MDSDataset(where)


def test_no_directories_and_functions_for_no_column(tmp_path):
    with pytest.raises(SourceError, match="there are no directories"):
        MDSDataset([])
    with pytest.raises(OptionError, match="a function for 'x', and the columns are 'cls', 'text'"):
        MDSDataset(plain(tmp_path / "data"), decode={"x": len})
    with pytest.raises(SourceError, match="there are no samples"):
        MDSDataset(write_mds(tmp_path / "none", PLAIN, [[]]))


@pytest.mark.parametrize(
    ("at", "value"), [(0, 9), (4, 0), (4, 2**31), (8, 3), (5 * 4 + 4, 2**31), (24, 1)]
)
def test_a_damaged_head_is_said_when_the_shard_is_opened(tmp_path, at, value):
    where = plain(tmp_path / "data")
    path = where / "shard.00000.mds"
    raw = bytearray(path.read_bytes())
    raw[at : at + 4] = np.array([value], "<u4").tobytes()
    path.write_bytes(raw)
    with pytest.raises(SourceError, match=r"shard.00000.mds"):
        list(MDSDataset(where))


def test_any_damaged_byte_is_an_error_of_ours_or_another_value(tmp_path):
    columns = [("a", "ndarray", None), ("b", "list[png]", None), ("c", "json", None)]
    row = {"a": array(FLOATS), "b": several([png()], bytes(4)), "c": b'{"a": 1}'}
    where = write_mds(tmp_path / "data", columns, [[row]])
    path = where / "shard.00000.mds"
    raw = path.read_bytes()
    said = []
    for place in range(0, len(raw), 3):
        damaged = bytearray(raw)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            list(MDSDataset(where))
        except SourceError as error:
            said.append(str(error))
    assert len(said) > 20
    assert all("shard.00000.mds" in text for text in said)


def test_a_shard_that_is_not_as_long_as_the_index_says_once_decompressed(tmp_path):
    for change in (-4, 4):
        where = plain(tmp_path / f"data{change}", compression="zstd")
        index = json.loads((where / "index.json").read_text())
        index["shards"][0]["raw_data"]["bytes"] += change
        (where / "index.json").write_text(json.dumps(index))
        with pytest.raises(SourceError, match="the index says that it has"):
            MDSDataset(where)[0]


def test_a_shard_that_changed_is_said(tmp_path):
    where = plain(tmp_path / "data")
    data = MDSDataset(where)
    assert data[0] == WANTED[0]
    path = where / "shard.00000.mds"
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(SourceChangedError):
        data[1]


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("keep", [{}, {"cache_bytes": 1 << 20}])
def test_through_a_server(tmp_path, shards, web, compression, keep):  # noqa: F811
    plain(shards / "mds", compression=compression)
    data = MDSDataset(f"{web.address}/mds", cache_dir=tmp_path / "cache", shuffle_shards=2, **keep)
    assert list(data) == WANTED
    loader = DataLoader(data, 2, shuffle=True, num_workers=2, seed=0)
    assert type(loader.sampler) is GroupSampler
    assert sorted(n for batch in loader for n in batch["cls"].tolist()) == list(range(10))
    web.seen.clear()
    if compression:  # it is here, decompressed
        assert list(data) == WANTED
        assert not [request for request in web.seen if request[0] == "GET"]


def test_without_a_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert list(MDSDataset(plain(tmp_path / "data"), cache_dir=False)) == WANTED
    assert not (tmp_path / "cache").exists()
    with pytest.raises(OptionError, match="is compressed, and has to be kept decompressed"):
        MDSDataset(plain(tmp_path / "packed", compression="gz"), cache_dir=False)


def test_a_server_without_an_index(tmp_path, shards, web):  # noqa: F811
    with pytest.raises(SourceError, match=r"there is no index.json in http://"):
        MDSDataset(f"{web.address}/nothing", cache_dir=tmp_path)
