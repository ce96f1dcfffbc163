"""Parquet in stores and on web servers: the rows of the files, read a row group at a time."""

import pickle
import re

import numpy as np
import pytest
from tests.data.shards.servers import FileServer, put, s3_server
from torch.utils.data import Subset

from headrace import DataLoader
from headrace.data import ParquetDataset, RowGroupSampler
from headrace.errors import SourceChangedError, SourceError
from headrace.testing import assert_exact_resume

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("obstore")

S3 = {"access_key_id": "x", "secret_access_key": "hidden-secret", "region": "us-east-1"}


def write(path, first=0, rows=50, group=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = range(first, first + rows)
    table = pa.table(
        {
            "n": list(numbers),
            "text": [f"row {n}" * 50 for n in numbers],
            "wide": [np.random.default_rng(n).random(60).tolist() for n in numbers],
        }
    )
    pq.write_table(table, path, row_group_size=group)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "files/a.parquet")
    write(tmp_path / "files/b.parquet", first=50, rows=7)
    return tmp_path / "files"


@pytest.fixture
def web(folder):
    server = FileServer(str(folder))
    yield server
    server.close()


@pytest.fixture
def urls(web):
    return f"{web.address}/{{a,b}}.parquet"


@pytest.fixture(scope="module")
def endpoint():
    pytest.importorskip("moto")
    with s3_server() as address:
        yield address


def plain(dataset):
    return [
        {k: v.tolist() if hasattr(v, "tolist") else v for k, v in row.items()} for row in dataset
    ]


@pytest.mark.parametrize("cache", ["memory", "directory", False])
def test_the_rows_are_those_of_the_files(folder, urls, tmp_path, cache):
    options = {"memory": {}, "directory": {"cache_dir": tmp_path / "c"}}.get(
        cache, {"cache_dir": False, "groups_in_memory": 3}
    )
    wanted = plain(ParquetDataset([folder / "a.parquet", folder / "b.parquet"]))
    dataset = ParquetDataset(urls, **options)
    assert len(dataset) == 57
    assert plain(dataset) == wanted
    assert plain(pickle.loads(pickle.dumps(dataset))) == wanted
    loader = DataLoader(dataset, 8, num_workers=2, shuffle=True, seed=1)
    assert sorted(n for batch in loader for n in batch["n"].tolist()) == list(range(57))


def test_what_is_cached_is_not_fetched_again(urls, web, tmp_path):
    ParquetDataset(urls, cache_dir=tmp_path / "cache")
    web.seen.clear()
    assert len(plain(ParquetDataset(urls, cache_dir=tmp_path / "cache"))) == 57
    assert {method for method, _, _ in web.seen} == {"HEAD"}


def test_a_row_group_is_one_request_of_the_columns_wanted(folder, web):
    write(folder / "wide.parquet", rows=400, group=100)
    url = f"{web.address}/wide.parquet"
    dataset = ParquetDataset(url, columns=["n", "wide"], cache_dir=False)
    web.seen.clear()
    assert [dataset[n]["n"] for n in (0, 99, 350, 399)] == [0, 99, 350, 399]
    asked = [span for method, _, span in web.seen if method == "GET"]
    assert len(asked) == 2  # what is between the columns is small
    whole = (folder / "wide.parquet").stat().st_size
    assert sum(int(b) - int(a) for a, b in (s[6:].split("-") for s in asked)) < whole


def test_each_row_group_is_fetched_once_an_epoch(urls, web):
    dataset = ParquetDataset(urls, cache_dir=False, groups_in_memory=2)

    def make():
        return DataLoader(dataset, 13, shuffle=True, seed=3)

    assert type(make().sampler) is RowGroupSampler
    web.seen.clear()
    assert sorted(n for batch in make() for n in batch["n"].tolist()) == list(range(57))
    assert len([1 for method, _, _ in web.seen if method == "GET"]) == 6
    assert_exact_resume(make)
    dataset = ParquetDataset(urls, cache_dir=False, groups_in_memory=2)
    web.seen.clear()
    part = DataLoader(Subset(dataset, range(5, 55)), 13, shuffle=True, seed=3)
    assert sorted(n for batch in part for n in batch["n"].tolist()) == list(range(5, 55))
    assert len([1 for method, _, _ in web.seen if method == "GET"]) == 6


@pytest.mark.parametrize("cache", [None, False])
def test_what_may_pass_is_tried_again(folder, urls, web, cache):
    wanted = plain(ParquetDataset([folder / "a.parquet", folder / "b.parquet"]))
    web.failing = 0.2
    assert plain(ParquetDataset(urls, cache_dir=cache)) == wanted


def test_a_file_that_changes_is_said(folder, urls):
    dataset = ParquetDataset(urls, cache_dir=False)
    assert dataset[0]["n"] == 0
    write(folder / "a.parquet", first=1000, rows=60)
    with pytest.raises(SourceChangedError, match=r"a.parquet has changed since it was opened"):
        dataset[45]


def test_what_is_no_parquet_and_what_is_not_there(folder, web):
    (folder / "x.parquet").write_bytes(b"no parquet" * 50)
    with pytest.raises(SourceError, match=r"x.parquet is no Parquet file that can be read"):
        ParquetDataset(f"{web.address}/x.parquet")
    with pytest.raises(FileNotFoundError, match=r"no such object"):
        ParquetDataset(f"{web.address}/none.parquet")
    with pytest.raises(SourceError, match="a web server does not list its files"):
        ParquetDataset(web.address)


def test_a_directory_of_a_store_and_its_columns(folder, endpoint):
    put(endpoint, "tables")
    wanted = []
    for year, name in ((2020, "a"), (2021, "b")):
        path = folder / f"{name}.parquet"
        put(endpoint, f"tables/all/year={year}/{name}.parquet", path.read_bytes())
        wanted += [{**row, "year": year} for row in plain(ParquetDataset(path))]
    put(endpoint, "tables/all/_metadata/c.parquet", b"x")
    options = {"storage_options": {**S3, "endpoint": endpoint}}
    dataset = ParquetDataset("s3://tables/all", **options)
    assert plain(dataset) == wanted
    for pattern in (
        "s3://tables/all/year*/*.parquet",
        "s3://tables/all/year={2020,2021}/*.parquet",
    ):
        assert len(ParquetDataset(pattern, **options)) == 57
    put(endpoint, "tables/spark.parquet/part-0.parquet", (folder / "a.parquet").read_bytes())
    put(endpoint, "tables/spark.parquet/_SUCCESS", b"")
    assert len(ParquetDataset("s3://tables/spark.parquet", **options)) == 50
    with pytest.raises(FileNotFoundError, match="no such object"):
        ParquetDataset("s3://tables/none.parquet", **options)
    with pytest.raises(SourceError, match=r"s3://tables/none has no \.parquet files"):
        ParquetDataset("s3://tables/none", **options)
    assert "hidden-secret" not in repr(dataset._key) + repr(dataset)


def test_braces_and_patterns_of_files_here(folder):
    for pattern in ("{a,b}.parquet", "*.parquet", "[ab].parquet"):
        assert len(ParquetDataset(folder / pattern)) == 57
    with pytest.raises(FileNotFoundError, match=re.escape("c.parquet")):
        ParquetDataset(folder / "{a,c}.parquet")
