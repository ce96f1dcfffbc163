"""Connections to databases: one for each thread of each process, none through a fork.

A connection whose process forked is the parent's: the child opens its own, and leaves the other as
it is. To close it would end it for the parent too. What SQLite knows of its locks would be wrong in
a child, even for connections that it opens itself: so those of the parent are closed before a fork,
and opened again when they are needed.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from headrace.data.sql.address import Address
from headrace.errors import HeadraceError, MissingExtraError, SourceError
from headrace.extras import import_extra

T = TypeVar("T")

_PATIENCE_S = 60.0  # for a server that restarts
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.1, 5.0
_BUSY_MS = 60_000  # for a writer of SQLite that has the file
_CLOSING_S = 1.0  # in which a fork waits for a read of another thread

_OF_FILES = "Is it a whole database, and does no other program write to it now?"
_OF_SERVERS = "Is the server up, and are user, password and name of the database right?"


class LostError(Exception):
    """The server, or the way to it, is gone; the text says what the client said."""


class _ClosedError(LostError):
    """A connection that a fork of this process closed."""


class Connection:
    """A connection that reads.

    Raises:
        LostError: there is no way to the database.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.checked = False  # that the database has the rows that were listed
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._reads = 0
        self._handles: list[Any] = []
        database = _opened(address)
        self._handles.append(database)
        try:
            manager = import_extra("adbc_driver_manager", "sql")
            self._handles.append(manager.AdbcConnection(database))
        except manager.Error as error:
            said = said_by(address, error)
            self.close()
            raise LostError(said) from None
        if address.kind == "sqlite":
            _of_sqlite[id(self)] = weakref.ref(self)
            self.execute(f"PRAGMA busy_timeout={_BUSY_MS}")

    @property
    def usable(self) -> bool:
        """Whether this process opened it, and nobody has closed it."""
        return self._pid == os.getpid() and len(self._handles) == 2

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep it open: for what are several statements of one transaction."""
        with self._lock:
            self._reads += 1
            try:
                yield
            finally:
                self._reads -= 1

    @contextmanager
    def _statement(self, sql: str) -> Iterator[Any]:
        """Give a statement; what goes wrong with it is said without what is secret."""
        manager = import_extra("adbc_driver_manager", "sql")
        pa = import_extra("pyarrow", "sql")
        with self.held():
            statement = None
            if len(self._handles) < 2:
                raise _ClosedError(f"{self.address.shown}: closed, as this process forked")
            try:
                statement = manager.AdbcStatement(self._handles[1])
                statement.set_sql_query(sql)
                yield statement
            except (manager.Error, pa.ArrowException, OSError, UnicodeDecodeError) as error:
                if _is_of_others(error):
                    raise
                said = said_by(self.address, error)
                if self._is_lost():
                    raise LostError(said) from None
                if "parameter" in said:
                    said += ". Write parameters=[...], a value for each of the query's, in order"
                raise SourceError(said) from None
            finally:
                if statement is not None:
                    with suppress(Exception):
                        statement.close()

    @contextmanager
    def reading(
        self, sql: str, bound: Any = None, options: Mapping[str, str] | None = None
    ) -> Iterator[Any]:
        """Give a ``RecordBatchReader`` of a statement's rows.

        Args:
            sql: one statement.
            bound: its parameters, a ``RecordBatch`` of one row; None for none.
            options: of the driver.

        Raises:
            SourceError: the database refuses the statement, or a value does not fit.
            LostError: the connection is gone.
        """
        pa = import_extra("pyarrow", "sql")
        with self._statement(sql) as statement:
            statement.set_options(**(options or {}))
            if bound is not None:
                statement.prepare()
                statement.bind(bound)
            stream, _ = statement.execute_query()
            reader = pa.RecordBatchReader._import_from_c(stream.address)
            try:
                yield reader
            finally:
                with suppress(Exception):
                    reader.close()

    def execute(self, sql: str) -> None:
        """Run statements for what they do."""
        with self._statement(sql) as statement:
            statement.execute_update()

    def table(self, sql: str, bound: Any = None, options: Mapping[str, str] | None = None) -> Any:
        """Return all rows of a statement as a ``pyarrow.Table``."""
        with self.reading(sql, bound, options) as reader:
            return reader.read_all()

    def _is_lost(self) -> bool:
        """Say whether a server no longer answers, by asking; a transaction that failed is over."""
        if self.address.kind != "postgresql":
            return False
        manager = import_extra("adbc_driver_manager", "sql")
        statement = None
        try:
            statement = manager.AdbcStatement(self._handles[1])
            statement.set_sql_query("ROLLBACK")
            statement.execute_update()
        except Exception:
            return True
        finally:
            if statement is not None:
                with suppress(Exception):
                    statement.close()
        return False

    def close(self, wait_s: float = -1) -> bool:
        """Close it, unless it is another process's; say whether nobody reads from it now."""
        if self._pid != os.getpid():
            return False
        if not self._lock.acquire(timeout=wait_s):
            return False
        try:
            if self._reads:
                return False
            while self._handles:
                with suppress(Exception):
                    self._handles.pop().close()
            return True
        finally:
            self._lock.release()

    def __del__(self) -> None:
        with suppress(Exception):
            _of_sqlite.pop(id(self), None)
            self.close(0)


def _is_of_others(error: BaseException) -> bool:
    """Say whether an error came from who uses the rows, such as a full disk."""
    if isinstance(error, HeadraceError):
        return True
    return isinstance(error, OSError) and error.errno is not None


def _opened(address: Address) -> Any:
    if address.kind == "duckdb":
        try:
            path = import_extra("adbc_driver_duckdb", "sql").driver_path()
        except MissingExtraError:
            raise MissingExtraError(
                "duckdb is not installed. Write: pip install duckdb", name="duckdb"
            ) from None
        given = {"path": address.uri, "access_mode": "READ_ONLY"}
        given |= {"driver": path, "entrypoint": "duckdb_adbc_init"}
        make: Callable[[], Any] = lambda: manager.AdbcDatabase(**given)  # noqa: E731
    else:
        driver = import_extra(f"adbc_driver_{address.kind}", "sql")
        make = lambda: driver.connect(address.uri)  # noqa: E731
    manager = import_extra("adbc_driver_manager", "sql")
    try:
        return make()
    except manager.Error as error:
        raise LostError(said_by(address, error)) from None


def said_by(address: Address, error: BaseException) -> str:
    """Return what a database said, without what is secret and without our statement."""
    text = str(error)
    for behind in ("\n\nQuery was:", "\nquery:", "\nLINE ", "\n\tIs the server", ". SQLSTATE:"):
        text = text.partition(behind)[0]
    text = re.sub(r"^[A-Z_]+: |\[SQLite\] |\[libpq\] |Failed to (prepare|step) query: ", "", text)
    text = text.rpartition("ERROR: ")[2]
    return f"{address.shown}: {' '.join(address.without_secrets(text).split()).rstrip('.')}"


class Pool:
    """The connections of this process: one for each thread that reads.

    Args:
        address: of the database.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._ours = threading.local()
        self._reached = False

    def run(self, work: Callable[[Connection], T], *, first: bool = False) -> T:
        """Return ``work(connection)``; where the connection is lost, open another and do it again.

        ``first``: nobody has reached this database before, so that what is wrong will not pass.

        Raises:
            ConnectionError: the database does not come back within a minute.
        """
        until = time.monotonic() + _PATIENCE_S
        delay = _FIRST_DELAY_S
        while True:
            try:
                return work(self._current())
            except LostError as error:
                self.drop()
                if self.address.path is not None and not isinstance(error, _ClosedError):
                    raise SourceError(f"{error}. {_OF_FILES}") from None
                if (first and not self._reached) or time.monotonic() >= until:
                    raise ConnectionError(f"{error}. {_OF_SERVERS}") from None
            except BaseException:
                self.drop()  # its transaction may have failed, or half an answer be on its way
                raise
            # Workers that lost it together do not come back together.
            time.sleep(delay * random.Random().uniform(0.5, 1.0))
            delay = min(2 * delay, _LONGEST_DELAY_S)

    def _current(self) -> Connection:
        found: Connection | None = getattr(self._ours, "connection", None)
        if found is None or not found.usable:
            self._ours.connection = None
            found = Connection(self.address)
            self._ours.connection = found
            self._reached = True
        return found

    def drop(self) -> None:
        """Close this thread's connection, if it has one."""
        found: Connection | None = getattr(self._ours, "connection", None)
        self._ours.connection = None
        if found is not None:
            found.close()


_of_sqlite: dict[int, weakref.ref[Connection]] = {}


def _before_fork() -> None:
    for reference in _of_sqlite.copy().values():  # a copy is one step, whatever other threads do
        connection = reference()
        if connection is not None:
            connection.close(_CLOSING_S)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)
