"""A SQLite database as people have them, and caches that end with the test."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("adbc_driver_sqlite")

ROWS = 200
QUERY = "SELECT id, x, price, name, photo, day FROM samples"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Write a SQLite database; return its path."""

    def write(*statements: Any, name: str = "train.db") -> Path:
        path = tmp_path / name
        connection = sqlite3.connect(path)
        for statement in statements:
            if isinstance(statement, tuple):
                connection.executemany(*statement)
            else:
                connection.execute(statement)
        connection.commit()
        connection.close()
        return path

    return write


@pytest.fixture
def samples(written: Callable[..., Path]) -> Path:
    """Rows with negative keys, whole prices before others, and two that are missing."""
    return written(
        "CREATE TABLE samples (id INTEGER PRIMARY KEY, x REAL, price DECIMAL(10, 2), name TEXT, "
        "photo BLOB, day DATE, note TEXT, mixed)",
        (
            "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    7 * i - 350,
                    i / 3,
                    i if i < 150 else i + 0.25,
                    f"näme {i}",
                    bytes([i % 256, 0]),
                    f"2020-01-{i % 28 + 1:02}",
                    None if i in (20, 30) else f"note {i}",
                    "text" if i == 199 else i,
                )
                for i in range(ROWS)
            ],
        ),
    )
