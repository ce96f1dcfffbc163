"""Rows of a PostgreSQL server, which changes, is killed and comes back while it is read."""

import datetime
import gc
import json
import pickle
import re
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.sql.server import PASSWORD, QUOTED, USER, Server, programs
from headrace import DataLoader
from headrace.cli.app import run
from headrace.data import ParquetDataset, SQLDataset
from headrace.errors import ArrayTypeError, OptionError, SourceChangedError, SourceError
from headrace.testing import assert_exact_resume
from processes import Forked

pytest.importorskip("adbc_driver_postgresql")
pytestmark = pytest.mark.skipif(
    programs() is None, reason="PostgreSQL is not installed: apt-get install postgresql"
)

ROWS = 300
QUERY = "SELECT id, x, name FROM samples"
KILL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND "
    "backend_type = 'client backend'"
)
KEYS = list(range(-100, 2 * ROWS - 100, 2))


@pytest.fixture(scope="module")
def started() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def server(started: Server) -> Server:
    """The server, with the table as it is at first."""
    started.sql(KILL)
    started.sql(
        "SET client_min_messages = error",
        "DROP TABLE IF EXISTS samples",
        "CREATE TABLE samples (id bigint PRIMARY KEY, x float8, name text)",
        f"INSERT INTO samples SELECT 2 * i - 100, i / 3.0, 'näme ' || i FROM "
        f"generate_series({ROWS - 1}, 0, -1) AS i",
    )
    return started


def plain(dataset: Any) -> list[dict[str, Any]]:
    rows = dataset.__getitems__(range(len(dataset)))
    return [{k: v.tolist() if hasattr(v, "tolist") else v for k, v in r.items()} for r in rows]


def ids(loader: Any) -> list[int]:
    return [number for batch in loader for number in batch["id"].tolist()]


def connections(server: Server) -> int:
    text = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
    return int(server.sql(text)[0]) - 1


@pytest.mark.parametrize("key", [None, "id"])
def test_columns_are_those_of_a_parquet_file(server: Server, tmp_path: Path, key: Any) -> None:
    utc = datetime.UTC
    table = pa.table(
        {
            "id": pa.array([1, 2], pa.int32()),
            "small": pa.array([-3, 4], pa.int16()),
            "single": pa.array([0.5, 2.5], pa.float32()),
            "truth": [True, False],
            "price": pa.array([Decimal("1.10"), Decimal("-20.05")], pa.decimal128(10, 2)),
            "text": ["näme", ""],
            "data": [b"\x00\xff", b""],
            "day": [datetime.date(2020, 1, 31), datetime.date(1969, 12, 31)],
            "at": pa.array([datetime.datetime(2020, 1, 1, 10, 0, 0, 5)] * 2, pa.timestamp("us")),
            "there": pa.array(
                [datetime.datetime(2020, 1, 1, 10, tzinfo=utc)] * 2, pa.timestamp("us", "UTC")
            ),
            "time": pa.array([datetime.time(10, 30), datetime.time(0, 0)], pa.time64("us")),
            "numbers": pa.array([[1, 2, 3], []], pa.list_(pa.int32())),
            "words": [["a", "b"], []],
            "json": ['{"a": 1}', "[]"],
            "uuid": [uuid.UUID(int=5).bytes, uuid.UUID(int=6).bytes],
            "mood": ["fine", "bad"],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    server.sql(
        "SET client_min_messages = error",
        "DROP TABLE IF EXISTS kinds",
        "DROP TYPE IF EXISTS mood",
        "CREATE TYPE mood AS ENUM ('bad', 'fine')",
        "CREATE TABLE kinds (id int, small smallint, single real, truth boolean, "
        "price numeric(10, 2), text text, data bytea, day date, at timestamp, there timestamptz, "
        '"time" time, numbers int[], words text[], json jsonb, uuid uuid, mood mood)',
        "INSERT INTO kinds VALUES (1, -3, 0.5, true, 1.10, 'näme', '\\x00ff', '2020-01-31', "
        "'2020-01-01 10:00:00.000005', '2020-01-01 12:00+02', '10:30', '{1,2,3}', '{a,b}', "
        "'{\"a\": 1}', '00000000-0000-0000-0000-000000000005', 'fine'), (2, 4, 2.5, false, -20.05, "
        "'', '', '1969-12-31', '2020-01-01 10:00:00.000005', '2020-01-01 10:00+00', '00:00', "
        "'{}', '{}', '[]', '00000000-0000-0000-0000-000000000006', 'bad')",
    )
    parquet, rows = (
        ParquetDataset(tmp_path / "t.parquet"),
        SQLDataset(server.uri, "SELECT * FROM kinds ORDER BY id", key=key),
    )
    assert plain(rows) == plain(parquet)
    assert rows.units == parquet.units
    for name, value in parquet[0].items():
        assert getattr(rows[0][name], "dtype", None) == getattr(value, "dtype", None), name


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("'1 day'::interval", r"an interval makes no tensor. Write extract\(epoch FROM \"v\"\)"),
        ("3.5::money", r'money makes no tensor. Write CAST\("v" AS numeric\)'),
        ("'10.0.0.1'::inet", r'inet makes no tensor. Write CAST\("v" AS text\) AS "v"'),
        ("'{1.5}'::numeric[]", r'a list of numeric makes .* CAST\("v" AS float8\[\]\)'),
    ],
)
@pytest.mark.parametrize("key", [None, "id"])
def test_types_of_no_plain_meaning_are_refused_at_once(
    server: Server, key: Any, expression: str, text: str
) -> None:
    with pytest.raises(ArrayTypeError, match=text):
        SQLDataset(server.uri, f"SELECT 1 AS id, {expression} AS v", key=key)


@pytest.mark.parametrize("key", [None, "id"])
def test_numbers_that_no_float_holds_and_values_that_are_missing(server: Server, key: Any) -> None:
    third = "SELECT id, (id / 3)::numeric / 3 AS v FROM samples"
    with pytest.raises(SourceError, match=r'more digits than a float64. Write CAST\("v" AS float8'):
        plain(SQLDataset(server.uri, third, key=key))
    odd = "SELECT 1 AS id, 'NaN'::numeric AS v, NULL::int AS n, NULL AS t"
    with pytest.raises(SourceError, match=r"row 0, column 'n': a value is missing"):
        plain(SQLDataset(server.uri, odd, key=key))
    row = SQLDataset(server.uri, odd, key=key, missing=7)[0]
    assert np.isnan(row["v"])
    assert (row["n"], row["n"].dtype, row["t"]) == (7, np.int32, "")


@pytest.mark.parametrize(
    "expression",
    [
        "id::int",
        "(id / 2)::smallint",
        "name",
        "name::varchar(30)",
        "rpad(id::text, 8)::char(12)",
        "name::bytea",
        "md5(name)::uuid",
    ],
)
def test_keys_of_all_types(server: Server, expression: str) -> None:
    dataset = SQLDataset(server.uri, f"SELECT id, {expression} AS k FROM samples", key="k")
    rows = plain(dataset)
    assert [row["k"] for row in rows] == sorted(row["k"] for row in rows)
    assert sorted(row["id"] for row in rows) == KEYS
    assert [int(row["id"]) for row in dataset.__getitems__([9, 2, 9])] == [
        rows[n]["id"] for n in (9, 2, 9)
    ]


@pytest.mark.parametrize("key", [None, "id"])
def test_parameters(server: Server, key: Any) -> None:
    query = (
        "SELECT i AS id, $2 AS word FROM generate_series(1, 5000) AS i WHERE i > $1::int "
        "ORDER BY i DESC"
    )
    dataset = SQLDataset(server.uri, query, key=key, parameters=[7, "'; DROP TABLE samples"])
    rows = plain(dataset)
    assert [row["id"] for row in rows] == sorted(range(8, 5001), reverse=key is None)
    assert {row["word"] for row in rows} == {"'; DROP TABLE samples"}
    with pytest.raises(OptionError, match=r"no \$1 in the query"):
        SQLDataset(server.uri, f"{QUERY} WHERE id > ?", parameters=[1])
    with pytest.raises(SourceError, match=r"no parameter \$1\. Write parameters="):
        SQLDataset(server.uri, f"{QUERY} WHERE id > $1", key=key)


@pytest.mark.parametrize("key", [None, "id"])
def test_queries_that_the_server_refuses(server: Server, key: Any) -> None:
    server.sql(
        "CREATE OR REPLACE FUNCTION more() RETURNS int LANGUAGE sql AS "
        "'INSERT INTO samples VALUES (5000) RETURNING 1'"
    )
    for query, text in {
        "SELECT * FROM smaples": 'relation "smaples" does not exist',
        "SELECT 1 AS id; DROP TABLE samples": "syntax error",
        "DELETE FROM samples": "syntax error",
        "WITH d AS (DELETE FROM samples RETURNING id) SELECT id FROM d": "data-modifying",
        "SELECT more() AS id": "cannot execute INSERT in a read-only transaction",
        "SELECT 1 AS id, 2 AS id": "columns of the query are called 'id'",
        "SELECT 1 / 0 AS id": "division by zero",
    }.items():
        with pytest.raises(SourceError, match=text):
            SQLDataset(server.uri, query, key=key)
    assert server.sql("SELECT count(*) FROM samples") == [str(ROWS)]


class TestLoaders:
    @pytest.mark.parametrize(
        "options", [{}, {"num_workers": 2}, {"num_workers": 2, "backend": "thread"}]
    )
    def test_all_see_the_database_as_it_was_when_the_keys_were_listed(
        self, server: Server, options: dict[str, Any]
    ) -> None:
        dataset = SQLDataset(server.uri, QUERY, key="id")
        server.sql("DELETE FROM samples WHERE id = 0", "UPDATE samples SET x = -1")
        loader = DataLoader(dataset, 16, shuffle=True, seed=1, **options)
        batches = list(loader)
        assert sorted(ids(batches)) == KEYS
        assert not any((batch["x"] < 0).any() for batch in batches)
        assert ids(loader) != ids(batches)
        assert len(SQLDataset(server.uri, QUERY, key="id")) == ROWS - 1

    def test_a_spawned_worker_sees_it_too(self, server: Server) -> None:
        dataset = SQLDataset(server.uri, QUERY, key="id")
        server.sql("DELETE FROM samples WHERE id = 0")
        options = {"num_workers": 1, "multiprocessing_context": "spawn"}
        assert ids(DataLoader(dataset, 50, **options)) == KEYS

    def test_a_child_that_ends_leaves_its_parents_connection(
        self, server: Server, fork: Any
    ) -> None:
        dataset = SQLDataset(server.uri, QUERY, key="id")
        pid = server.sql("SELECT pid FROM pg_stat_activity WHERE state = 'idle'")

        def read(child: Forked) -> None:
            child.say(str(int(dataset[3]["id"])))
            gc.collect()

        assert fork(read).heard() == str(KEYS[3])
        assert dataset[4]["id"] == KEYS[4]
        now = server.sql("SELECT pid FROM pg_stat_activity WHERE state = 'idle'")
        assert set(pid) <= set(now)

    def test_no_connection_outlives_its_dataset(self, server: Server) -> None:
        dataset = SQLDataset(server.uri, QUERY, key="id")
        whole = SQLDataset(server.uri, QUERY)
        assert connections(server) == 2  # one holds the snapshot
        del dataset
        assert connections(server) == 0
        assert whole[0]["id"] == KEYS[-1]

    def test_tables_are_not_locked_between_two_batches(self, server: Server) -> None:
        dataset = SQLDataset(server.uri, QUERY, key="id")
        assert dataset[0]["id"] == KEYS[0]
        server.sql("SET lock_timeout = '5s'", "ALTER TABLE samples ADD COLUMN more int")
        assert dataset[1]["id"] == KEYS[1]

    def test_a_new_process_resumes_in_the_middle(self, server: Server) -> None:
        query = f"{QUERY} WHERE id < -80"
        assert_exact_resume(
            lambda: DataLoader(SQLDataset(server.uri, query, key="id"), 3, shuffle=True, seed=1),
            epochs=1,
        )


class TestLost:
    @pytest.mark.parametrize(
        "options", [{}, {"num_workers": 2}, {"num_workers": 2, "backend": "thread"}]
    )
    def test_an_epoch_goes_on_when_the_server_was_killed_and_is_back(
        self, server: Server, options: dict[str, Any]
    ) -> None:
        dataset = SQLDataset(server.uri, QUERY, key="id")
        wanted = ids(DataLoader(dataset, 8, shuffle=True, seed=1))
        batches = iter(DataLoader(dataset, 8, shuffle=True, seed=1, **options))
        got = next(batches)["id"].tolist()
        server.stop()
        with ThreadPoolExecutor(1) as thread:
            rest = thread.submit(ids, batches)
            server.start()
            assert got + rest.result() == wanted

    def test_all_rows_are_read_again_from_the_first(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A conversion that loses its server begins again, with a new transaction."""
        from headrace.data.sql import whole

        convert, times = whole._convert, []

        def once_lost(database: Any, *others: Any) -> Any:
            times.append(1)
            if len(times) == 1:
                server.stop()
                server.start()
            return convert(database, *others)

        monkeypatch.setattr(whole, "_convert", once_lost)
        assert len(SQLDataset(server.uri, QUERY)) == ROWS
        assert len(times) == 2

    def test_a_server_that_does_not_come_back_is_given_up(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("headrace.data.sql.connection._PATIENCE_S", 0.3)
        dataset = SQLDataset(server.uri, QUERY, key="id")
        server.stop()
        try:
            with pytest.raises(ConnectionError, match=r"Is the server up") as caught:
                dataset[0]
        finally:
            server.start()
        assert_no_secret("".join(traceback.format_exception(caught.value)))
        assert dataset[0]["id"] == KEYS[0]

    def test_other_rows_behind_a_loss_are_an_error(self, server: Server) -> None:
        dataset = SQLDataset(server.uri, QUERY, key="id")
        server.sql("DELETE FROM samples WHERE id = 0")
        assert len(plain(dataset)) == ROWS
        server.sql(KILL)
        with pytest.raises(SourceChangedError, match=r"had 300 rows .* and has 299 from -100"):
            dataset[0]
        server.sql("INSERT INTO samples VALUES (0, 0, 'new')")
        assert dataset[50]["name"] == "new"
        server.sql("UPDATE samples SET id = 1 WHERE id = 0", KILL)
        with pytest.raises(SourceChangedError, match="the row whose 'id' is 0 is gone"):
            dataset[50]


def assert_no_secret(text: str) -> None:
    assert PASSWORD not in text
    assert QUOTED not in text


class TestPasswords:
    def test_they_are_shown_nowhere(self, server: Server, tmp_path: Path) -> None:
        by_key = SQLDataset(server.uri, QUERY, key="id")
        whole = SQLDataset(server.uri, QUERY, cache_dir=tmp_path / "kept")
        loader = DataLoader(by_key, 8)
        next(iter(loader))
        for text in (repr(by_key), repr(whole), repr(vars(by_key)), by_key._identity()):
            assert_no_secret(text)
        assert_no_secret(json.dumps(loader.state_dict()))
        for path in (tmp_path / "kept").rglob("*"):
            assert_no_secret(str(path))
            assert_no_secret(path.read_bytes().decode("latin-1") if path.is_file() else "")
        assert plain(pickle.loads(pickle.dumps(by_key))) == plain(by_key)
        assert plain(pickle.loads(pickle.dumps(whole))) == plain(whole)

    @pytest.mark.parametrize(
        ("change", "kind", "text"),
        [
            (lambda uri: uri.replace(QUOTED, "wr0ng"), ConnectionError, "authentication failed"),
            (lambda uri: uri.replace("/postgres?", "/nope?"), ConnectionError, "does not exist"),
            (lambda uri: uri.replace("host=", "hots="), ConnectionError, "hots"),
            (lambda uri: uri.replace(QUOTED, "wr0ng@x"), OptionError, "@ is %40"),
            (lambda uri: uri.replace(QUOTED, "wr0ng/x"), OptionError, "urllib.parse.quote"),
            (lambda uri: uri.replace(QUOTED, "wr0ng?x"), OptionError, "urllib.parse.quote"),
            (lambda uri: uri.replace(QUOTED, "wr0ng%x"), OptionError, "urllib.parse.quote"),
            (lambda uri: f"{uri}&password=wr0ng&bad=wr0ng", ConnectionError, r"\*\*\*|bad"),
            (lambda uri: "postgresql://u:wr0ng@127.0.0.1:1/x", ConnectionError, "refused"),
        ],
    )
    def test_errors_have_none(
        self, server: Server, change: Callable[[str], str], kind: Any, text: str
    ) -> None:
        with pytest.raises(kind, match=text) as caught:
            SQLDataset(change(server.uri), QUERY)
        said = "".join(traceback.format_exception(caught.value))
        assert_no_secret(said)
        assert "wr0ng" not in said.replace("bad=wr0ng", "")


class TestCache:
    def test_rows_are_read_again_when_there_are_others(self, server: Server) -> None:
        query = f"{QUERY} ORDER BY id"
        first = SQLDataset(server.uri, query)
        (entry,) = (p.parent for p in kept_entries())
        made = (entry / "meta.json").stat().st_mtime_ns
        assert plain(SQLDataset(server.uri, query)) == plain(first)
        assert (entry / "meta.json").stat().st_mtime_ns == made
        server.sql("UPDATE samples SET name = 'other' WHERE id = 0")
        assert SQLDataset(server.uri, query)[50]["name"] == "other"
        assert first[50]["name"] == "näme 50"
        assert re.fullmatch(r"postgres-[0-9a-f]{16}", entry.name)

    def test_a_process_that_is_spawned_does_not_ask_the_server(self, server: Server) -> None:
        dataset = SQLDataset(server.uri, QUERY)
        server.sql("DROP TABLE samples")
        assert plain(pickle.loads(pickle.dumps(dataset))) == plain(dataset)
        loader = DataLoader(dataset, 50, num_workers=1, multiprocessing_context="spawn")
        assert ids(loader) == KEYS[::-1]


def kept_entries() -> Iterator[Path]:
    from headrace.data.tables.cache import default_directory

    return default_directory().glob("*/meta.json")


def test_the_user_of_the_address_counts(server: Server) -> None:
    """Rows of which a user may see some are in an entry of their own."""
    server.sql(
        "SET client_min_messages = error",
        "DROP USER IF EXISTS other",
        "CREATE USER other PASSWORD 'secret'",
        "ALTER TABLE samples ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY few ON samples TO other USING (id < 0)",
        "GRANT SELECT ON samples TO other",
    )
    assert len(SQLDataset(server.uri, QUERY)) == ROWS
    other = server.uri.replace(f"{USER}:{QUOTED}", "other:secret")
    assert len(SQLDataset(other, QUERY)) == 50
    assert len({path.parent for path in kept_entries()}) == 2
    server.sql("DROP OWNED BY other", "DROP USER other")


def test_peek_prints_no_password(server: Server, capsys: Any) -> None:
    arguments = ["peek", server.uri, "--query", QUERY, "--key", "id", "--rows", "2"]
    assert run([*arguments, "--json"]) == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert facts["samples"] == ROWS
    assert facts["rows"][1] == {"id": -98, "x": 1 / 3, "name": "näme 1"}
    assert run(["peek", server.uri]) == 2
    said_too = capsys.readouterr()
    assert re.search(r"it has .*samples.*; write --query 'SELECT \* FROM", said_too.err)
    for text in (said.out, said.err, said_too.err):
        assert QUOTED not in text
        assert PASSWORD not in text
