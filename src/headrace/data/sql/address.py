"""Addresses of databases, taken apart; what is secret in one is shown nowhere."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass, field
from typing import Literal, TypeAlias
from urllib.parse import parse_qsl, quote, unquote

from headrace.data.files import PathLike
from headrace.errors import OptionError, OptionTypeError, SourceError

Kind: TypeAlias = Literal["sqlite", "duckdb", "postgresql"]

_KINDS: dict[str, Kind] = {
    "sqlite": "sqlite",
    "duckdb": "duckdb",
    "postgresql": "postgresql",
    "postgres": "postgresql",
}
_KNOWN = (
    "Write sqlite:///relative.db, sqlite:////absolute.db, duckdb:///file.duckdb, "
    "postgresql://user:password@host/database, or the path of a file."
)
_SQLITE = b"SQLite format 3\0"
_DUCKDB = b"DUCK"
_DUCKDB_AT = 8
_LOGS = {"sqlite": "-wal", "duckdb": ".wal"}


@dataclass(frozen=True)
class Address:
    """Where a database is.

    ``shown`` is the address without user and password, ``name`` a word for files, ``path`` the
    file of a database that is one. ``user`` is whose rights count. The address itself, and what is
    secret in it, stay out of the representation.
    """

    kind: Kind
    shown: str
    name: str
    path: str | None
    user: str = field(repr=False)
    uri: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False, default=())

    def without_secrets(self, text: object) -> str:
        """Return a text with what is secret left out."""
        said = str(text)
        for secret in sorted(self.secrets, key=len, reverse=True):
            said = said.replace(secret, "***")
        return said

    def files(self) -> list[str]:
        """Return the files that say whether the database is what it was: its own, and a log.

        Raises:
            FileNotFoundError: it is not there.
        """
        if self.path is None:
            return []
        if not os.path.exists(self.path):
            raise FileNotFoundError(
                errno.ENOENT, "there is no such database, and none is made", self.path
            )
        log = self.path + _LOGS[self.kind]
        return [self.path, log] if os.path.exists(log) and os.path.getsize(log) else [self.path]

    def stamps(self) -> list[tuple[int, int]]:
        """Return sizes and times of change of the files."""
        found = [os.stat(path) for path in self.files()]
        return [(one.st_size, one.st_mtime_ns) for one in found]


def is_database(uri: str) -> bool:
    """Say whether a text is the address of a database of a known kind."""
    return "://" in uri and _scheme(uri) in _KINDS


def address_of(uri: PathLike) -> Address:
    """Take an address, or the path of a file, apart.

    Raises:
        OptionError: it is of no kind that is known, or a database in memory.
        SourceError: a file that is no database.
        FileNotFoundError: there is no such file.
    """
    if not isinstance(uri, (str, os.PathLike)):
        raise OptionTypeError(
            f"uri is the address of a database, got {type(uri).__name__}. {_KNOWN}"
        )
    text = os.fspath(uri)
    if not isinstance(text, str):
        raise OptionTypeError(f"uri is a text, got {text!r:.80}. {_KNOWN}")
    if "://" not in text:
        return _of_path(text)
    kind = _KINDS.get(_scheme(text))
    if kind is None:
        raise OptionError(f"{_scheme(text)}:// is no database that is read here. {_KNOWN}")
    rest = text.partition("://")[2]
    return _of_server(rest) if kind == "postgresql" else _of_file(kind, rest)


def _scheme(uri: str) -> str:
    """Return the kind of an address; SQLAlchemy names the client behind a "+"."""
    return uri.partition("://")[0].partition("+")[0].lower()


def _of_path(path: str) -> Address:
    _refuse_memory(path)
    if not os.path.exists(path):
        raise FileNotFoundError(errno.ENOENT, f"there is no such database. {_KNOWN}", path)
    _refuse_directory(path)
    with open(path, "rb") as file:
        head = file.read(_DUCKDB_AT + len(_DUCKDB))
    if head and head[_DUCKDB_AT:] != _DUCKDB and not _SQLITE.startswith(head):
        raise SourceError(f"{path} is no SQLite and no DuckDB file. {_KNOWN}")
    return _made("duckdb" if head[_DUCKDB_AT:] == _DUCKDB else "sqlite", path, "")


def _of_file(kind: Kind, rest: str) -> Address:
    path, _, options = rest.partition("?")
    _refuse_memory(path.removeprefix("/"))
    if not path.startswith("/"):
        raise OptionError(
            f"{kind}://{path} has two slashes. Three are before a relative path, four before an "
            f"absolute one: write {kind}:///{path}."
        )
    path = path.removeprefix("/").removeprefix("file:")
    if not os.path.exists(path) and os.path.exists(unquote(path)):
        path = unquote(path)
    if os.path.exists(path):
        _refuse_directory(path)
    made = _made(kind, path, options)
    made.files()
    return made


def _made(kind: Kind, path: str, options: str) -> Address:
    whole = os.path.abspath(path)
    # Never written to, and never made: an empty database in the place of a misspelt one.
    kept = [f"{k}={quote(v)}" for k, v in parse_qsl(options) if k not in ("mode", "uri")]
    uri = f"file:{quote(whole)}?{'&'.join(['mode=ro', *kept])}" if kind == "sqlite" else whole
    stem = os.path.splitext(os.path.basename(whole))[0]
    return Address(kind, f"{kind}:///{path}", stem, whole, "", uri)


def _refuse_memory(path: str) -> None:
    if path in ("", "/", ":memory:", "/:memory:", "file::memory:") or "mode=memory" in path:
        raise OptionError(
            "a database in memory belongs to the one connection that made it: ours, of each worker "
            'and thread, would all be empty. Write it to a file first: connection.execute("VACUUM '
            "INTO 'train.db'\"), or COPY FROM DATABASE in DuckDB."
        )


def _refuse_directory(path: str) -> None:
    if os.path.isdir(path):
        raise SourceError(f"{path} is a directory, no database. {_KNOWN}")


def _of_server(rest: str) -> Address:
    authority = re.split(r"[/?]", rest, maxsplit=1)[0]
    tail, _, options = rest[len(authority) :].partition("?")
    account, at, hosts = authority.rpartition("@")
    login, colon, password = account.partition(":")
    ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts.split(",")]
    whole = re.sub(r"%[0-9A-Fa-f]{2}", "", rest)
    # The client would take a part of the password for the host or the port, and say it in its
    # errors.
    if "@" in account or "@" in tail or "%" in whole or not all(map(_is_port, ports)):
        raise OptionError(
            "the address of the database cannot be taken apart: a user, password or name in it has "
            "a character of its own meaning (@ / ? : %). Write urllib.parse.quote(password, "
            "safe='') in its place; @ is %40 then."
        )
    given = parse_qsl(options, keep_blank_values=True)
    hidden = [password] if colon else []
    hidden += [part.partition("=")[2] for part in options.split("&") if _is_secret(part)]
    secrets = {form for text in hidden for form in (text, unquote(text)) if form}
    place = {name: value for name, value in given if name in ("host", "port", "dbname")}
    more = "?" + "&".join(f"{name}={value}" for name, value in place.items()) if place else ""
    name = unquote(tail.removeprefix("/")) or place.get("dbname", "") or "database"
    shown = f"postgresql://{hosts}{tail}{more}"
    user = unquote(login) if at else dict(given).get("user", "")
    safe = re.sub(r"\W", "_", name)
    return Address(
        "postgresql", shown, safe, None, user, f"postgresql://{rest}", tuple(sorted(secrets))
    )


def _is_port(text: str) -> bool:
    return not text or text.isdigit()


def _is_secret(option: str) -> bool:
    name = option.partition("=")[0].lower()
    return "password" in name or "passwd" in name or "secret" in name
