"""Shards in an object store and on a web server: real servers, forks, faults and refusals."""

import itertools
import os
import pickle
import subprocess
import sys
import time

import pytest
from tests.data.forked import FORK

from headrace import DataLoader
from headrace.cli.peek.opening import Asked, open_source
from headrace.cli.problems import CannotGoOn
from headrace.data import MDSDataset, ParquetDataset, TarDataset, write_shards
from headrace.data.shards.index import BESIDE, make_beside
from headrace.data.shards.places import Place
from headrace.data.stores import remote
from headrace.data.stores.remote import Stores
from headrace.errors import OptionError, SourceChangedError, SourceError
from headrace.testing import assert_exact_resume

from .mds import plain
from .servers import FileServer, put, s3_server

pytest.importorskip("obstore")
SECRET = "very-secret-key"


@pytest.fixture(scope="module")
def endpoint():
    pytest.importorskip("moto")
    with s3_server() as address:
        yield address


@pytest.fixture
def shards(tmp_path):
    samples = [{"__key__": f"k{n:02d}", "bin": bytes([n]) * 3_000, "cls": n} for n in range(40)]
    write_shards(samples, tmp_path / "files/{:03d}.tar", shard_bytes=50_000)
    for index in (tmp_path / "files").glob(f"*{BESIDE}"):
        index.unlink()
    return tmp_path / "files"


@pytest.fixture
def web(shards):
    server = FileServer(str(shards))
    yield server
    server.close()


@pytest.fixture
def bucket(endpoint, shards, request):
    name = f"bucket-{abs(hash(request.node.name))}"
    put(endpoint, name)
    for path in shards.glob("*.tar"):
        put(endpoint, f"{name}/train/{path.name}", path.read_bytes())
    put(endpoint, f"{name}/train/readme.txt", b"x")
    put(endpoint, f"{name}/train/deep/000.tar", (shards / "000.tar").read_bytes())
    return name


@pytest.fixture
def options(endpoint):
    return {
        "endpoint": endpoint,
        "access_key_id": "someone",
        "secret_access_key": SECRET,
        "region": "us-east-1",
    }


def names(shards):
    return sorted(path.name for path in shards.glob("*.tar"))


def test_an_object_store_has_the_samples_of_the_files(shards, bucket, options):
    expected = list(TarDataset(shards))
    count = len(names(shards))
    for address in (
        f"s3://{bucket}/train/{{000..{count - 1:03d}}}.tar",
        f"s3://{bucket}/train",
        f"s3://{bucket}/train/",
        f"s3://{bucket}/train/*.tar",
        f"s3://{bucket}/tr*/0??.tar",
        [f"s3://{bucket}/train/{name}" for name in names(shards)],
    ):
        dataset = TarDataset(address, storage_options=options)
        assert dataset.__getitems__(list(range(40))) == expected
    assert len(TarDataset(f"s3://{bucket}/**/*.tar", storage_options=options)) > 40
    with pytest.raises(SourceError, match="nothing in the store matches"):
        TarDataset(f"s3://{bucket}/train/*.zip", storage_options=options)


def test_credentials_of_the_environment_and_of_a_profile(
    shards, bucket, endpoint, options, monkeypatch, tmp_path
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    remote._at_exit()  # the process beside this one has the environment that it was started in
    assert len(TarDataset(f"s3://{bucket}/train")) == 40
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    profiles = tmp_path / "credentials"
    profiles.write_text(f"[mine]\naws_access_key_id=a\naws_secret_access_key={SECRET}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profiles))
    remote._at_exit()
    profile = {"profile": "mine", "region": "us-east-1"}
    assert len(TarDataset(f"s3://{bucket}/train", storage_options=profile)) == 40
    remote._at_exit()


def test_a_web_server_has_the_samples_of_the_files(shards, web):
    expected = list(TarDataset(shards))
    address = f"{web.address}/{{000..{len(names(shards)) - 1:03d}}}.tar"
    assert list(TarDataset(address)) == expected
    with pytest.raises(SourceError, match="does not list"):
        TarDataset(f"{web.address}/*.tar")


def test_neighbours_come_in_one_request(shards, web):
    dataset = TarDataset(f"{web.address}/000.tar", decode=False)
    web.seen.clear()
    dataset.__getitems__(list(range(8)))
    assert len([request for request in web.seen if request[0] == "GET"]) == 1


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_process_that_has_read_read_too(shards, web, start):
    dataset = TarDataset([f"{web.address}/{name}" for name in names(shards)])
    assert dataset[0]["cls"] == 0
    loader = DataLoader(
        dataset, 4, shuffle=True, num_workers=2, multiprocessing_context=start, timeout=60, seed=0
    )
    for _ in range(2):
        assert sorted(n for batch in loader for n in batch["cls"].tolist()) == list(range(40))


def test_resume_at_every_step(shards, web):
    urls = [f"{web.address}/{name}" for name in names(shards)]
    assert_exact_resume(lambda: DataLoader(TarDataset(urls), 8, shuffle=True, seed=1))


def test_shuffled_it_reads_some_shards_at_a_time(shards, web):
    urls = [f"{web.address}/{name}" for name in names(shards)]
    loader = DataLoader(TarDataset(urls, shuffle_shards=1), 4, shuffle=True, seed=0)
    web.seen.clear()
    assert sorted(n for batch in loader for n in batch["cls"].tolist()) == list(range(40))
    read = [path for _, path, _ in web.seen]
    assert len([*itertools.groupby(read)]) <= 2 * len(urls)  # a batch may lie in two
    assert TarDataset(urls).shuffle_shards == 16


def test_a_fork_takes_nothing_from_its_parent(shards, web):
    dataset = TarDataset(f"{web.address}/000.tar")
    expected = list(dataset)
    children = [FORK.Process(target=_reads, args=(dataset, expected)) for _ in range(2)]
    for child in children:
        child.start()
    assert list(dataset) == expected
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert list(dataset) == expected


def _reads(dataset, expected):
    for _ in range(5):
        assert list(dataset) == expected
    remote._at_exit()


def test_the_process_beside_ends_with_its_own_however_that_ends(shards, web, tmp_path):
    program = (
        "import os, signal, sys\n"
        "from headrace.data import TarDataset\n"
        "from headrace.data.stores.remote import _Beside\n"
        f"TarDataset({web.address + '/000.tar'!r}, cache_dir={str(tmp_path)!r})[0]\n"
        "print(_Beside.ours._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    beside = int(done.stdout)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and os.path.exists(f"/proc/{beside}"):
        if b") Z " in open_bytes(f"/proc/{beside}/stat"):  # gone, and its new parent has not looked
            break
        time.sleep(0.01)
    else:
        assert not os.path.exists(f"/proc/{beside}")


def open_bytes(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b") Z "


def test_the_process_beside_is_started_again_when_it_was_killed(shards, web):
    dataset = TarDataset(f"{web.address}/000.tar")
    assert dataset[0]["cls"] == 0
    remote._Beside.ours._process.kill()
    remote._Beside.ours._process.wait()
    assert dataset[1]["cls"] == 1


def test_what_may_pass_is_tried_again(shards, web):
    urls = [f"{web.address}/{name}" for name in names(shards)]
    expected = list(TarDataset(shards))
    web.failing, web.delay_s = 0.2, 0.002
    dataset = TarDataset(urls)
    loader = DataLoader(dataset, 4, num_workers=2, timeout=110)
    assert [n for batch in loader for n in batch["cls"].tolist()] == list(range(40))
    assert dataset.__getitems__(list(range(40))) == expected


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (404, FileNotFoundError, "no such object: check the bucket, the path"),
        (403, PermissionError, "access is refused: check the credentials"),
        (401, PermissionError, "access is refused"),
    ],
)
def test_what_will_not_pass_is_an_error_at_once(shards, web, status, kind, said):
    dataset = TarDataset(f"{web.address}/000.tar")
    web.answer = status
    web.seen.clear()
    with pytest.raises(kind, match=said) as caught:
        dataset[0]
    assert len(web.seen) == 1
    assert f"{web.address}/000.tar" in str(caught.value)


def test_a_server_without_ranges_is_named(shards, web):
    dataset = TarDataset(f"{web.address}/000.tar")
    web.ranges = False
    with pytest.raises(SourceError, match="cannot be read by ranges"):
        dataset[0]


@pytest.mark.parametrize("etags", [True, False])
def test_an_object_that_changed_is_an_error(shards, web, etags):
    web.etags = etags
    os.utime(shards / "000.tar", (1_000, 1_000))
    dataset = TarDataset(f"{web.address}/000.tar", decode=False)
    path = shards / "000.tar"
    data = path.read_bytes()
    path.write_bytes(data[:2_000] + b"\1" + data[2_001:])  # of the same size
    with pytest.raises(SourceChangedError, match=r"000\.tar has changed"):
        dataset[0]
    path.write_bytes(data + bytes(512))
    with pytest.raises(SourceChangedError, match="000"):
        dataset[0]


def test_an_index_beside_a_shard_in_a_store_is_read(shards, bucket, options, monkeypatch, tmp_path):
    stores = Stores(options)
    address = f"s3://{bucket}/train/000.tar"
    (about,) = stores.look([address])
    assert make_beside(Place.remote(about), stores)
    assert not make_beside(Place.remote(about), stores)
    from headrace.data.shards import index

    monkeypatch.setattr(index, "members_of", None)
    fresh = TarDataset(address, storage_options=options, cache_dir=tmp_path / "fresh")
    assert fresh[0]["cls"] == 0


def test_credentials_are_in_no_error_name_or_state(shards, web, bucket, options, tmp_path):
    cache = tmp_path / "cache"
    dataset = TarDataset(f"s3://{bucket}/train", storage_options=options, cache_dir=cache)
    loader = DataLoader(dataset, 4, shuffle=True, seed=0)
    next(iter(loader))
    said = [repr(dataset), repr(dataset._stores), dataset._identity(), str(loader.state_dict())]
    said += [*map(str, cache.iterdir()), *(path.read_text("latin-1") for path in cache.iterdir())]
    wrong = {**options, "endpoint": f"http://{SECRET}.invalid"}
    with pytest.raises(OSError) as caught:
        TarDataset(f"s3://{bucket}/train/000.tar", storage_options=wrong)
    said.append(str(caught.value))
    signed = f"{web.address.replace('http://', f'http://me:{SECRET}@')}/nothing.tar"
    with pytest.raises((OSError, SourceError)) as caught:
        TarDataset(signed)
    said.append(str(caught.value))
    assert not [text for text in said if SECRET in text]


def test_pickled_for_a_worker_the_options_go_along(bucket, options, shards):
    dataset = TarDataset(f"s3://{bucket}/train", storage_options=options)
    assert pickle.loads(pickle.dumps(dataset))[3]["cls"] == 3


def _samples(count):
    return [{"__key__": f"k{n:02d}", "bin": bytes([n]) * 3_000, "cls": n} for n in range(count)]


def test_shards_are_written_to_a_store_and_gone_on_with(endpoint, options, tmp_path):
    put(endpoint, "written")
    out = "s3://written/train/{:03d}.tar"
    ways = {"shard_bytes": 30_000, "storage_options": options}
    here = write_shards(_samples(20), tmp_path / "{:03d}.tar", shard_bytes=30_000)
    assert len(here) > 2
    first = write_shards(_samples(12), out, **ways)
    with pytest.raises(FileExistsError, match=r"s3://written/train/000\.tar is there already"):
        write_shards(_samples(20), out, **ways)
    put(endpoint, first[-1].removeprefix("s3://"), method="DELETE")  # as a run that was killed
    paths = write_shards(_samples(20), out, resume=True, **ways)
    assert [os.path.basename(path) for path in paths] == [os.path.basename(p) for p in here]
    stores = Stores(options)
    for about, local in zip(stores.look(paths), here, strict=True):
        with open(local, "rb") as file:
            assert stores.read([(about, 0, about.size_bytes)]) == [file.read()]
    data = TarDataset(
        "s3://written/train", cache_dir=tmp_path / "cache", decode=False, storage_options=options
    )
    assert [sample["__key__"] for sample in data] == [s["__key__"] for s in _samples(20)]


def test_no_shards_are_written_to_a_web_server(web):
    with pytest.raises(OptionError, match=r"is no place to write shards to\. Write a directory"):
        write_shards(_samples(2), f"{web.address}/{{:03d}}.tar")


def test_what_lies_at_an_address_is_found(endpoint, options, monkeypatch, tmp_path):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    put(endpoint, "found")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for name in ("access_key_id", "secret_access_key", "region"):
        monkeypatch.setenv(f"AWS_{name.upper()}", options[name])
    remote._at_exit()  # the process beside this one has the environment that it was started in
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "a.parquet")
    write_shards(_samples(2), tmp_path / "{}.tar")
    names = {"tables/year=1/a.parquet": "a.parquet", "tars/0.tar": "0.tar"}
    for path in plain(tmp_path / "mds").iterdir():
        names[f"mds/{path.name}"] = f"mds/{path.name}"
    for name, path in names.items():
        put(endpoint, f"found/{name}", (tmp_path / path).read_bytes())
    for address, kind in {
        "tables": ParquetDataset,
        "tables/year=1/a.parquet": ParquetDataset,
        "tars": TarDataset,
        "tars/0.tar": TarDataset,
        "mds": MDSDataset,
    }.items():
        assert type(open_source(Asked(f"s3://found/{address}")).dataset) is kind
    with pytest.raises(CannotGoOn, match="nothing in the store matches"):
        open_source(Asked("s3://found/none"))


def test_the_commands_take_addresses(endpoint, options, tmp_path, monkeypatch):
    put(endpoint, "commands")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for name in ("access_key_id", "secret_access_key", "region"):
        monkeypatch.setenv(f"AWS_{name.upper()}", options[name])
    for number in range(6):
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / f"files/{number}.txt").write_text(f"text {number}")

    def run(*words):
        done = subprocess.run(
            [sys.executable, "-m", "headrace.cli", *words], capture_output=True, text=True,
            timeout=100, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    code, said = run("shards", "pack", str(tmp_path / "files"), "s3://commands/train")
    assert (code, said.splitlines()[-1].startswith("1 shards")) == (0, True), said
    assert "s3://commands/train/00000.tar" in said
    code, said = run("peek", "s3://commands/train")
    assert code == 0, said
    assert "text 0" in said
    code, said = run("shards", "index", "s3://commands/train")
    assert "0 indexes written, 1 were there" in said
    code, said = run("shards", "pack", str(tmp_path / "files"), "s3://commands/train")
    assert code == 1
    assert "is there already" in said
