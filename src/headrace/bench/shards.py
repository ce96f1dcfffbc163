"""``headrace bench shards``: JPEGs in tar shards, on this machine and in an object store."""

import http.client
import mmap
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch

from headrace import DataLoader
from headrace.bench.harness import (
    Report,
    Row,
    Say,
    Size,
    System,
    Target,
    at_least,
    at_most,
    environment,
    in_turn,
    ratios,
    spread,
)
from headrace.data import ImageDecoder, TarDataset, write_shards
from headrace.extras import import_extra

OURS, WEBDATASET, FILES = "headrace", "webdataset", "torch, unpacked files"
LIMIT, BARE, SERVER = "slices of the mapped files", "a bare decoding loop", "the server's ranges"
KEPT = "headrace, shards kept on disk"
FIRST = "headrace, a first epoch that keeps them"
_BATCH = 64
_SHARDS = 8
_AT_ONCE = 16  # requests, of headrace and of the yardstick
_SIDE = 224

_MEANING = (
    "JPEGs of about 100 KB with a class each, in 8 tar shards; batches of 64, not collated",
    "webdataset reads in order, as it is fastest; all others are shuffled in full",
    "the limit copies the same bytes out of mapped files that are in memory",
    "S3: moto's server, a process of Python on this machine; webdataset reads through curl; the "
    f"yardstick asks for the same ranges over {_AT_ONCE} open connections",
)


def measure(size: Size, say: Say) -> Report:
    """Measure all rows; takes some minutes, and half a minute when quick."""
    where = environment()
    import_extra("webdataset", "bench")
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as directory:
        count = size.choose(2_000, 256)
        say(f"writing {count:,} JPEGs of about 100 KB")
        data = _Data(Path(directory), count)
        rows = [_index(data, size, say), *_raw(data, size, say), _decoded(data, size, say)]
        rows += _store(data, size, say)
    return Report("shards", _MEANING, tuple(rows), size, where)


class _Data:
    """The shards, the same files unpacked, and where each JPEG lies in its shard."""

    def __init__(self, root: Path, count: int) -> None:
        self.cache = root / "cache"
        samples = list(_samples(min(count, 100)))
        several = ({**samples[n % len(samples)], "__key__": f"{n:06d}"} for n in range(count))
        total = sum(len(samples[n % len(samples)]["jpg"]) + 2_048 for n in range(count))
        pattern = root / "shards/{:03d}.tar"
        self.paths = write_shards(several, pattern, shard_bytes=total // _SHARDS + 200_000)
        self.files = []
        for path in self.paths:
            with tarfile.open(path) as archive:
                archive.extractall(root / "files", filter="data")
        self.files = sorted(map(str, (root / "files").glob("*.jpg")))
        self.dataset = TarDataset(self.paths, decode=False, cache_dir=self.cache)
        self.places: list[tuple[int, int, int]] = []
        for number, path in enumerate(self.paths):
            with tarfile.open(path) as archive:
                members = [m for m in archive if m.name.endswith(".jpg")]
            self.places += [(number, m.offset_data, m.size) for m in members]


def _samples(count: int) -> Iterator[dict[str, Any]]:
    photographs = import_extra("sklearn.datasets", "demo").load_sample_images().images
    pillow = import_extra("PIL.Image", "images")
    for number in range(count):
        rows = np.roll(photographs[number % 2], 7 * number, axis=1)
        image = pillow.fromarray(rows)
        with tempfile.TemporaryFile() as file:
            image.save(file, "JPEG", quality=92)
            file.seek(0)
            yield {"jpg": file.read(), "cls": number % 10}


def _rate(batches: Callable[[], Iterator[Any]]) -> float:
    """Return samples a second of an epoch, from making the iterator on."""
    started = time.perf_counter()
    seen = sum(len(batch) for batch in batches())
    return seen / (time.perf_counter() - started)


def _row(work: str, above: str, below: str, rates: dict[str, list[float]], target: Target) -> Row:
    systems = tuple(System(n, spread(rates[n]), "samples/s") for n in (above, below))
    value = ratios(rates[above], rates[below])
    return Row(work, f"samples/s, {above} / {below}", value, "x", target, systems)


def _index(data: _Data, size: Size, say: Say) -> Row:
    say("making the index, beside tarfile")
    total = sum(map(os.path.getsize, data.paths)) / 1e9

    def ours() -> float:
        with tempfile.TemporaryDirectory() as fresh:
            bare = [shutil.copy(path, fresh) for path in data.paths]  # without an index beside
            started = time.perf_counter()
            TarDataset(bare, decode=False, cache_dir=Path(fresh) / "cache")
            return (time.perf_counter() - started) / total

    def theirs() -> float:
        started = time.perf_counter()
        for path in data.paths:
            with tarfile.open(path) as archive:
                _ = [(m.name, m.offset_data, m.size) for m in archive]
        return (time.perf_counter() - started) / total

    times = in_turn({OURS: ours, "tarfile": theirs}, size.rounds)
    systems = tuple(System(name, spread(of), "s") for name, of in times.items())
    value = spread(times[OURS])
    return Row("an index of 1 GB of such shards", "seconds", value, "s", at_most(1.5), systems)


class _Files(torch.utils.data.Dataset[Any]):
    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> bytes:
        return Path(self._paths[index]).read_bytes()


def _web(urls: Sequence[str], workers: int) -> Iterator[Any]:
    webdataset = import_extra("webdataset", "bench")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # files that it leaves open
        dataset = webdataset.WebDataset(list(urls), shardshuffle=False).batched(
            _BATCH, collation_fn=list
        )
        yield from torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers)


def _mapped(data: _Data) -> Iterator[Any]:
    order = list(data.places)
    random.shuffle(order)
    maps = []
    for path in data.paths:
        with open(path, "rb") as file:
            maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    for first in range(0, len(order), _BATCH):
        yield [maps[n][at : at + count] for n, at, count in order[first : first + _BATCH]]


def _raw(data: _Data, size: Size, say: Say) -> Iterator[Row]:
    for workers in (0, 2):
        say(f"raw bytes, {workers} workers")
        options: dict[str, Any] = {"num_workers": workers, "shuffle": True, "collate_fn": list}
        ours = DataLoader(data.dataset, _BATCH, **options)
        files = torch.utils.data.DataLoader(_Files(data.files), _BATCH, **options)
        runs: dict[str, Callable[[], float]] = {
            OURS: partial(_rate, partial(iter, ours)),
            WEBDATASET: partial(_rate, partial(_web, data.paths, workers)),
            FILES: partial(_rate, partial(iter, files)),
            LIMIT: partial(_rate, partial(_mapped, data)),
        }
        rates = in_turn(runs, size.rounds)
        work = f"raw bytes, {'1 process' if not workers else '2 workers'}"
        yield _row(work, OURS, WEBDATASET, rates, at_least(5.0))
        yield _row(work, OURS, FILES, rates, at_least(1.0))
        if not workers:
            yield _row(work, OURS, LIMIT, rates, at_least(0.8))


def _decoded(data: _Data, size: Size, say: Say) -> Row:
    say("decoded, 1 process")
    dataset = TarDataset(data.paths, size=_SIDE, cache_dir=data.cache)
    loader = DataLoader(dataset, _BATCH, shuffle=True, collate_fn=list)
    decoder = ImageDecoder(_SIDE)

    def bare() -> Iterator[Any]:
        for batch in _mapped(data):
            yield [decoder(jpeg) for jpeg in batch]

    rates = in_turn(
        {OURS: partial(_rate, partial(iter, loader)), BARE: partial(_rate, bare)}, size.rounds
    )
    return _row(f"decoded to {_SIDE}x{_SIDE}, 1 process", OURS, BARE, rates, at_least(0.95))


_SERVER = """
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
app = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextmanager
def _server(paths: Sequence[str]) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        endpoint = f"http://127.0.0.1:{int(process.stdout.readline())}"
        _put(f"{endpoint}/bench", b"")
        for path in paths:
            _put(f"{endpoint}/bench/{os.path.basename(path)}", Path(path).read_bytes())
        yield endpoint
    finally:
        process.kill()
        process.communicate()


def _put(url: str, data: bytes) -> None:
    request = urllib.request.Request(url, data=data, method="PUT")
    request.add_header("Content-Type", "application/octet-stream")
    request.add_header("x-amz-acl", "public-read")  # for those that send no credentials
    request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4")
    with urllib.request.urlopen(request):
        pass


def _ranges(endpoint: str, data: _Data) -> Iterator[Any]:
    """Ask for each sample by its range, over as many connections as headrace has."""
    host = urlsplit(endpoint).netloc
    names = [os.path.basename(path) for path in data.paths]
    order = list(data.places)
    random.shuffle(order)

    def ask(part: int) -> list[int]:
        connection = http.client.HTTPConnection(host)
        sizes = []
        for number, at, count in order[part::_AT_ONCE]:
            headers = {"Range": f"bytes={at}-{at + count - 1}"}
            connection.request("GET", f"/bench/{names[number]}", headers=headers)
            answer = connection.getresponse()
            assert answer.status == http.HTTPStatus.PARTIAL_CONTENT, answer.status
            sizes.append(len(answer.read()))
        connection.close()
        return sizes

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from pool.map(ask, range(_AT_ONCE))


def _store(data: _Data, size: Size, say: Say) -> Iterator[Row]:
    if shutil.which("curl") is None:
        say("left out, for want of curl: the object store")
        return
    import_extra("moto", "bench")
    with _server(data.paths) as endpoint:
        names = [os.path.basename(path) for path in data.paths]
        options = {
            "endpoint": endpoint,
            "access_key_id": "bench",
            "secret_access_key": "bench",
            "region": "us-east-1",
        }
        addresses = [f"s3://bench/{name}" for name in names]
        dataset = TarDataset(addresses, decode=False, cache_dir=data.cache, storage_options=options)
        kept = TarDataset(
            addresses,
            decode=False,
            cache_dir=data.cache,
            storage_options=options,
            cache_bytes=1 << 40,
        )
        _wait_until_kept(kept, len(addresses), data.cache)
        curl = [f"pipe:curl -s -f -L {endpoint}/bench/{name}" for name in names]
        for workers in (0, 2):
            say(f"an object store, {workers} workers")
            loader = DataLoader(dataset, _BATCH, shuffle=True, num_workers=workers, collate_fn=list)
            later = DataLoader(kept, _BATCH, shuffle=True, num_workers=workers, collate_fn=list)
            rates = in_turn(
                {
                    OURS: partial(_rate, partial(iter, loader)),
                    FIRST: partial(_first_epoch, addresses, options, workers),
                    KEPT: partial(_rate, partial(iter, later)),
                    WEBDATASET: partial(_rate, partial(_web, curl, workers)),
                    SERVER: partial(_rate, partial(_ranges, endpoint, data)),
                },
                size.rounds,
            )
            work = f"S3, raw bytes, {'1 process' if not workers else '2 workers'}"
            yield _row(work, OURS, WEBDATASET, rates, at_least(1.5))
            yield _row(work, OURS, SERVER, rates, at_least(0.8))
            yield _row(work, FIRST, WEBDATASET, rates, at_least(1.0))
            yield _row(work, KEPT, WEBDATASET, rates, at_least(1.5))


def _first_epoch(addresses: Sequence[str], options: dict[str, Any], workers: int) -> float:
    """Return the rate of an epoch that begins with indexes, and with no shard."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as fresh:
        dataset = TarDataset(
            addresses, decode=False, cache_dir=fresh, storage_options=options, cache_bytes=1 << 40
        )
        loader = DataLoader(dataset, _BATCH, shuffle=True, num_workers=workers, collate_fn=list)
        rate = _rate(partial(iter, loader))
        _until_kept(len(addresses), Path(fresh))  # what is on its way is in the way of the next one
        return rate


def _wait_until_kept(dataset: TarDataset, count: int, cache: Path) -> None:
    """Read once of each shard, and wait until all of them are kept."""
    for index in range(0, len(dataset), 8):
        _ = dataset[index]
    _until_kept(count, cache)


def _until_kept(count: int, cache: Path) -> None:
    while len(list((cache / "shards").glob("*.shard"))) < count:
        time.sleep(0.01)
