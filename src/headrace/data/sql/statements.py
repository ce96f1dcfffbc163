"""The statements that read the rows of a query, as each kind of database needs them.

A query stands in them in parentheses, so that it can only be one that reads. Its columns are found
by asking for none of its rows. Where a server has types, they are the columns'. SQLite has one for
each value, and its driver takes for a column what the first rows hold: so all rows are asked first
which types there are, and a row of constants of these stands before those of the query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.data.sql.connection import Connection
from headrace.data.tables.kinds import plain_kind
from headrace.errors import SourceError
from headrace.extras import import_extra

AS = "headrace_query"

_FETCHED_ROWS = 1_000
_OF_TYPES = {"integer": "0", "real": "0.0", "text": "''", "blob": "x''"}
_PAIR = frozenset(("integer", "real"))


@dataclass(frozen=True)
class Statement:
    """How the rows of a query are read.

    ``body`` is the statement, which a condition may follow, ``first`` what stands before it and
    makes the first row, and ``schema`` the columns' names and types, as the driver gives them.
    ``rows`` is their number where it was counted.
    """

    body: str
    schema: Any
    first: str = ""
    rows: int | None = None

    def text(self, condition: str = "") -> str:
        """Return the statement for the rows that meet a condition."""
        where = f" WHERE {condition}" if condition else ""
        return f"{self.first}{self.body}{where}"


def quoted(name: str) -> str:
    """Return a name as SQL writes it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def inside(query: str) -> str:
    """Return a query as what another selects from; a comment at its end ends with its line."""
    return f"(\n{query}\n) AS {AS}"


def statement_of(connection: Connection, query: str, bound: Any) -> Statement:
    """Find out how the rows of a query are read.

    Raises:
        SourceError: the database refuses the query, two columns have one name, or SQLite has
            values of several types in one.
    """
    body = f"SELECT * FROM {inside(query)}"
    schema = connection.table(f"{body} LIMIT 0", bound).schema
    _check_names(connection.address.shown, schema.names, connection.address.kind == "sqlite")
    if connection.address.kind == "sqlite":
        return _of_sqlite(connection, query, bound, schema.names)
    return Statement(body, schema)


def _check_names(shown: str, names: Sequence[str], renames: bool) -> None:
    """Raise where columns have one name; SQLite calls the second of "a" "a:1"."""
    plain = [name.rpartition(":")[0] if renames and ":" in name else name for name in names]
    twice = {name for name in plain if plain.count(name) > 1} & set(names)
    if twice:
        name = min(twice)
        raise SourceError(
            f"{shown}: two columns of the query are called {name!r}. Give each its own name: "
            f'SELECT a.{quoted(name)} AS "first", b.{quoted(name)} AS "second".'
        )
    if not names:
        raise SourceError(f"{shown}: the query has no columns. Write SELECT and their names.")


def _of_sqlite(connection: Connection, query: str, bound: Any, names: Sequence[str]) -> Statement:
    counts = ", ".join(
        f"coalesce(sum(typeof({quoted(name)}) = '{kind}'), 0)"
        for name in names
        for kind in _OF_TYPES
    )
    asked = connection.table(f"SELECT count(*), {counts} FROM {inside(query)}", bound)
    rows, *found = [column[0].as_py() for column in asked.columns]
    firsts, selected = [], []
    for place, name in enumerate(names):
        kinds = [kind for n, kind in enumerate(_OF_TYPES) if found[place * len(_OF_TYPES) + n]] or [
            "real"
        ]
        if len(kinds) > 1 and set(kinds) != _PAIR:
            raise SourceError(
                f"{connection.address.shown}, column {name!r} has values of several types: "
                f"{' and '.join(kinds)}. Write CAST({quoted(name)} AS TEXT) AS {quoted(name)} in "
                f"the query, or leave such rows out: WHERE typeof({quoted(name)}) = '{kinds[0]}'."
            )
        mixed = len(kinds) > 1
        firsts.append(f"{_OF_TYPES[kinds[-1] if mixed else kinds[0]]} AS {quoted(name)}")
        selected.append(f"CAST({quoted(name)} AS REAL)" if mixed else quoted(name))
    first = f"SELECT {', '.join(firsts)}"
    schema = connection.table(first).schema
    body = f"SELECT {', '.join(selected)} FROM {inside(query)}"
    return Statement(body, schema, f"{first} UNION ALL ", rows)


def batches(connection: Connection, statement: Statement, bound: Any) -> Iterator[Any]:
    """Yield the rows of a statement, some at a time, as ``RecordBatch``es."""
    text = statement.text()
    if connection.address.kind == "postgresql" and bound is not None:
        # COPY, which streams, takes no parameters; without it the whole answer would be in memory.
        yield from _fetched(connection, text, bound)
        return
    skip = 1 if statement.first else 0
    with connection.reading(text, bound) as reader:
        for batch in reader:
            yield batch.slice(skip) if skip else batch
            skip = 0


def _fetched(connection: Connection, text: str, bound: Any) -> Iterator[Any]:
    cursor = "headrace_cursor"
    connection.table(f"DECLARE {cursor} NO SCROLL CURSOR FOR {text}", bound)
    options = {"adbc.postgresql.use_copy": "false"}
    while True:
        found = connection.table(f"FETCH {_FETCHED_ROWS} FROM {cursor}", None, options)
        yield from found.to_batches()
        if found.num_rows < _FETCHED_ROWS:
            break
    connection.execute(f"CLOSE {cursor}")


def check_types(shown: str, found: Any, statement: Statement) -> str | None:
    """Return what is wrong where rows have other types than those of the statement."""
    for field, known in zip(found, statement.schema, strict=True):
        if plain_kind(field.type) != plain_kind(known.type):
            return (
                f"{shown}, column {known.name!r} holds {field.type} where it held {known.type}. "
                f"Make the dataset again."
            )
    return None


def parameters_in(parameters: Sequence[Any], more: Sequence[Any] = ()) -> Any:
    """Return parameters as a ``RecordBatch`` of one row, None where there are none.

    Args:
        parameters: those of the query.
        more: arrays of one row each that follow.
    """
    pa = import_extra("pyarrow", "sql")
    arrays = [pa.array([value]) for value in parameters] + list(more)
    if not arrays:
        return None
    return pa.record_batch(arrays, names=[str(number) for number in range(len(arrays))])
