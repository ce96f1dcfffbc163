"""Rows that are read when they are asked for, by their keys, a batch with each query."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from headrace.data.gatherer import Gatherer, IndexArray
from headrace.data.progress import Progress
from headrace.data.sql.columns import check_columns, column_in
from headrace.data.sql.connection import Connection
from headrace.data.sql.database import Database
from headrace.data.sql.statements import (
    Statement,
    batches,
    check_types,
    inside,
    parameters_in,
    quoted,
    statement_of,
)
from headrace.data.tables.arrow import Missing, Place, check_names
from headrace.data.tables.kinds import is_bytes, is_text, plain_array, plain_kind
from headrace.data.tables.nested import take
from headrace.errors import ArrayTypeError, SourceChangedError, SourceError
from headrace.extras import import_extra

_KEYS_AT_ONCE = 10_000  # SQLite takes 32,766 parameters


@dataclass(frozen=True)
class Listed:
    """What was listed: the keys, sorted, and what the database says of them.

    ``sql_type`` is what the server calls their type. ``facts`` are their number, the least and the
    greatest, ``stamps`` those of the files then. ``snapshot`` is what all connections see, by its
    name on the server, "" where there is none.
    """

    keys: Any
    statement: Statement
    sql_type: str
    facts: tuple[Any, ...]
    stamps: list[tuple[int, int]]
    snapshot: str


@dataclass(frozen=True)
class _PlaceOfKey(Place):
    """Rows that were asked for, by their numbers in the dataset."""

    rows: Any = None

    def row(self, number: int) -> int:
        """Return the row that a value belongs to."""
        return int(self.rows[super().row(number)])


class KeyedRows:
    """Rows by their keys, of which number i is that of the i-th key.

    Args:
        database: where they are.
        key: name of the column of keys.
        missing: what stands for missing numbers.
        listed: the keys, where another process listed them.

    Raises:
        MissingColumnError: the query has no such column.
        ArrayTypeError: keys that are no whole numbers, texts or byte strings.
        SourceError: keys that are missing, or not unique.
    """

    def __init__(
        self, database: Database, key: str, missing: Missing, listed: Listed | None = None
    ) -> None:
        self._database = database
        self._key = key
        self._missing = missing
        if listed is None:
            self.listed = database.run(self._list, first=True)
        else:
            self.listed = listed
            database.snapshot = listed.snapshot
        self._stamps = self.listed.stamps

    @property
    def names(self) -> Sequence[str]:
        """The names of the columns."""
        return tuple(self.listed.statement.schema.names)

    def __len__(self) -> int:
        return len(self.listed.keys)

    def gatherer(self) -> Gatherer | None:
        """Return None: rows are made where they are asked for, in the workers."""
        return None

    def _list(self, connection: Connection) -> Listed:
        database = self._database
        stamps = database.address.stamps()
        database.hold_snapshot()
        with database.transaction(connection):
            statement = statement_of(connection, database.query, database.bound)
            check_names(statement.schema.names, [self._key], f"{database.address.shown}: the query")
            check_columns(statement.schema, database.address.shown)
            field = statement.schema.field(self._key)
            sql_type = (field.metadata or {}).get(b"POSTGRESQL:type", b"").decode()
            facts = self._facts(connection, sql_type)
            if facts[0] or sql_type:  # of no rows, SQLite knows no types
                _check_type(database.address.shown, field, sql_type)
            keys = self._keys(connection, statement, field, int(facts[0]))
        _check_unique(database.address.shown, self._key, keys)
        return Listed(keys, statement, sql_type, facts, stamps, database.snapshot)

    def _keys(self, connection: Connection, statement: Statement, field: Any, total: int) -> Any:
        """Return all keys, sorted: by us, as a server's order may change with its version."""
        pa = import_extra("pyarrow", "sql")
        compute = import_extra("pyarrow.compute", "sql")
        first = "SELECT 0 UNION ALL " if statement.first else ""
        if first:
            first = {"string": "SELECT '' UNION ALL ", "binary": "SELECT x'' UNION ALL "}.get(
                str(field.type), first
            )
        body = f"SELECT {quoted(self._key)} FROM {inside(self._database.query)}"
        only = Statement(body, pa.schema([field]), first)
        pieces = []
        with Progress(f"listing keys of {self._database.address.shown}", total, "keys") as progress:
            for batch in batches(connection, only, self._database.bound):
                pieces.append(plain_array(batch.column(0)))
                progress.advance(len(batch))
        kind = plain_kind(field.type)
        keys = pa.concat_arrays([piece.cast(kind) for piece in pieces] or [pa.array([], kind)])
        if keys.null_count:
            raise SourceError(
                f"{self._database.address.shown}: {keys.null_count:,} of {len(keys):,} keys in "
                f"{self._key!r} are missing. Leave such rows out of the query: WHERE "
                f"{quoted(self._key)} IS NOT NULL."
            )
        if len(keys) > 1 and not compute.all(compute.less(keys[:-1], keys[1:])).as_py():
            keys = keys.take(compute.sort_indices(keys))
        return keys

    def _facts(self, connection: Connection, sql_type: str) -> tuple[Any, ...]:
        """Return how many rows there are, the least key and the greatest."""
        database = self._database
        key = quoted(self._key)
        if sql_type and not sql_type.startswith("int"):  # there is no min(uuid)
            key = f"{key}::text"
        text = f"SELECT count(*), min({key}), max({key}) FROM {inside(database.query)}"
        return tuple(c[0].as_py() for c in connection.table(text, database.bound).columns)

    def _check_once(self, connection: Connection) -> None:
        """Check a database that may have changed: its files have, or no snapshot is read."""
        stamps = self._database.address.stamps()
        is_known = bool(stamps) or connection.checked or bool(self._database.snapshot)
        if stamps != self._stamps or not is_known:
            self._check(connection)
            self._stamps = stamps

    def _check(self, connection: Connection) -> None:
        """Check that the database has as many rows as were listed, from and to the same key."""
        found = self._facts(connection, self.listed.sql_type)
        if found == self.listed.facts:
            connection.checked = True
            return
        count, low, high = found
        had, first, last = self.listed.facts
        raise SourceChangedError(
            f"{self._database.address.shown} changed while it was read: the query had {had:,} rows "
            f"with keys from {first!r} to {last!r}, and has {count:,} from {low!r} to {high!r}. "
            f"Make the dataset again; or write a query that new rows do not meet, as "
            f"WHERE {quoted(self._key)} <= {last!r}."
        )

    def take(self, indices: IndexArray) -> Sequence[Iterable[Any]]:
        """Return for each column its values at ``indices``."""
        pa = import_extra("pyarrow", "sql")
        unique, inverse = np.unique(indices, return_inverse=True)
        parts = [
            self._database.run(partial(self._read, keys=part))
            for part in self._parts(self.listed.keys.take(pa.array(unique)))
        ]
        schema = self.listed.statement.schema
        table = pa.concat_tables(parts) if parts else schema.empty_table()
        where = self._database.address.shown
        columns = []
        for field in schema:
            place = _PlaceOfKey(where, field.name, self._missing, rows=unique)
            column = column_in(table.column(field.name), field, place)
            columns.append(take(column, inverse.astype(np.intp)))
        return columns

    def _parts(self, keys: Any) -> Iterator[Any]:
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            yield keys.slice(start, _KEYS_AT_ONCE)

    def _read(self, connection: Connection, keys: Any) -> Any:
        """Return the rows of some keys, in their order."""
        condition, bound = self._condition(keys)
        statement = self.listed.statement
        with self._database.transaction(connection):
            self._check_once(connection)
            found = connection.table(statement.text(condition), bound)
        wrong = check_types(self._database.address.shown, found.schema, statement)
        if wrong is not None:
            raise SourceChangedError(wrong)
        return self._in_order(found.slice(1) if statement.first else found, keys)

    def _condition(self, keys: Any) -> tuple[str, Any]:
        """Return the condition on a key that is among some, and what is bound to it."""
        pa = import_extra("pyarrow", "sql")
        given, key = self._database.parameters, quoted(self._key)
        sql_type = self.listed.sql_type
        if not sql_type:
            marks = ", ".join("?" * len(keys))
            more = [keys.slice(place, 1) for place in range(len(keys))]
            return f"{key} IN ({marks})", parameters_in(given, more)
        mark = f"${len(given) + 1}"
        if sql_type == "uuid":
            keys = pa.array([str(uuid.UUID(bytes=one.as_py())) for one in keys])
        if not sql_type.startswith("int") and sql_type != "bytea":
            mark = f"{mark}::text[]::{quoted(sql_type)}[]"
        if is_text(keys.type):
            keys = keys.cast(pa.string())
        elif is_bytes(keys.type):
            keys = keys.cast(pa.binary())
        offsets = pa.array([0, len(keys)], pa.int32())
        return f"{key} = ANY({mark})", parameters_in(
            given, [pa.ListArray.from_arrays(offsets, keys)]
        )

    def _in_order(self, found: Any, keys: Any) -> Any:
        """Return the rows of some keys, each once, in the keys' order.

        Raises:
            SourceChangedError: one is gone, or there are several of it.
        """
        pa = import_extra("pyarrow", "sql")
        compute = import_extra("pyarrow.compute", "sql")
        chunks = [plain_array(chunk) for chunk in found.column(self._key).chunks]
        theirs = pa.concat_arrays(chunks) if chunks else keys.slice(0, 0)
        # A collation may find others too: rows whose keys are equal to it are not to us.
        places = compute.index_in(theirs.cast(keys.type), value_set=keys)
        rows = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
        wanted = places.drop_null().to_numpy(zero_copy_only=False)
        counts = np.bincount(wanted, minlength=len(keys))
        if (counts != 1).any():
            worst = int(np.argmax(counts != 1))
            what = "is gone" if counts[worst] == 0 else f"is there {counts[worst]} times"
            raise SourceChangedError(
                f"{self._database.address.shown} changed while it was read: the row whose "
                f"{self._key!r} is {keys[worst].as_py()!r} {what}. Make the dataset again."
            )
        return found.take(pa.array(rows[np.argsort(wanted)]))


def _check_type(shown: str, field: Any, sql_type: str) -> None:
    types = import_extra("pyarrow", "sql").types
    kind = plain_kind(field.type)
    is_own = hasattr(field.type, "vendor_name")
    if is_own or not (types.is_integer(kind) or is_text(kind) or is_bytes(kind)):
        name = quoted(field.name)
        raise ArrayTypeError(
            f"{shown}: key={field.name!r} is a column of {sql_type or field.type}. Keys are whole "
            f"numbers, texts, byte strings or uuids: write CAST({name} AS text) AS {name} in the "
            f"query, or name another column."
        )


def _check_unique(shown: str, key: str, keys: Any) -> None:
    compute = import_extra("pyarrow.compute", "sql")
    same = compute.equal(keys[1:], keys[:-1])
    at = compute.index(same, True).as_py()
    if at >= 0:
        twice = keys[at].as_py()
        count = compute.sum(compute.equal(keys, keys[at])).as_py()
        raise SourceError(
            f"{shown}: key={key!r} is not unique: {count:,} rows have {twice!r}. Name a column "
            f"that is, or leave key= away, which reads all rows once."
        )
