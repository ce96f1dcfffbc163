"""A query of a database, and how its transactions begin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from headrace.data.sql.address import Address
from headrace.data.sql.connection import PATIENCE_S, Connection, Pool
from headrace.data.sql.statements import inside, parameters_in
from headrace.errors import SourceError

T = TypeVar("T")

_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class Database:
    """A query with its parameters, and the connections of this process.

    PostgreSQL's connections are one read-only transaction each, which sees one state of the
    database. The first makes that known to the server (``exported``), and the others see the same,
    in this process and in its workers, as long as the first one lives.

    ``snapshot`` is what connections that are opened from now on see, "" for the state then.
    """

    def __init__(self, address: Address, query: str, parameters: Sequence[Any]) -> None:
        self.address = address
        self.query = query
        self.parameters = tuple(parameters)
        self.bound = parameters_in(self.parameters)
        self.snapshot = self.exported = ""
        self._pool = Pool(address, self._begin)

    def run(self, work: Callable[[Connection], T], *, first: bool = False) -> T:
        """Return ``work(connection)``, done again where a server was gone in between.

        ``first``: nobody has reached this database before, so that what is wrong will not pass.
        """
        return self._pool.run(work, patience_s=0 if first else PATIENCE_S)

    def close(self) -> None:
        """Close the connection of this thread."""
        self._pool.drop()

    def _begin(self, connection: Connection) -> None:
        if self.address.kind != "postgresql":
            return
        connection.execute(_BEGIN)
        if self.snapshot:
            try:
                connection.execute(f"SET TRANSACTION SNAPSHOT '{self.snapshot}'")
            except SourceError:  # the connection that had it is gone
                connection.execute(_BEGIN)
            else:
                connection.shares_snapshot = True

    @contextmanager
    def transaction(self, connection: Connection) -> Iterator[None]:
        """Have several statements see one state of the database."""
        with connection.held():
            if self.address.kind == "postgresql":
                self._export(connection)
                yield
                return
            connection.execute("BEGIN")
            yield
            connection.execute("COMMIT")

    def _export(self, connection: Connection) -> None:
        try:
            found = connection.table("SELECT pg_export_snapshot() AS name")
        except SourceError:  # a standby, or another server of this protocol
            connection.execute(_BEGIN)
            self.exported = ""
        else:
            self.exported = found.column(0)[0].as_py()

    def fingerprint(self, connection: Connection) -> tuple[str, int]:
        """Return what tells the rows of a server's database from others, and their number."""
        text = (
            f"SELECT count(*) AS n, coalesce(sum(hashtextextended(headrace_query::text, 0)), 0)"
            f"::text AS h FROM {inside(self.query)}"
        )
        found = connection.table(text, self.bound)
        count, total = (column[0].as_py() for column in found.columns)
        return f"{count} {total}", int(count)
