"""TarDataset: what webdataset reads, by number; decoding, damage, change, resume."""

import contextlib
import gc
import io
import json
import os
import pickle
import tarfile
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.forked import FORK, exit_code_of, limit_files

from headrace import DataLoader
from headrace.data import ImageDecoder, Subset, TarDataset, random_split
from headrace.errors import (
    OptionError,
    SampleIndexError,
    SourceChangedError,
    SourceError,
    SourceWarning,
)
from headrace.testing import assert_exact_resume

from .conftest import jpeg, samples, write_tar

wds = pytest.importorskip("webdataset")


def by_webdataset(paths):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files open
        try:
            found = list(wds.WebDataset(paths, shardshuffle=False, empty_check=False))
        finally:
            gc.collect()
    return [{k: v for k, v in s.items() if k not in ("__url__", "__local_path__")} for s in found]


def test_samples_are_those_of_webdataset(shards):
    paths = sorted(map(str, shards.glob("*.tar")))
    dataset = TarDataset(shards, decode=False)
    assert [dataset[n] for n in range(len(dataset))] == by_webdataset(paths)
    assert len(dataset) == 10


STEMS = st.sampled_from(["0", "a b", "x/1", "./y", "x/y/z", "é"])
ENDS = st.sampled_from(["txt", "cls", "seg.png", "JPG", "json"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(STEMS, st.sets(ENDS, min_size=1)), unique_by=lambda s: s[0], min_size=1))
def test_any_grouping_is_that_of_webdataset(tmp_path_factory, groups):
    path = tmp_path_factory.mktemp("grouped") / "x.tar"
    files = [(f"{stem}.{end}", f"{stem} {end}".encode()) for stem, ends in groups for end in ends]
    write_tar(path, files, tarfile.GNU_FORMAT)
    assert list(TarDataset(path, decode=False)) == by_webdataset([str(path)])


def test_what_a_writer_of_webdataset_wrote(tmp_path):
    pattern = str(tmp_path / "%02d.tar")
    with wds.ShardWriter(pattern, maxcount=4, verbose=0) as writer:
        for n in range(10):
            value = {"__key__": f"s{n}", "json": {"n": n}, "npy": np.full(3, n), "cls": n}
            writer.write(value)
    dataset = TarDataset(tmp_path)
    assert len(dataset.urls) == 3
    for n, sample in enumerate(dataset):
        assert (sample["__key__"], sample["json"], sample["cls"]) == (f"s{n}", {"n": n}, n)
        np.testing.assert_array_equal(sample["npy"], np.full(3, n))


def test_files_of_a_sample_that_lie_apart_are_one_sample(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.x", b"1"), ("b.x", b"2"), ("a.y", b"3")])
    assert list(TarDataset(path)) == [
        {"__key__": "a", "x": b"1", "y": b"3"},
        {"__key__": "b", "x": b"2"},
    ]


def test_index_from_the_end_slices_of_torch_map_and_filter(shards):
    dataset = TarDataset(shards)
    assert dataset[-1] == dataset[9]
    assert dataset.__getitems__([3, -1, 3]) == [dataset[3], dataset[9], dataset[3]]
    assert Subset(dataset, [7])[0] == dataset[7]
    assert sum(map(len, random_split(dataset, [4, 6]))) == 10
    assert dataset.map(lambda s: s["cls"])[2] == 2
    assert len(dataset.filter(lambda s: s["cls"] == 0)) == 2
    for wrong in (10, -11):
        with pytest.raises(SampleIndexError, match="10 samples"):
            dataset[wrong]
    with pytest.raises(TypeError):
        dataset["0"]


def test_decoding_by_suffix(tmp_path):
    from safetensors.torch import save

    def saved(write, *args, **kwargs):
        out = io.BytesIO()
        write(out, *args, **kwargs)
        return out.getvalue()

    tensors = {"t": torch.arange(3, dtype=torch.bfloat16)}
    picture = jpeg()
    files = {
        "jpg": picture,
        "json": b'{"a": [1]}',
        "txt": "né".encode(),
        "cls": b"12\n",
        "npy": saved(np.save, np.arange(4)),
        "npz": saved(np.savez, x=np.arange(2), y=np.zeros(1)),
        "safetensors": save(tensors),
        "left.txt": b"ends like text",
        "wav": b"RIFF",
    }
    path = write_tar(tmp_path / "x.tar", [(f"a.{end}", data) for end, data in files.items()])
    sample = TarDataset(path)[0]
    torch.testing.assert_close(sample["jpg"], ImageDecoder()(picture))
    assert sample["jpg"].shape == (3, 24, 32)
    assert sample["json"] == {"a": [1]}
    assert (sample["txt"], sample["cls"], sample["left.txt"]) == ("né", 12, "ends like text")
    np.testing.assert_array_equal(sample["npy"], np.arange(4))
    assert list(sample["npz"]) == ["x", "y"]
    torch.testing.assert_close(sample["safetensors"], tensors)
    assert sample["wav"] == b"RIFF"
    assert TarDataset(path, size=(8, 16))[0]["jpg"].shape == (3, 8, 16)
    own = TarDataset(path, decode={"jpg": ImageDecoder(size=4), "left.txt": len, "wav": len})[0]
    assert (own["jpg"].shape, own["left.txt"], own["wav"]) == ((3, 4, 4), 14, 4)
    assert own["txt"] == "né"
    plain = TarDataset(path, decode=False)[0]
    assert plain == {"__key__": "a", **files}


@pytest.mark.parametrize("end", ["pkl", "pyd", "pth", "pt", "pickle", "x.PKL"])
def test_pickles_are_refused_unless_asked_for(tmp_path, end):
    path = write_tar(tmp_path / "x.tar", [(f"a.{end}", pickle.dumps([1])), ("a.cls", b"1")])
    with pytest.raises(SourceError, match=r"x\.tar.*pickles"):
        TarDataset(path)
    assert TarDataset(path, decode=False)[0][end.lower()] == pickle.dumps([1])
    assert TarDataset(path, decode={end.lower(): pickle.loads})[0][end.lower()] == [1]


def test_an_array_of_objects_is_not_unpickled(tmp_path):
    out = io.BytesIO()
    np.save(out, np.array([{}], object), allow_pickle=True)
    path = write_tar(tmp_path / "x.tar", [("a.npy", out.getvalue())])
    with pytest.raises(SourceError, match=r"x\.tar, a\.npy at byte 512 cannot be decoded"):
        TarDataset(path)[0]


def test_what_cannot_be_decoded_names_shard_key_and_place_and_can_be_left_out(tmp_path):
    files = [("a.jpg", jpeg()), ("b.jpg", b"no image"), ("c.jpg", jpeg(1))]
    dataset = TarDataset(write_tar(tmp_path / "x.tar", files))
    with pytest.raises(SourceError, match=r"x\.tar, b\.jpg at byte [\d,]+ cannot be decoded"):
        dataset[1]
    loader = DataLoader(dataset, batch_size=3, on_error="skip")
    with pytest.warns(UserWarning, match="left 1 sample out"):
        (batch,) = loader
    assert batch["__key__"] == ["a", "c"]


def test_an_error_of_the_users_own_decoder_keeps_its_type(tmp_path):
    def fail(data):
        raise ZeroDivisionError

    dataset = TarDataset(write_tar(tmp_path / "x.tar", [("a.bin", b"")]), decode={"bin": fail})
    with pytest.raises(ZeroDivisionError) as caught:
        dataset[0]
    assert "a.bin" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    "options", [{"decode": "jpg"}, {"decode": {"jpg": 3}}, {"on_error": "ignore"}, {"size": -1}]
)
def test_options_that_cannot_be(shards, options):
    with pytest.raises(OptionError, match="Write"):
        TarDataset(shards, **options)
    with pytest.raises(OptionError):
        TarDataset(shards, decode=False, size=3)


def test_a_shard_cut_short_is_an_error_or_left_out(tmp_path):
    path = tmp_path / "x.tar"
    write_tar(path, samples(3))
    os.truncate(path, 512 * 9 + 3)
    with pytest.raises(SourceError, match=r"x\.tar is damaged: '000002\.txt' at byte 4,608.*cut"):
        TarDataset(path)
    with pytest.warns(SourceWarning) as told:
        dataset = TarDataset(path, on_error="skip")
    assert any("leaves out" in str(w.message) for w in told)
    assert len(dataset) == 2
    assert dataset.skipped[0][0] == str(path)


def test_a_damaged_header_costs_its_sample_not_the_shard(tmp_path):
    path = tmp_path / "x.tar"
    write_tar(path, [(f"{n}.txt", b"x") for n in range(4)])
    with open(path, "r+b") as file:
        file.seek(1024 + 10)
        file.write(b"!")
    with pytest.raises(SourceError, match=r"damaged: byte 1,024"):
        TarDataset(path)
    with pytest.warns(SourceWarning, match="leaves out"):
        dataset = TarDataset(path, on_error="skip")
    assert [s["__key__"] for s in dataset] == ["0", "2", "3"]


def test_a_file_that_is_there_twice_is_an_error(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.txt", b"1"), ("a.TXT", b"2")])
    with pytest.raises(SourceError, match=r"'a\.TXT'.*twice"):
        TarDataset(path)


def test_what_is_no_archive_says_what_it_is(tmp_path):
    import gzip

    (tmp_path / "text.tar").write_text("no archive " * 100)
    with pytest.raises(SourceError, match="no tar archive"):
        TarDataset(tmp_path / "text.tar")
    plain = tmp_path / "x.tar"
    write_tar(plain, [("a.txt", os.urandom(4000))])
    (tmp_path / "y.tar").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(SourceError, match=r"gzip.*gunzip"):
        TarDataset(tmp_path / "y.tar")
    write_tar(tmp_path / "e.tar", [])
    with pytest.raises(SourceError, match="no samples"):
        TarDataset(tmp_path / "e.tar")


def test_what_is_left_out_is_said(tmp_path):
    path = tmp_path / "x.tar"
    write_tar(path, [("a.txt", b"1"), ("README", b"2"), (".hidden", b"3"), ("__meta__", b"4")])
    with pytest.warns(SourceWarning, match=r"file without a suffix \(1\)"):
        assert len(TarDataset(path)) == 1
    os.truncate(path, 1024)
    with pytest.warns(SourceWarning, match="no end mark"):
        TarDataset(path)


def test_a_shard_that_changed_is_an_error(shards):
    dataset = TarDataset(shards)
    assert dataset[0]
    write_tar(shards / "000.tar", samples(5, first=100))
    with pytest.raises(SourceChangedError, match=r"000\.tar has changed"):
        dataset[0]
    assert dataset[5]["__key__"] == "000005"
    (shards / "001.tar").unlink()
    with pytest.raises(SourceChangedError, match="cannot be found"):
        dataset[5]
    assert TarDataset(shards)[0]["__key__"] == "000100"  # its index is made again


def test_an_index_is_made_once(shards, monkeypatch):
    from headrace.data.shards import index

    dataset = TarDataset(shards)
    expected = list(dataset)
    monkeypatch.setattr(index, "members_of", None)
    assert list(TarDataset(shards)) == expected


@pytest.mark.parametrize("keep", [0, 8, 70, -1])
def test_an_index_that_is_damaged_is_made_again(shards, tmp_path, keep):
    expected = list(TarDataset(shards, cache_dir=tmp_path / "kept"))
    for kept in (tmp_path / "kept").glob("*.index"):
        kept.write_bytes(kept.read_bytes()[:keep])
    assert list(TarDataset(shards, cache_dir=tmp_path / "kept")) == expected


def test_where_no_index_can_be_kept_it_is_made_in_each_process(shards, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a directory should be")
    with pytest.warns(RuntimeWarning, match="could not be kept"):
        dataset = TarDataset(shards, cache_dir=blocked)
    assert [s["cls"] for s in dataset] == [n % 7 for n in range(10)]


def test_a_disk_that_is_full_leaves_no_half_index(shards, tmp_path):
    def use():
        limit_files(100)
        with pytest.warns(RuntimeWarning, match="could not be kept"):
            assert len(list(TarDataset(shards, cache_dir=tmp_path / "kept"))) == 10

    assert exit_code_of(use) == 0
    assert not list((tmp_path / "kept").iterdir())


def leave_files(count):
    """Take all descriptors of this process but so many."""
    import resource

    top = max(map(int, os.listdir("/proc/self/fd"))) + 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (top, top))
    taken = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    for descriptor in taken[len(taken) - count :]:
        os.close(descriptor)


@pytest.mark.parametrize("left", [5, 40])
def test_more_shards_than_files_may_be_open(tmp_path, left):
    for n in range(40):
        write_tar(tmp_path / f"{n:02d}.tar", samples(2, 2 * n))

    def use():
        leave_files(left)
        dataset = TarDataset(tmp_path)
        order = np.random.default_rng(0).permutation(80).tolist()
        for _ in range(2):
            keys = [s["__key__"] for s in dataset.__getitems__(order)]
            assert keys == [f"{n:06d}" for n in order]
            assert [dataset[n]["__key__"] for n in order] == keys

    assert exit_code_of(use) == 0


def test_no_file_may_be_opened_at_all(tmp_path):
    write_tar(tmp_path / "0.tar", samples(2))
    dataset = TarDataset(tmp_path)

    def use():
        leave_files(0)
        with pytest.raises(OSError, match="Too many open files"):
            dataset[0]

    assert exit_code_of(use) == 0


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_all_samples_once_an_epoch_with_workers(shards, workers, start):
    dataset = TarDataset(shards)
    assert dataset[0]  # opened before the fork
    loader = DataLoader(
        dataset,
        batch_size=3,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context=start if workers else None,
        seed=3,
    )
    for _ in range(2):
        keys = [key for batch in loader for key in batch["__key__"]]
        assert sorted(keys) == [f"{n:06d}" for n in range(10)]


def test_a_child_reads_what_its_parent_opened(shards):
    dataset = TarDataset(shards)
    expected = list(dataset)
    children = [FORK.Process(target=_reads, args=(dataset, expected)) for _ in range(2)]
    for child in children:
        child.start()
    assert list(dataset) == expected
    for child in children:
        child.join(60)
        assert child.exitcode == 0


def _reads(dataset, expected):
    for _ in range(50):
        assert list(dataset) == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_at_every_step(shards, workers):
    def make():
        return DataLoader(
            TarDataset(shards), batch_size=3, shuffle=True, seed=1, num_workers=workers
        )

    assert_exact_resume(make)


def test_pickling_takes_the_paths(shards):
    dataset = TarDataset(shards)
    expected = list(dataset)
    sent = pickle.dumps(dataset)
    assert len(sent) < 5_000
    assert list(pickle.loads(sent)) == expected
    assert repr(dataset) == "TarDataset(3 shards, 10 samples)"


def test_json_round_trip_through_a_batch(tmp_path):
    files = [(f"{n}.json", json.dumps({"x": n}).encode()) for n in range(4)]
    loader = DataLoader(TarDataset(write_tar(tmp_path / "x.tar", files)), batch_size=4)
    (batch,) = loader
    assert batch["json"]["x"].tolist() == [0, 1, 2, 3]


def test_shuffling_some_shards_at_a_time(tmp_path):
    for n in range(8):
        write_tar(tmp_path / f"{n}.tar", samples(3 + n, 100 * n))
    full = DataLoader(TarDataset(tmp_path), 4, shuffle=True)
    assert type(full.sampler) is torch.utils.data.RandomSampler
    dataset = TarDataset(tmp_path, shuffle_shards=2)
    loader = DataLoader(dataset, 4, shuffle=True, seed=0, num_workers=2)
    assert (loader.sampler.window, list(loader.sampler.group_sizes)) == (2, list(range(3, 11)))
    keys = [key for batch in loader for key in batch["__key__"]]
    assert sorted(keys) == sorted(s["__key__"] for s in dataset)
    assert_exact_resume(lambda: DataLoader(dataset, 8, shuffle=True, seed=1))
    with pytest.raises(OptionError, match="shuffle_shards=16"):
        TarDataset(tmp_path, shuffle_shards=0)
