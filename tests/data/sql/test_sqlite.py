"""Rows of SQLite files: by keys, and all of them; what is odd in queries, keys and values."""

import os
import pickle
import sqlite3
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import Subset, random_split

from data.sql.conftest import QUERY, ROWS
from headrace import DataLoader
from headrace.data import SQLDataset
from headrace.errors import (
    ArrayTypeError,
    MissingColumnError,
    OptionError,
    OptionTypeError,
    SourceChangedError,
    SourceError,
)
from headrace.testing import assert_exact_resume
from processes import Forked

KEYS = [7 * i - 350 for i in range(ROWS)]


def plain(dataset: Any) -> list[dict[str, Any]]:
    rows = dataset.__getitems__(range(len(dataset)))
    return [{k: v.tolist() if hasattr(v, "tolist") else v for k, v in r.items()} for r in rows]


def of_sqlite3(path: Path, query: str, *parameters: Any) -> list[dict[str, Any]]:
    """The rows as Python's own module reads them; the prices are numbers of one type."""
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    rows = [dict(row) for row in connection.execute(query, parameters)]
    connection.close()
    for row in rows:
        row.update({k: float(v) for k, v in row.items() if k == "price"})
    return rows


def change(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def ids(loader: Any) -> list[int]:
    return [number for batch in loader for number in batch["id"].tolist()]


def links_of_descriptors() -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return found


@pytest.mark.parametrize("key", [None, "id", "name"])
def test_rows_are_those_of_the_query(samples: Path, key: str | None) -> None:
    order = f" ORDER BY {key}" if key else ""
    for dataset in (
        SQLDataset(f"sqlite:///{samples}", QUERY, key=key),
        SQLDataset(samples, f"{QUERY};\n", key=key),
    ):
        assert len(dataset) == ROWS
        assert plain(dataset) == of_sqlite3(samples, QUERY + order)
        assert plain(pickle.loads(pickle.dumps(dataset))) == plain(dataset)
        assert dataset.column_names == ("id", "x", "price", "name", "photo", "day")
        assert dataset[-1]["id"].dtype == np.int64
        assert dataset[5]["price"].dtype == np.float64


@pytest.mark.parametrize("key", [None, "id"])
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(indices=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=70), size=st.integers(1, 40))
def test_batches_are_those_of_torch_over_the_rows(
    samples: Path, key: str | None, indices: list[int], size: int
) -> None:
    rows = of_sqlite3(samples, f"{QUERY} ORDER BY id")
    wanted = list(TorchLoader(rows, size, sampler=indices))  # type: ignore[arg-type]
    dataset = SQLDataset(samples, QUERY, key=key)
    got = list(DataLoader(dataset, size, sampler=indices))
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        assert a["photo"] == b["photo"]
        assert (a["name"], a["day"]) == (b["name"], b["day"])
        assert all(torch.equal(a[name], b[name]) for name in ("id", "x", "price"))


def test_the_order_of_a_query_is_kept_without_a_key_and_that_of_keys_with_one(
    samples: Path,
) -> None:
    query = f"{QUERY} ORDER BY x DESC"
    assert [int(row["id"]) for row in SQLDataset(samples, query)] == KEYS[::-1]
    assert [int(row["id"]) for row in SQLDataset(samples, query, key="id")] == KEYS


@pytest.mark.parametrize(
    "query",
    [
        "WITH some AS (SELECT * FROM samples WHERE id > 0) SELECT id, x FROM some",
        "SELECT id, x FROM samples WHERE id > 0 -- those",
        "SELECT id, x FROM samples WHERE id > 0 ORDER BY id LIMIT 30",
        "SELECT max(id) AS id, sum(x) AS x FROM samples GROUP BY id % 5",
        'SELECT id, x AS "a ""b"" c ?" FROM samples',
        "VALUES (3, 1.5), (1, 2.5)",
    ],
)
def test_queries_of_all_forms(samples: Path, query: str) -> None:
    rows = of_sqlite3(samples, query)
    assert plain(SQLDataset(samples, query)) == rows
    key = next(iter(rows[0]))
    by_key = sorted(rows, key=lambda row: row[key])
    assert plain(SQLDataset(samples, query, key=key)) == by_key


@pytest.mark.parametrize("key", [None, "id"])
def test_parameters_are_bound(samples: Path, key: str | None) -> None:
    query = "SELECT id, name FROM samples WHERE id > ? AND name <> ?"
    odd = "'; DROP TABLE samples; --"
    dataset = SQLDataset(samples, query, key=key, parameters=[0, odd])
    assert plain(dataset) == of_sqlite3(samples, query, 0, odd)
    with pytest.raises(SourceError, match=r"expected 2 but found 0\. Write parameters=\["):
        SQLDataset(samples, query, key=key)
    with pytest.raises(OptionTypeError, match="a list of values in the order"):
        SQLDataset(samples, query, key=key, parameters={"a": 1})  # type: ignore[arg-type]
    with pytest.raises(OptionTypeError, match="parameter 2 is a object"):
        SQLDataset(samples, query, key=key, parameters=[1, object()])


@pytest.mark.parametrize("key", [None, "id"])
def test_no_rows(samples: Path, key: str | None) -> None:
    dataset = SQLDataset(samples, f"{QUERY} WHERE 0", key=key)
    assert len(dataset) == 0
    assert list(DataLoader(dataset, 4)) == []


@pytest.mark.parametrize("key", [None, "id"])
def test_a_missing_value_is_an_error_that_names_its_row_or_is_replaced(
    samples: Path, key: str | None
) -> None:
    query = "SELECT id, note, nullif(id, 0) AS n, nullif(x, 1.0) AS f, NULL AS none FROM samples"
    with pytest.raises(SourceError, match=r"row 20, column 'note': a value is missing\. Write"):
        SQLDataset(samples, "SELECT id, note FROM samples", key=key)[20]
    dataset = SQLDataset(samples, query, key=key, missing=-1)
    assert dataset[20] == {"id": -210, "note": "", "n": -210, "f": 20 / 3, "none": -1.0}
    assert (dataset[50]["n"], dataset[3]["f"]) == (-1, -1.0)
    assert dataset[3]["n"].dtype == np.int64
    late = written_late(samples)
    assert SQLDataset(late, "SELECT * FROM late", missing=0, key=key)[1999]["text"] == "there"


def written_late(path: Path) -> Path:
    """A column whose first values, more than a driver looks at, are all missing."""
    rows = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 1999)"
    change(
        path,
        f"CREATE TABLE late AS {rows} SELECT i AS id, iif(i < 1500, NULL, 'there') AS text FROM n",
    )
    return path


@pytest.mark.parametrize("key", [None, "id"])
def test_values_of_several_types_are_an_error_with_the_line(samples: Path, key: str | None) -> None:
    with pytest.raises(SourceError, match=r"'mixed' has values of several types: integer and text"):
        SQLDataset(samples, "SELECT id, mixed FROM samples", key=key)
    text = SQLDataset(samples, "SELECT id, CAST(mixed AS TEXT) AS mixed FROM samples", key=key)
    assert (text[0]["mixed"], text[199]["mixed"]) == ("0", "text")


@pytest.mark.parametrize(
    ("query", "key", "kind", "text"),
    [
        (
            "SELECT id, x FROM samples",
            "di",
            MissingColumnError,
            "no column 'di'. It has: 'id', 'x'",
        ),
        (
            "SELECT id, day FROM samples",
            "day",
            SourceError,
            r"not unique: 8 rows have '2020-01-01'",
        ),
        (
            "SELECT id, note FROM samples",
            "note",
            SourceError,
            "2 of 200 keys in 'note' are missing",
        ),
        ("SELECT x FROM samples", "x", ArrayTypeError, r"CAST\(\"x\" AS text\)"),
        ("SELECT mixed FROM samples", "mixed", SourceError, "several types"),
        ("SELECT id, x AS id FROM samples", "id", SourceError, "columns of the query are called"),
        ("SELECT id FROM smaples", None, SourceError, "no such table: smaples"),
        ("SELEC id FROM samples", None, SourceError, "syntax error"),
        ("DELETE FROM samples", None, SourceError, "syntax error"),
        ("SELECT 1 AS a; DROP TABLE samples", None, SourceError, "syntax error"),
        ("samples", None, OptionError, r"Write 'SELECT \* FROM samples'"),
        (" ; ", None, OptionError, "the query is empty"),
        (b"SELECT 1", None, OptionTypeError, "a text of SQL, got bytes"),
        ("SELECT 1 AS id", 0, OptionTypeError, "Write key='id'"),
    ],
)
def test_what_cannot_be_read_says_what_to_write(
    samples: Path, query: Any, key: Any, kind: type[Exception], text: str
) -> None:
    before = samples.read_bytes()
    with pytest.raises(kind, match=text):
        SQLDataset(samples, query, key=key)
    assert samples.read_bytes() == before


def test_keys_of_other_types(samples: Path) -> None:
    query = "SELECT id, CAST('key ' || id AS BLOB) AS b, 'Key ' || id AS t FROM samples"
    for key in ("b", "t"):
        rows = sorted(of_sqlite3(samples, query), key=lambda row: row[key])
        dataset = SQLDataset(samples, query, key=key)
        assert plain(dataset) == rows
        assert [int(row["id"]) for row in dataset.__getitems__([9, 2, 9])] == [
            rows[n]["id"] for n in (9, 2, 9)
        ]


def test_keys_that_are_equal_to_the_database_only_are_two(written: Any) -> None:
    path = written(
        "CREATE TABLE t (k TEXT COLLATE NOCASE, n INTEGER)",
        "INSERT INTO t VALUES ('a', 1), ('A', 2)",
    )
    assert plain(SQLDataset(path, "SELECT * FROM t", key="k")) == [
        {"k": "A", "n": 2},
        {"k": "a", "n": 1},
    ]


def test_more_rows_than_a_statement_takes_parameters(written: Any) -> None:
    rows = 25_000
    path = written(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER)",
        ("INSERT INTO t VALUES (?, ?)", [(n, n * n) for n in range(rows)]),
    )
    batch = next(iter(DataLoader(SQLDataset(path, "SELECT * FROM t", key="id"), rows)))
    assert torch.equal(batch["v"], torch.arange(rows) ** 2)


class TestLoaders:
    @pytest.mark.parametrize(
        "options",
        [
            {"num_workers": 2},
            {"num_workers": 2, "persistent_workers": True},
            {"num_workers": 2, "backend": "thread"},
        ],
    )
    @pytest.mark.parametrize("key", [None, "id"])
    def test_workers_read_the_same(
        self, samples: Path, key: str | None, options: dict[str, Any]
    ) -> None:
        dataset = SQLDataset(samples, QUERY, key=key)
        wanted = ids(DataLoader(dataset, 16, shuffle=True, seed=1))  # opens a connection here
        loader = DataLoader(dataset, 16, shuffle=True, seed=1, **options)
        assert ids(loader) == wanted
        assert sorted(ids(loader)) == KEYS
        assert ids(DataLoader(dataset, 16)) == KEYS

    def test_spawned_workers_open_connections_of_their_own(self, samples: Path) -> None:
        dataset = SQLDataset(samples, QUERY, key="id")
        options = {"num_workers": 1, "multiprocessing_context": "spawn"}
        assert ids(DataLoader(dataset, 32, **options)) == KEYS

    def test_parts(self, samples: Path) -> None:
        dataset = SQLDataset(samples, QUERY, key="id")
        parts = random_split(dataset, [150, 50], torch.Generator().manual_seed(0))
        assert sorted(ids(DataLoader(parts[0], 16)) + ids(DataLoader(parts[1], 16))) == KEYS
        assert ids(DataLoader(Subset(dataset, [5, 3]), 2)) == [KEYS[5], KEYS[3]]
        doubled = dataset.map(lambda row: {**row, "id": row["id"] * 2})
        assert ids(DataLoader(doubled, 50)) == [2 * key for key in KEYS]

    @pytest.mark.parametrize("key", [None, "id"])
    def test_a_new_process_resumes_in_the_middle(self, samples: Path, key: str | None) -> None:
        query = f"{QUERY} WHERE id < -300"
        assert_exact_resume(
            lambda: DataLoader(SQLDataset(samples, query, key=key), 3, shuffle=True, seed=1)
        )

    def test_a_child_reads_beside_its_parent(self, samples: Path, fork: Any) -> None:
        dataset = SQLDataset(samples, QUERY, key="id")
        assert dataset[0]["id"] == KEYS[0]

        def read(child: Forked) -> None:
            child.say(str(int(dataset[7]["id"])))

        child = fork(read)
        assert child.heard() == str(KEYS[7])
        assert child.end() == 0
        assert dataset[1]["id"] == KEYS[1]

    def test_no_connection_of_a_file_goes_through_a_fork(self, samples: Path, fork: Any) -> None:
        """What SQLite knows of its locks would be wrong in the child."""
        dataset = SQLDataset(samples, QUERY, key="id")
        dataset[0]

        def look(child: Forked) -> None:
            child.say(str(sum(str(samples) in link for link in links_of_descriptors())))

        assert any(str(samples) in link for link in links_of_descriptors())
        assert fork(look).heard() == "0"

    def test_threads_have_a_connection_each(self, samples: Path) -> None:
        dataset, found = SQLDataset(samples, QUERY, key="id"), []
        barrier = threading.Barrier(4)

        def read(start: int) -> None:
            barrier.wait()
            found.extend(int(dataset[n]["id"]) for n in range(start, ROWS, 4))

        threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == KEYS


class TestChanges:
    @pytest.mark.parametrize(
        ("statement", "text"),
        [
            ("INSERT INTO samples (id) VALUES (9999)", "200 rows .* has 201 from -350 to 9999"),
            ("DELETE FROM samples WHERE id = -350", "has 199 from -343"),
            ("UPDATE samples SET id = 9999 WHERE id = 0", "from -350 to 9999"),
            ("UPDATE samples SET id = 1 WHERE id = 0", "the row whose 'id' is 0 is gone"),
            ("UPDATE samples SET x = 'abc' WHERE id = 0", "'x' holds string where it held double"),
            ("DROP TABLE samples", "no such table"),
        ],
    )
    def test_other_rows_than_were_listed_are_an_error(
        self, samples: Path, statement: str, text: str
    ) -> None:
        dataset = SQLDataset(samples, QUERY, key="id")
        assert dataset[50]["id"] == 0
        change(samples, statement)
        kind = SourceError if "DROP" in statement else SourceChangedError
        with pytest.raises(kind, match=text):
            dataset[50]

    def test_another_process_writes_while_it_is_read(self, samples: Path) -> None:
        """Values change under the readers, who go on; nobody is kept out."""
        dataset = SQLDataset(samples, QUERY, key="id")
        found = []
        for n, batch in enumerate(DataLoader(dataset, 20, num_workers=1)):
            found += batch["id"].tolist()
            change(samples, f"UPDATE samples SET x = {n}")
        assert found == KEYS
        assert dataset[0]["x"] == 9.0

    def test_a_log_is_read_too(self, samples: Path) -> None:
        writer = sqlite3.connect(samples)
        writer.execute("PRAGMA journal_mode=WAL")
        by_key, whole = SQLDataset(samples, QUERY, key="id"), SQLDataset(samples, QUERY)
        writer.execute("UPDATE samples SET x = 5.5 WHERE id = 0")
        writer.commit()
        assert by_key[50]["x"] == 5.5
        assert whole[50]["x"] == 50 / 3
        assert SQLDataset(samples, QUERY)[50]["x"] == 5.5
        writer.execute("DELETE FROM samples WHERE id = 7")
        writer.commit()
        with pytest.raises(SourceChangedError):
            by_key[50]
        writer.close()

    def test_a_file_that_is_gone(self, samples: Path) -> None:
        dataset = SQLDataset(samples, QUERY, key="id")
        samples.unlink()
        with pytest.raises(FileNotFoundError, match="no such database"):
            dataset[0]
        assert not samples.exists()


class TestFiles:
    @pytest.mark.parametrize("uri", ["nope.db", "sqlite:///nope.db", "duckdb:///nope.db"])
    def test_a_file_that_is_not_there_is_not_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match="no such database"):
            SQLDataset(uri, "SELECT 1 AS x")
        assert os.listdir() == []

    @pytest.mark.parametrize("uri", [":memory:", "sqlite://", "sqlite:///:memory:", "duckdb://"])
    def test_memory_is_no_place(self, uri: str) -> None:
        with pytest.raises(OptionError, match=r"belongs to the one connection that .*VACUUM INTO"):
            SQLDataset(uri, "SELECT 1 AS x")

    @pytest.mark.parametrize(
        ("uri", "text"),
        [
            ("mysql://u:secret@h/d", r"mysql:// is no database .* Write sqlite:///"),
            ("sqlite://train.db", "Write? sqlite:///train.db|write sqlite:///train.db"),
            (5, "got int"),
            (b"x.db", "uri is"),
        ],
    )
    def test_addresses_of_no_known_kind(self, uri: Any, text: str) -> None:
        with pytest.raises(OptionError, match=text) as caught:
            SQLDataset(uri, "SELECT 1 AS x")
        assert "secret" not in str(caught.value)

    def test_a_file_of_another_kind(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("a,b\n1,2\n" * 100)
        for uri in (tmp_path / "t.csv", tmp_path, f"sqlite:///{tmp_path}"):
            with pytest.raises(
                SourceError, match=r"is no SQLite and no DuckDB file|is a directory"
            ):
                SQLDataset(uri, "SELECT 1 AS x")
        with pytest.raises(SourceError, match="file is not a database"):
            SQLDataset(f"sqlite:///{tmp_path}/t.csv", "SELECT * FROM t")

    def test_names_that_addresses_would_take_apart(self, written: Any) -> None:
        path = written("CREATE TABLE t (a INTEGER)", "INSERT INTO t VALUES (1)", name="a b#%41ü.db")
        for uri in (path, f"sqlite:///{path}", f"sqlite+pysqlite:///{path}?mode=rwc"):
            assert SQLDataset(uri, "SELECT a FROM t", cache_dir=False)[0]["a"] == 1

    def test_a_file_that_nobody_may_write(self, samples: Path) -> None:
        samples.chmod(stat.S_IRUSR)
        assert len(SQLDataset(samples, QUERY, key="id")) == ROWS

    def test_a_cut_file(self, samples: Path) -> None:
        os.truncate(samples, 4096 * 2)
        with pytest.raises(SourceError, match=r"malformed|not a database|disk image"):
            SQLDataset(samples, QUERY)


class TestCache:
    def test_rows_are_converted_once(self, samples: Path, tmp_path: Path) -> None:
        first = SQLDataset(samples, QUERY, cache_dir=tmp_path / "kept")
        (entry,) = (path for path in (tmp_path / "kept").iterdir() if path.is_dir())
        made = {path.name: path.stat().st_mtime_ns for path in entry.iterdir()}
        again = SQLDataset(samples, QUERY, cache_dir=tmp_path / "kept")
        assert plain(again) == plain(first)
        assert {path.name: path.stat().st_mtime_ns for path in entry.iterdir()} == made
        change(samples, "UPDATE samples SET x = 1")
        assert SQLDataset(samples, QUERY, cache_dir=tmp_path / "kept")[4]["x"] == 1.0
        assert first[4]["x"] == 4 / 3

    def test_others_on_the_machine_do_not_read_it(self, samples: Path, tmp_path: Path) -> None:
        SQLDataset(samples, QUERY, cache_dir=tmp_path / "kept")
        (entry,) = (path for path in (tmp_path / "kept").iterdir() if path.is_dir())
        assert stat.S_IMODE(entry.stat().st_mode) == 0o700
        said = (entry / "meta.json").read_text()
        assert "SELECT" not in said

    def test_queries_and_parameters_have_entries_of_their_own(self, samples: Path) -> None:
        query = "SELECT id FROM samples WHERE id > ?"
        lengths = [len(SQLDataset(samples, query, parameters=[n])) for n in (0, 700, 0)]
        assert lengths == [149, 49, 149]

    def test_in_memory_nothing_is_written(self, samples: Path, tmp_path: Path) -> None:
        dataset = SQLDataset(samples, QUERY, cache_dir=False)
        assert not (tmp_path / "cache").exists()
        samples.unlink()
        assert plain(pickle.loads(pickle.dumps(dataset))) == plain(dataset)

    def test_columns_of_numbers_are_gathered(self, samples: Path) -> None:
        dataset = SQLDataset(samples, "SELECT id, x FROM samples")
        assert dataset.__gather__() is not None
