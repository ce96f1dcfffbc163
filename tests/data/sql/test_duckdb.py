"""Rows of DuckDB files, whose package brings a driver of its own."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace import DataLoader
from headrace.data import SQLDataset
from headrace.errors import ArrayTypeError, SourceError
from headrace.testing import assert_exact_resume

duckdb = pytest.importorskip("duckdb")

KEYS = [7 * i - 350 for i in range(200)]
QUERY = "SELECT id, x, name FROM samples"
WRITER = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('up', flush=True); input()"


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    path = tmp_path / "train.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "CREATE TABLE samples AS SELECT 7 * i - 350 AS id, i / 4 AS x, 'näme ' || i AS name, "
            "(i + 0.25)::decimal(10, 2) AS price, encode('ab' || i) AS photo, "
            "date '1970-01-01' + i::int AS day, timestamp '1970-01-01' + INTERVAL (i) SECOND AS "
            "moment, [i, i + 1] AS numbers, [[i], [i, i]] AS deep, {'a': i, 'b': 'x'} AS pair, "
            "i % 2 = 0 AS truth, i::utinyint AS small, 1e17::hugeint + i AS huge, "
            "INTERVAL 1 DAY AS long, uuid() AS code "
            "FROM (SELECT 199 - j AS i FROM range(200) AS t(j))"
        )
    return path


def ids(loader: Any) -> list[int]:
    return [number for batch in loader for number in batch["id"].tolist()]


@pytest.mark.parametrize("key", [None, "id"])
class TestRows:
    def test_values_are_those_of_their_types(self, samples: Path, key: str | None) -> None:
        names = "id, x, name, price, photo, day, moment, numbers, deep, pair, truth, small"
        dataset = SQLDataset(
            f"duckdb:///{samples}", f"SELECT {names} FROM samples ORDER BY id", key=key
        )
        row = dataset[3]
        assert {k: getattr(v, "dtype", type(v)) for k, v in row.items()} == {
            "id": np.int64,
            "x": np.float64,
            "name": str,
            "price": np.float64,
            "photo": bytes,
            "day": np.int64,
            "moment": np.int64,
            "numbers": np.int64,
            "deep": list,
            "pair": dict,
            "truth": np.bool_,
            "small": np.uint8,
        }
        assert (row["id"], row["x"], row["name"], row["price"]) == (-329, 0.75, "näme 3", 3.25)
        assert (row["photo"], row["day"], row["moment"], row["small"]) == (b"ab3", 3, 3_000_000, 3)
        assert row["numbers"].tolist() == [3, 4]
        assert [part.tolist() for part in row["deep"]] == [[3], [3, 3]]
        assert row["pair"] == {"a": 3, "b": "x"}
        assert not row["truth"]
        assert dataset.units == {"day": "days since 1970-01-01", "moment": "us since 1970-01-01"}

    def test_parameters_are_bound(self, samples: Path, key: str | None) -> None:
        query = f"{QUERY} WHERE id > ? AND name <> ?"
        dataset = SQLDataset(samples, query, key=key, parameters=[0, "'; DROP TABLE samples; --"])
        assert sorted(ids(DataLoader(dataset, 16))) == [key for key in KEYS if key > 0]

    def test_a_worker_reads_what_its_parent_would(self, samples: Path, key: str | None) -> None:
        """The parent has read: its DuckDB has threads, which a forked child has not."""
        dataset = SQLDataset(samples, f"{QUERY} ORDER BY id", key=key)
        alone = ids(DataLoader(dataset, 16, shuffle=True, seed=1))
        assert sorted(alone) == KEYS
        assert ids(DataLoader(dataset, 16, shuffle=True, seed=1, num_workers=1)) == alone

    def test_a_new_process_resumes_in_the_middle(self, samples: Path, key: str | None) -> None:
        query = f"{QUERY} WHERE id < -300 ORDER BY id"
        assert_exact_resume(
            lambda: DataLoader(SQLDataset(samples, query, key=key), 3, shuffle=True, seed=1)
        )

    @pytest.mark.parametrize(
        ("query", "kind", "text"),
        [
            ("SELECT id, nope FROM samples", SourceError, 'column "nope" not found'),
            ("DROP TABLE samples", SourceError, "syntax error"),
            ("SELECT id FROM samples; DROP TABLE samples", SourceError, "syntax error"),
            ("SELECT id, long FROM samples", ArrayTypeError, r'extract\(epoch FROM "long"\)'),
            ("SELECT id, ? AS x FROM samples", SourceError, "Write parameters="),
        ],
    )
    def test_what_cannot_be_read_says_what_to_write(
        self, samples: Path, key: str | None, query: str, kind: Any, text: str
    ) -> None:
        with pytest.raises(kind, match=text):
            SQLDataset(samples, query, key=key)

    def test_a_number_that_no_float_holds(self, samples: Path, key: str | None) -> None:
        text = r'has more digits than a float64. Write CAST\("huge" AS float8\) AS "huge" in'
        with pytest.raises(SourceError, match=text):
            SQLDataset(samples, "SELECT id, huge FROM samples ORDER BY id", key=key)[1]
        query = 'SELECT id, CAST("huge" AS float8) AS "huge" FROM samples ORDER BY id'
        assert SQLDataset(samples, query, key=key)[1]["huge"] == 1e17


def test_a_spawned_worker_opens_a_connection_of_its_own(samples: Path) -> None:
    options = {"num_workers": 1, "multiprocessing_context": "spawn"}
    assert ids(DataLoader(SQLDataset(samples, QUERY, key="id"), 64, **options)) == KEYS


@pytest.mark.parametrize("key", ["code", "name", "photo", "small"])
def test_keys_of_other_types(samples: Path, key: str) -> None:
    dataset = SQLDataset(samples, f"SELECT id, {key} FROM samples", key=key)
    assert sorted(ids(DataLoader(dataset, 16, shuffle=True))) == KEYS
    found = [row[key] for row in dataset.__getitems__(range(200))]
    assert found == sorted(found)


def test_a_file_that_another_program_has_open_to_write(samples: Path) -> None:
    """DuckDB lets one process write, or several read."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(samples)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "up\n"
    with pytest.raises(SourceError, match=r"Could not set lock .* no other program write"):
        SQLDataset(samples, QUERY)
    writer.communicate("\n")
    by_key, whole = SQLDataset(samples, QUERY, key="id"), SQLDataset(samples, QUERY)
    assert (len(by_key), len(whole)) == (200, 200)
    del by_key  # which has it open; of all rows at once nothing is
    with duckdb.connect(str(samples)) as connection:
        connection.execute("DELETE FROM samples WHERE id > 0")
    assert len(whole) == 200
    assert len(SQLDataset(samples, QUERY)) == sum(key <= 0 for key in KEYS)


@pytest.mark.parametrize("size", [9_000, 4_096, 100, 20])
def test_a_file_that_is_cut(samples: Path, size: int) -> None:
    whole = samples.read_bytes()
    samples.write_bytes(whole[:size])
    with pytest.raises(SourceError, match=re.escape(str(samples))):
        SQLDataset(samples, QUERY)
