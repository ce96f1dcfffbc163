"""headrace peek: the rows of databases, whose passwords it does not print."""

import json
import sqlite3
from pathlib import Path

import pytest

pytest.importorskip("adbc_driver_sqlite")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    connection = sqlite3.connect("train.db")
    connection.execute("CREATE TABLE samples (id INTEGER PRIMARY KEY, x REAL, name TEXT)")
    rows = [(n, None if n == 7 else n / 2, f"name {n}") for n in range(50)]
    connection.executemany("INSERT INTO samples VALUES (?, ?, ?)", rows)
    connection.commit()
    connection.close()
    return tmp_path


@pytest.mark.parametrize("source", ["sqlite:///train.db", "train.db"])
@pytest.mark.parametrize("more", [[], ["--key", "id"]])
def test_rows_of_a_query(headrace, place, source, more):
    outcome = headrace(
        "peek", source, "--query", "SELECT id, x, name FROM samples WHERE id > 7", *more
    )
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    for text in ("train.db   SQLDataset, 42 samples", "batch['x']", "float64", "name 8"):
        assert text in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80
    kept = list(place.glob("cache/headrace/tables/*"))
    assert not kept if more else kept


def test_the_same_as_json(headrace, place):
    query = "SELECT id, x FROM samples WHERE id < 7 ORDER BY id"
    facts = json.loads(headrace("peek", "train.db", "--query", query, "--json", "--rows", "2").out)
    assert facts["samples"] == 7
    assert facts["rows"] == [{"id": 0, "x": 0.0}, {"id": 1, "x": 0.5}]


def test_missing_values_are_said_and_shown(headrace, place):
    outcome = headrace("peek", "train.db", "--query", "SELECT id, x FROM samples")
    said = " ".join(outcome.out.split())
    assert "read with missing=float(\"nan\"): sqlite:///train.db, row 7, column 'x'" in said
    assert "1 NaN" in said


def test_duckdb(headrace, place):
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect("train.duckdb") as connection:
        connection.execute("CREATE TABLE samples AS SELECT range AS id FROM range(9)")
    assert "it has samples; write --query 'SELECT * FROM samples'" in (
        headrace("peek", "train.duckdb").err
    )
    outcome = headrace("peek", "duckdb:///train.duckdb", "--query", "SELECT * FROM samples")
    assert "duckdb:///train.duckdb   SQLDataset, 9 samples" in outcome.out


def test_a_database_without_tables(headrace, place):
    Path("empty.db").touch()
    assert "it has no tables" in headrace("peek", "empty.db").err


QUERY = ["--query", "SELECT id, x FROM samples"]
WRONG = [
    (["train.db"], 2, "sqlite:///train.db: it has samples; write --query 'SELECT * FROM samples'"),
    (["sqlite:///nope.db", *QUERY], 2, "there is no database "),
    ([":memory:", *QUERY], 2, "a database in memory belongs to"),
    (["mysql://me:secret@host/db", *QUERY], 2, "mysql:// is no database that is read here"),
    (["mysql://me:secret@host/db"], 2, "mysql:// is of no kind that is known"),
    (["train.db", "--query", "samples"], 2, "'samples' is no query. Write 'SELECT * FROM"),
    (["train.db", "--query", "SELECT y FROM samples"], 1, "sqlite:///train.db: no such column: y"),
    (["train.db", *QUERY, "--key", "y"], 2, "sqlite:///train.db: the query has no column 'y'"),
    (["train.db", *QUERY, "--target", "x"], 2, "--target is for .csv and .tsv files"),
    (
        ["train.db", "--query", "SELECT id FROM samples WHERE id < 0"],
        1,
        "sqlite:///train.db has no",
    ),
    (["t.csv", "--key", "id"], 2, "--key is a column of --query, for databases"),
    (["t.csv", *QUERY], 1, "t.csv is no SQLite and no DuckDB file"),
    (["postgresql://me:secret@localhost:1/db", *QUERY], 1, "postgresql://localhost:1/db: "),
    (["postgresql://me:se@cret@localhost:1/db", *QUERY], 2, "the address of the database cannot"),
]


@pytest.mark.parametrize(("arguments", "code", "line"), WRONG)
def test_what_cannot_be_shown_gets_one_line(headrace, place, arguments, code, line):
    Path("t.csv").write_text("id,x\n1,2\n")
    outcome = headrace("peek", *arguments)
    assert outcome.code == code
    [said] = outcome.err.splitlines()
    assert said.startswith(f"headrace peek: {line}")
    assert "cret" not in said
    assert outcome.out == ""
