"""A query of a database, and how its transactions begin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from headrace.data.sql.address import Address
from headrace.data.sql.connection import Connection, Pool
from headrace.data.sql.statements import inside, parameters_in
from headrace.errors import SourceError

_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class Database(Pool):
    """A query with its parameters, and the connections of this process.

    A connection to PostgreSQL that does nothing else makes one state of the database known to the
    server, by the name ``snapshot``. All others, here and in workers, read that, each batch in a
    transaction of its own: no lock on a table is held between two batches, which would stop who
    wants to change it. Where the server has no snapshot, or no longer, a transaction sees the state
    of its time.
    """

    def __init__(self, address: Address, query: str, parameters: Sequence[Any]) -> None:
        super().__init__(address)
        self.query = query
        self.parameters = tuple(parameters)
        self.bound = parameters_in(self.parameters)
        self.snapshot = ""
        self._holder: Connection | None = None

    def hold_snapshot(self) -> None:
        """Have transactions from now on see the state of the database as it is now."""
        if self.address.kind != "postgresql":
            return
        self._holder = Connection(self.address)
        self._holder.execute(_BEGIN)
        try:
            found = self._holder.table("SELECT pg_export_snapshot() AS name")
        except SourceError:  # a standby, or another server of this protocol
            self._holder = None
        else:
            self.snapshot = found.column(0)[0].as_py()

    @contextmanager
    def transaction(self, connection: Connection) -> Iterator[None]:
        """Have several statements see one state of the database.

        What is raised within it is for :meth:`run`, which closes the connection.
        """
        with connection.held():
            if self.address.kind != "postgresql":
                connection.execute("BEGIN")
            elif self.snapshot:
                self._join(connection)
            else:
                connection.execute(_BEGIN)
            yield
            connection.execute("COMMIT")

    def _join(self, connection: Connection) -> None:
        try:
            connection.execute(f"{_BEGIN}; SET TRANSACTION SNAPSHOT '{self.snapshot}'")
        except SourceError:  # the connection that had it is gone
            self.snapshot = ""
            connection.execute(_BEGIN)

    def fingerprint(self, connection: Connection) -> tuple[str, int]:
        """Return what tells the rows of a server's database from others, and their number."""
        text = (
            f"SELECT count(*) AS n, coalesce(sum(hashtextextended(headrace_query::text, 0)), 0)"
            f"::text AS h FROM {inside(self.query)}"
        )
        found = connection.table(text, self.bound)
        count, total = (column[0].as_py() for column in found.columns)
        return f"{count} {total}", int(count)
