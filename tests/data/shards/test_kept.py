"""Shards of a store that are kept: once for all processes, within a bound, through real kills."""

import os
import random
import signal
import subprocess
import sys
import time
import warnings

import pytest
from tests.data.forked import FORK, exit_code_of, limit_files

from headrace import DataLoader
from headrace.data import TarDataset
from headrace.data.stores import remote
from headrace.errors import OptionError

from .test_remote import names, shards, web  # noqa: F401

pytest.importorskip("obstore")


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kept_in(cache):
    return sorted((cache / "shards").glob("*.shard"))


@pytest.fixture
def urls(shards, web):  # noqa: F811
    return [f"{web.address}/{name}" for name in names(shards)]


@pytest.fixture
def size(shards):  # noqa: F811
    return max(path.stat().st_size for path in shards.glob("*.tar"))


def test_what_was_read_is_kept_whole_and_read_there(shards, web, urls, size, tmp_path):  # noqa: F811
    options = {"cache_dir": tmp_path / "cache", "cache_bytes": 100 * size, "decode": False}
    expected = list(TarDataset(shards, decode=False))
    dataset = TarDataset(urls, **options)
    assert list(dataset) == expected
    until(lambda: len(kept_in(tmp_path / "cache")) == len(urls))
    for copy, source in zip(kept_in(tmp_path / "cache"), sorted(shards.glob("*.tar")), strict=True):
        assert copy.read_bytes() == source.read_bytes()
    web.seen.clear()
    assert list(dataset) == expected
    assert list(TarDataset(urls, **options)) == expected
    assert not [request for request in web.seen if request[0] == "GET"]


def test_a_shard_that_changed_is_another_one(shards, web, urls, size, tmp_path):  # noqa: F811
    options = {"cache_dir": tmp_path / "cache", "cache_bytes": 100 * size, "decode": False}
    first = list(TarDataset(urls[:1], **options))
    until(lambda: kept_in(tmp_path / "cache"))
    data = bytearray((shards / "000.tar").read_bytes())
    data[512] ^= 1
    (shards / "000.tar").write_bytes(data)
    assert list(TarDataset(urls[:1], **options)) != first


def test_no_more_is_kept_than_the_bound(web, urls, size, tmp_path):  # noqa: F811
    bound = 2 * size
    cache = tmp_path / "cache"
    dataset = TarDataset(urls, cache_dir=cache, cache_bytes=bound, shuffle_shards=2)
    loader = DataLoader(dataset, 2, shuffle=True, num_workers=2, seed=0)
    seen = []
    for _ in range(3):
        for batch in loader:
            seen += batch["cls"].tolist()
            assert used(cache) <= bound
    assert sorted(seen) == sorted([*range(40)] * 3)
    until(lambda: kept_in(cache))


def used(cache):
    total = 0
    for entry in os.scandir(cache / "shards") if (cache / "shards").exists() else ():
        if entry.name.endswith((".shard", ".part")):
            try:
                total += entry.stat().st_size
            except FileNotFoundError:
                continue
    return total


def test_room_is_made_of_what_it_wrote_itself_only(urls, size, tmp_path):
    cache = tmp_path / "cache"
    (cache / "shards").mkdir(parents=True)
    own = cache / "shards" / "the-only-copy.shard"
    own.write_bytes(b"x" * size)
    (cache / "shards" / "x.shard.mark").write_text("1 2 3")
    options = {"cache_dir": cache, "cache_bytes": 2 * size, "shuffle_shards": 1}
    for number in range(len(urls)):
        before = set(kept_in(cache))
        assert TarDataset(urls[number], **options)[0]
        until(lambda before=before: set(kept_in(cache)) - before)
        assert own.read_bytes() == b"x" * size
    assert len(kept_in(cache)) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_the_next_window_is_fetched_before_it_is_read(urls, size, tmp_path, workers):
    cache = tmp_path / "cache"
    options = {"cache_bytes": 100 * size, "shuffle_shards": 1, "decode": False}
    dataset = TarDataset(urls, cache_dir=cache, **options)
    assert len(urls) > 2
    loader = DataLoader(
        dataset,
        1,
        shuffle=True,
        num_workers=workers,
        seed=0,
        prefetch_factor=1 if workers else None,
    )
    batches = iter(loader)
    next(batches)
    until(lambda: len(kept_in(cache)) >= 2)
    del batches


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_without_a_cache_nothing_is_written(shards, urls, tmp_path, monkeypatch, method):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dataset = TarDataset(urls, cache_dir=False)
    expected = list(TarDataset(sorted(map(str, shards.glob("*.tar"))), cache_dir=False))
    loader = DataLoader(dataset, 4, num_workers=2, multiprocessing_context=method, collate_fn=list)
    assert [sample for batch in loader for sample in batch] == expected
    assert not (tmp_path / "cache").exists()
    with pytest.raises(OptionError, match="cache_dir=False keeps nothing, and cache_bytes=5"):
        TarDataset(urls, cache_dir=False, cache_bytes=5)


def test_what_was_fetched_meanwhile_leaves_nothing_on_its_way(tmp_path):
    from headrace.data.stores import io_process

    (tmp_path / "a.shard").write_bytes(b"whole")
    request = {"path": str(tmp_path / "a.shard"), "size": 5, "bound": 10}
    io_process._Keeper()._attempt(request, {})
    assert os.listdir(tmp_path) == ["a.shard"]


PIECES = """
import sys
from headrace.data.stores import io_process

address, path = sys.argv[1:]
[_, size, etag, _] = io_process._head(address, {})
io_process._PIECE_BYTES = 1_000
request = {"address": address, "etag": etag, "size": size, "path": path, "bound": 1 << 30}
io_process._Keeper()._attempt(request, {})
"""


def test_a_shard_of_many_pieces(shards, urls, tmp_path):  # noqa: F811
    path = tmp_path / "a.shard"
    source = sorted(shards.glob("*.tar"))[0]
    subprocess.run([sys.executable, "-c", PIECES, urls[0], str(path)], check=True, timeout=60)
    assert path.read_bytes() == source.read_bytes()
    assert source.stat().st_size > 20_000


def test_no_more_is_fetched_ahead_than_is_kept(urls, size, tmp_path):
    cache = tmp_path / "cache"
    dataset = TarDataset(urls, cache_dir=cache, cache_bytes=size, shuffle_shards=1, decode=False)
    asked = []
    dataset._kept.fetch = lambda about, stores: asked.append(about.address)
    dataset._fetch_ahead([0, 1, 2])
    assert asked == urls[:1]


def test_where_others_have_taken_the_room_nothing_is_kept(web, urls, size, tmp_path):  # noqa: F811
    folder = tmp_path / "cache" / "shards"
    folder.mkdir(parents=True)
    (folder / "of-another-program.shard").write_bytes(bytes(2 * size))
    options = {"cache_dir": tmp_path / "cache", "cache_bytes": 2 * size, "shuffle_shards": 1}
    assert TarDataset(urls[0], **options)[0]["cls"] == 0
    until(lambda: (folder / ".room.lock").exists() and not list(folder.glob("*.part")))
    assert len(kept_in(tmp_path / "cache")) == 1


def test_a_bound_below_a_window_is_an_error_with_the_number(shards, urls, tmp_path):  # noqa: F811
    needed = sum(sorted(path.stat().st_size for path in shards.glob("*.tar"))[-2:])
    options = {"cache_dir": tmp_path, "shuffle_shards": 2}
    with pytest.raises(OptionError, match=f"Write cache_bytes={needed} or more"):
        TarDataset(urls, cache_bytes=needed - 1, **options)
    TarDataset(urls, cache_bytes=needed, **options)
    with pytest.raises(OptionError, match="keeps nothing"):
        TarDataset(urls, cache_bytes=0, **options)


def test_processes_share_one_fetch(web, urls, size, tmp_path):  # noqa: F811
    options = {"cache_dir": tmp_path / "cache", "cache_bytes": 100 * size, "decode": False}
    expected = list(TarDataset(urls, cache_dir=tmp_path / "cache", decode=False))
    web.seen.clear()
    web.delay_s = 0.05
    children = [FORK.Process(target=_reads, args=(urls, options, expected)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    sizes = {f"/{url.rpartition('/')[2]}": _size(web, url) for url in urls}
    whole = [path for _, path, asked in web.seen if asked == f"bytes=0-{sizes[path] - 1}"]
    assert sorted(whole) == sorted(sizes)


def _size(web, url):  # noqa: F811
    return os.path.getsize(web.folder + "/" + url.rpartition("/")[2])


def _reads(urls, options, expected):
    dataset = TarDataset(urls, **options)
    folder = dataset._kept.folder
    assert list(dataset) == expected
    until(lambda: len(list(folder.glob("*.shard"))) == len(urls))
    assert list(dataset) == expected
    remote._at_exit()


def _reads_until_killed(urls, options, tell):
    dataset = TarDataset(urls, decode=False, **options)
    assert dataset[0]
    tell.send(remote._Beside.ours._process.pid)
    while True:
        list(dataset)


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.stress)])
def test_killed_at_any_moment_it_leaves_nothing_that_is_read(
    shards,  # noqa: F811
    web,  # noqa: F811
    urls,
    size,
    tmp_path,
    kills,
):
    cache = tmp_path / "cache"
    options = {"cache_dir": cache, "cache_bytes": 2 * size, "shuffle_shards": 2}
    sources = {path.read_bytes() for path in shards.glob("*.tar")}
    expected = list(TarDataset(urls, cache_dir=cache, decode=False))
    remote._at_exit()
    web.delay_s = 0.003
    draw = random.Random(0)
    for _ in range(kills):
        here, there = FORK.Pipe()
        child = FORK.Process(target=_reads_until_killed, args=(urls, options, there))
        child.start()
        beside = here.recv()
        time.sleep(draw.uniform(0, 0.2))  # when it is killed is a matter of chance
        for pid in draw.sample([child.pid, beside], 2):
            os.kill(pid, signal.SIGKILL)
        child.join()
        for copy in kept_in(cache):
            assert copy.read_bytes() in sources
        assert used(cache) <= 2 * size
    web.delay_s = 0
    assert list(TarDataset(urls, decode=False, **options)) == expected
    until(lambda: not list((cache / "shards").glob("*.part")))


def test_a_full_disk_falls_back_to_ranges_with_one_warning(urls, size, tmp_path):
    cache = tmp_path / "cache"
    expected = list(TarDataset(urls, cache_dir=cache))

    def use():
        remote._at_exit()
        limit_files(size // 2)
        dataset = TarDataset(urls, cache_dir=cache, cache_bytes=100 * size)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")

            def warned():
                assert list(dataset) == expected
                dataset._kept._asked.clear()
                return told

            until(warned)
            assert list(dataset) == expected
        assert [w.category for w in told] == [RuntimeWarning]
        assert "read by ranges" in str(told[0].message)
        remote._at_exit()

    assert exit_code_of(use) == 0
    assert not kept_in(cache)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_workers": 1}, {"num_workers": 2, "backend": "thread"}],
    ids=["inline", "process", "threads"],
)
def test_statistics_say_what_came_from_the_store_and_what_was_kept(
    shards,  # noqa: F811
    urls,
    size,
    tmp_path,
    options,
):
    whole = sum(path.stat().st_size for path in shards.glob("*.tar"))
    files = {"cache_dir": tmp_path / "cache", "cache_bytes": 100 * size, "decode": False}
    by_ranges = DataLoader(TarDataset(urls, decode=False, cache_dir=False), 4, **options)
    list(by_ranges)
    asked = by_ranges.statistics()
    assert 0 < asked.store_bytes <= whole
    assert asked.store_wait_s > 0
    assert asked.cache_hits == 0
    assert "from stores, waited" in str(asked)

    TarDataset(urls, **files)  # its index is no batch's
    first = DataLoader(TarDataset(urls, **files), 4, **options)
    list(first)
    until(lambda: TarDataset(urls, **files)[0] and len(kept_in(tmp_path / "cache")) == len(urls))
    second = DataLoader(TarDataset(urls, **files), 4, **options)
    list(second)
    kept = second.statistics()
    assert (kept.store_bytes, kept.cache_hits) == (0, 40)
    assert kept.store_wait_s == 0
    list(second)
    assert second.statistics().cache_hits == 80


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_fetched_ahead_counts_with_the_loader(shards, urls, size, tmp_path, workers):  # noqa: F811
    dataset = TarDataset(
        urls, cache_dir=tmp_path, cache_bytes=100 * size, shuffle_shards=2, decode=False
    )
    loader = DataLoader(dataset, 4, shuffle=True, num_workers=workers, seed=0)
    batches = iter(loader)
    next(batches)
    asked = loader.statistics().store_bytes
    until(lambda: [dataset[n] for n in range(40)] and len(kept_in(tmp_path)) == len(urls))
    if not workers:  # all of them were fetched for this process
        whole = sum(path.stat().st_size for path in shards.glob("*.tar"))
        assert loader.statistics().store_bytes >= whole
    list(batches)
    assert loader.statistics().store_bytes >= asked > 0


def test_what_is_read_beside_a_loader_is_none_of_its(urls):
    dataset = TarDataset(urls, decode=False, cache_dir=False)
    dataset[0]
    for loader in (DataLoader(list(range(10)), 2), DataLoader(dataset, 4)):
        list(loader)
        alone = loader.statistics().store_bytes
        for _ in loader:
            dataset.__getitems__(range(40))
        dataset.__getitems__(range(40))
        assert loader.statistics().store_bytes == 2 * alone
        assert ("stores" in str(loader.statistics())) == bool(alone)
