"""All rows of a query, converted once to files that are mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headrace.data.gatherer import Array
from headrace.data.progress import Progress
from headrace.data.sql.columns import check_columns, column_in, kind_of
from headrace.data.sql.connection import Connection
from headrace.data.sql.database import Database
from headrace.data.sql.statements import batches, statement_of
from headrace.data.tables.arrow import Missing, Place
from headrace.data.tables.cache import (
    CacheDir,
    Key,
    Memory,
    Sink,
    check_unchanged,
    converted,
    default_directory,
    describe,
    opened,
)
from headrace.data.tables.columns import StoredRows
from headrace.data.tables.kinds import units_of
from headrace.data.tables.stored import Reader, Writer
from headrace.extras import import_extra

_VERSION = 1


class Whole(NamedTuple):
    """All rows as arrays, and what is made of them; ``key`` says what they were made from."""

    arrays: Mapping[str, Array]
    extra: Mapping[str, Any]
    key: Key

    def rows(self) -> StoredRows:
        """Return the rows."""
        count, reader = int(self.extra["rows"]), Reader(self.arrays, None)
        table = {name: reader.column(name, made, count) for name, made in self.extra["columns"]}
        return StoredRows(table, count)


def digest(value: object) -> str:
    """Return what tells a query or its parameters from others, and does not show them."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:32]


def read_whole(
    database: Database, missing: Missing, cache_dir: CacheDir, known: Key | None = None
) -> Whole:
    """Return all rows: those of the cache, if they are still what the database has.

    Args:
        database: the query.
        missing: what stands for missing numbers.
        cache_dir: where converted rows are; False for memory.
        known: the key of the entry that another process read, which will do.

    Raises:
        SourceChangedError: a file of the database changed while it was read.
    """
    place = default_directory() if cache_dir is None or cache_dir is False else Path(cache_dir)
    entry = place.absolute() / _name(database, missing)
    if known is not None and (ready := opened(entry, known)) is not None:
        return Whole(*ready, known)

    def read(connection: Connection) -> Whole:
        key = _key(database, missing)
        if database.address.path is not None and cache_dir is not False:
            ready = opened(entry, key)  # without a look into the database
            if ready is not None:
                return Whole(*ready, key)
        with database.transaction(connection):
            count = None
            if database.address.path is None:
                key["options"]["rows"], count = database.fingerprint(connection)

            def convert(sink: Sink) -> dict[str, Any]:
                return _convert(database, connection, sink, missing, count)

            if cache_dir is False:
                memory = Memory()
                extra = convert(memory)
                check_unchanged(key)
                return Whole(memory.arrays(), extra, key)
            return Whole(*converted(entry, key, convert, private=True), key)

    try:
        return database.run(read, first=True)
    finally:
        database.drop()


def _key(database: Database, missing: Missing) -> Key:
    options = {
        "form": _VERSION,
        "database": database.address.shown,
        "user": database.address.user,
        "query": digest(database.query),
        "parameters": digest(database.parameters),
        "missing": repr(missing),
    }
    return describe(database.address.files(), options)


def _name(database: Database, missing: Missing) -> str:
    """Return the name of the entry: it follows from what is asked for, not from what is there."""
    address = database.address
    parts = [address.path or address.shown, address.user, database.query, database.parameters]
    text = json.dumps([*map(repr, parts), repr(missing)])
    return f"{address.name[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _convert(
    database: Database, connection: Connection, sink: Sink, missing: Missing, count: int | None
) -> dict[str, Any]:
    """Write the columns of all rows to ``sink``; return what they are made of."""
    pa = import_extra("pyarrow", "sql")
    statement = statement_of(connection, database.query, database.bound)
    check_columns(statement.schema, database.address.shown)
    writer, rows = Writer(sink), 0
    total = statement.rows if count is None else count
    shown = database.address.shown

    def write(arrays: Sequence[Any]) -> None:
        for field, array in zip(statement.schema, arrays, strict=True):
            place = Place(shown, field.name, missing, rows)
            chunks = pa.chunked_array([array])
            writer.append(field.name, column_in(chunks, field, place))

    with Progress(f"reading {shown}", total, "rows") as progress:
        # What columns are made of is known of no rows too.
        write([pa.array([], field.type) for field in statement.schema])
        for batch in batches(connection, statement, database.bound):
            write(batch.columns)
            rows += len(batch)
            progress.advance(len(batch))
    names = statement.schema.names
    kinds = pa.schema([pa.field(field.name, kind_of(field)) for field in statement.schema])
    return {
        "columns": [[name, writer.made_of(name)] for name in names],
        "rows": rows,
        "units": units_of(kinds, names),
    }
