"""The rows of a query as a dataset."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.data.files import PathLike
from headrace.data.sql.address import Address, address_of
from headrace.data.sql.columns import kind_of
from headrace.data.sql.database import Database
from headrace.data.sql.keyed import KeyedRows, Listed
from headrace.data.sql.statements import parameters_in
from headrace.data.sql.whole import Whole, digest, read_whole
from headrace.data.tables.arrow import Missing, check_missing
from headrace.data.tables.cache import CacheDir
from headrace.data.tables.columns import RowDataset, Rows
from headrace.data.tables.kinds import units_of
from headrace.errors import OptionError, OptionTypeError
from headrace.extras import import_extra


class SQLDataset(RowDataset):
    """Rows of a database, as dicts of column name to value: SQLite, PostgreSQL, DuckDB.

    Columns are what they are in :class:`ParquetDataset`: numbers and truth values are NumPy
    scalars, texts ``str``, arrays arrays; dates and times are int64, decimals float64, JSON text,
    a uuid its bytes (DuckDB's is text).

    With ``key=``, rows are read when they are asked for, a batch with one query. Row i is that of
    the i-th key in sorted order, whatever the query's ORDER BY. Without it, all rows are read
    once, in the query's order, a piece at a time, to files that are mapped into memory; they are
    read again when the database has other rows.

    Nothing is written to a database. Connections are opened in each process and thread that reads.
    A server that goes away is waited for, a minute at most, and what was asked is asked again.

    Args:
        uri: ``sqlite:///file.db`` (four slashes before an absolute path),
            ``postgresql://user:password@host/database``, ``duckdb:///file.duckdb``, or the path of
            a file. The password appears in no error, state, cache or representation; PostgreSQL's
            own ways (``PGPASSWORD``, ``~/.pgpass``, services) work without one in the address.
        query: one SELECT.
        key: name of a column of the query by which rows are found: unique, and quick to look up
            if it is indexed. Whole numbers, texts, byte strings, uuids.
        parameters: values for the query's ``?`` (SQLite, DuckDB) or ``$1`` (PostgreSQL), in order.
            They are bound, not pasted.
        missing: "error", or the number to put where a number is missing; a missing text or list is
            then an empty one.
        cache_dir: without ``key=``, where the rows are kept; None is ``~/.cache/headrace/tables``,
            False is memory.

    Raises:
        OptionError: an address of an unknown kind, or of a database in memory.
        SourceError: the database refuses the query; keys that are missing or not unique; a missing
            value; values of several types in a column of SQLite.
        MissingColumnError: the query has no column ``key``.
        ArrayTypeError: a column of a type that has no plain meaning.
        SourceChangedError: other rows than when the keys were listed: their number, the least or
            the greatest key, or one that is gone.
        ConnectionError: the server cannot be reached, or refuses the user.
        FileNotFoundError: there is no such file; none is made.
    """

    def __init__(
        self,
        uri: PathLike,
        query: str,
        *,
        key: str | None = None,
        parameters: Sequence[Any] = (),
        missing: Missing = "error",
        cache_dir: CacheDir = None,
    ) -> None:
        self._address = address_of(uri)
        self._query = _checked_query(query)
        self._parameters = _checked_parameters(parameters)
        _check_marks(self._address, self._query, self._parameters)
        self._missing = check_missing(missing)
        self._cache_dir = cache_dir
        if key is not None and not isinstance(key, str):
            raise OptionTypeError(f"key= is the name of a column, got {key!r:.80}. Write key='id'.")
        self._key_name = key
        self._listed: Listed | None = None
        self._whole: Whole | None = None
        self._load()

    def _load(self) -> None:
        database = Database(self._address, self._query, self._parameters)
        self._rows: Rows
        if self._key_name is not None:
            keyed = KeyedRows(database, self._key_name, self._missing, self._listed)
            self._rows, self._listed = keyed, keyed.listed
            return
        if self._whole is None or self._cache_dir is not False:
            known = None if self._whole is None else self._whole.key
            self._whole = read_whole(database, self._missing, self._cache_dir, known)
        self._rows = self._whole.rows()

    @property
    def units(self) -> dict[str, str]:
        """What the numbers of dates and times count, by column: "us since 1970-01-01"."""
        if self._whole is not None:
            return dict(self._whole.extra["units"])
        assert self._listed is not None
        pa = import_extra("pyarrow", "sql")
        schema = self._listed.statement.schema
        kinds = pa.schema([pa.field(field.name, kind_of(field)) for field in schema])
        return units_of(kinds, self.column_names)

    def _identity(self) -> str:
        parts: list[Any] = [self._address.shown, self._address.user, repr(self._missing)]
        parts += [digest(self._query), digest(self._parameters), self._key_name]
        if self._listed is not None:
            parts += [repr(self._listed.facts), self._listed.stamps]
        if self._whole is not None:
            parts.append(self._whole.key)
        return json.dumps(parts)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what was asked for and the keys; of rows, those that are in memory only."""
        state = {k: v for k, v in self.__dict__.items() if k != "_rows"}
        if self._whole is not None and self._cache_dir is not False:
            state["_whole"] = self._whole._replace(arrays={})
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()

    def __repr__(self) -> str:
        key = "" if self._key_name is None else f", key={self._key_name!r}"
        return (
            f"SQLDataset({self._address.shown}: {len(self):,} rows of {len(self.column_names)} "
            f"columns{key})"
        )


def _checked_query(query: Any) -> str:
    if not isinstance(query, str):
        raise OptionTypeError(
            f"query is a text of SQL, got {type(query).__name__}. Write 'SELECT id, x FROM t'; of "
            f"a SQLAlchemy statement, str(statement.compile(engine)) with its parameters."
        )
    text = query.strip().rstrip("; \t\r\n")
    if not text:
        raise OptionError("the query is empty. Write 'SELECT id, x FROM t'.")
    if len(text.split()) == 1:
        raise OptionError(f"{text!r:.80} is no query. Write 'SELECT * FROM {text:.60}'.")
    return text


def _check_marks(address: Address, query: str, parameters: Sequence[Any]) -> None:
    if address.kind == "postgresql" and parameters and "$1" not in query:
        raise OptionError(
            "there are parameters=, and no $1 in the query. PostgreSQL's are $1, $2, ...: write "
            "WHERE year = $1."
        )


def _checked_parameters(parameters: Any) -> tuple[Any, ...]:
    if isinstance(parameters, (str, bytes, Mapping)) or not isinstance(parameters, Sequence):
        raise OptionTypeError(
            f"parameters= is a list of values in the order of the query's ? (SQLite, DuckDB) or "
            f"$1, $2 (PostgreSQL), got {type(parameters).__name__}. Write parameters=[2020]."
        )
    given = tuple(str(one) if isinstance(one, uuid.UUID) else one for one in parameters)
    pa = import_extra("pyarrow", "sql")
    for number, value in enumerate(given, 1):
        try:
            parameters_in([value])
        except (pa.ArrowException, OverflowError, TypeError, ValueError):
            raise OptionTypeError(
                f"parameter {number} is a {type(value).__name__}, which no database takes. Write "
                f"a number, a text, bytes, a date or None."
            ) from None
    return given
