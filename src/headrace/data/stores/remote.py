"""Objects in stores (s3, gs, az) and files of web servers, read by ranges.

obstore, the client, keeps its threads for the whole process: in a child that was forked from a
process that had used it, every call hangs, that of a store opened anew too. Loaders fork workers
from the process that opened the dataset. So no process of the user's calls it: each has a process
beside it that does (``io_process.py``): started when it first needs one, ended with it.
"""

from __future__ import annotations

import atexit
import json
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from headrace import traffic
from headrace.data.files import Stamp
from headrace.errors import SourceChangedError, SourceError
from headrace.extras import import_extra

Options: TypeAlias = Mapping[str, Any]

SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss", "http", "https")

_PROGRAM = Path(__file__).with_name("io_process.py")
_GAP_BYTES = 256 << 10  # between two ranges that one request reads
_MOST_BYTES = 16 << 20  # in one request
_SECRET_LENGTH = 4


class Object(NamedTuple):
    """An object as it was when it was looked at; without an etag, that is when it changed."""

    address: str
    size_bytes: int
    etag: str
    modified_us: int

    @property
    def stamp(self) -> Stamp:
        """Its size, and a number that is another one when it has another etag, or time."""
        digest = blake2b(self.etag.encode(), digest_size=7).digest()
        return Stamp(self.size_bytes, int.from_bytes(digest, "big"))


def is_remote(address: str) -> bool:
    """Say whether an address is one of a store or of a web server."""
    return address.partition("://")[0] in SCHEMES and "://" in address


def shown(address: str) -> str:
    """Return an address without what may be secret in it: a password, a signature."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def shown_path(address: str) -> str:
    """Return a path as it is, and an address as :func:`shown`."""
    return shown(address) if is_remote(address) else address


class Stores:
    """Reads and writes objects with one set of options; pickled, it takes the options along."""

    def __init__(self, options: Options | None = None) -> None:
        self._options = dict(options or {})

    def look(self, addresses: Sequence[str]) -> list[Object]:
        """Return what is known of objects.

        Raises:
            OSError: one is not there, access is refused, or the store does not answer.
        """
        found, _ = self._ask({"do": "head", "addresses": list(addresses)})
        return [Object(*about) for about in found]

    def below(self, address: str) -> list[Object]:
        """Return the objects whose address begins with a directory's, sorted."""
        found, _ = self._ask({"do": "list", "address": address})
        return sorted(Object(*about) for about in found)

    def put(self, address: str, data: bytes) -> None:
        """Write an object."""
        self._ask({"do": "put", "address": address, "size": len(data)}, data)

    def fetch(self, about: Object, path: str, bound: int) -> str:
        """Begin to fetch an object to a file; return what went wrong with an earlier one, or ""."""
        problem, _ = self._ask(
            {
                "do": "fetch",
                "address": about.address,
                "etag": about.etag,
                "size": about.size_bytes,
                "path": path,
                "bound": bound,
            }
        )
        return self._without_secrets(problem, about.address)

    def read(self, ranges: Sequence[tuple[Object, int, int]]) -> list[bytes]:
        """Return the bytes of ranges (object, offset, size); neighbours come in one request.

        Raises:
            SourceChangedError: an object has another size or etag.
            OSError: it is not there, access is refused, or the store does not answer.
        """
        order = sorted(range(len(ranges)), key=lambda n: (ranges[n][0].address, ranges[n][1]))
        groups = list(_joined(ranges, order))
        spans: list[tuple[str, str, int, int, int]] = []
        for group in groups:
            about, first, _ = ranges[group[0]]
            last = max(ranges[n][1] + ranges[n][2] for n in group)
            spans.append((about.address, about.etag, about.size_bytes, first, last))
        wanted = [span for span in spans if span[4] > span[3]]
        _, parts = self._ask({"do": "read", "spans": wanted}) if wanted else (None, [])
        by_span = iter(parts)
        found = [b""] * len(ranges)
        for group, span in zip(groups, spans, strict=True):
            data = next(by_span) if span[4] > span[3] else b""
            for n in group:
                start = ranges[n][1] - span[3]
                found[n] = data[start : start + ranges[n][2]]
        return found

    def _ask(self, request: dict[str, Any], data: bytes = b"") -> tuple[Any, list[bytes]]:
        began = time.perf_counter()
        answer, parts = _Beside.of_this_process().ask({**request, "options": self._options}, data)
        traffic.add(sum(map(len, parts)), wait_s=time.perf_counter() - began)
        if "error" in answer:
            raise self._error(answer)
        return answer["ok"], parts

    def _error(self, answer: dict[str, str]) -> Exception:
        where, kind = shown(answer["address"]), answer["error"]
        text = self._without_secrets(answer["text"], answer["address"])
        if kind == "changed":
            return SourceChangedError(
                f"{where} has changed since it was opened: {text}. Leave shards alone while they "
                f"are read, and make the dataset again to read the new one."
            )
        if kind == "missing":
            return FileNotFoundError(
                2, "no such object: check the bucket, the path and the endpoint", where
            )
        if kind == "refused":
            return PermissionError(
                13,
                "access is refused: check the credentials (environment, AWS_PROFILE, or "
                "storage_options=), and what they may read",
                where,
            )
        if kind in ("unsupported", "wrong"):
            return SourceError(
                f"{where} cannot be read by ranges ({text}). Check the address, or download it."
            )
        return ConnectionError(f"{where} could not be read, after several attempts: {text}")

    def _without_secrets(self, text: str, address: str) -> str:
        secrets = [str(value) for value in self._options.values() if value]
        secrets += [urlsplit(address).query, urlsplit(address).netloc.rpartition("@")[0]]
        secrets += [
            value for name, value in os.environ.items() if "SECRET" in name or "KEY" in name
        ]
        for secret in secrets:
            if len(secret) >= _SECRET_LENGTH:
                text = text.replace(secret, "***")
        return text

    def __repr__(self) -> str:
        return "Stores()"  # what is in the options is nobody's business


def _joined(ranges: Sequence[tuple[Object, int, int]], order: Sequence[int]) -> Iterator[list[int]]:
    """Yield the numbers of ranges that one request reads."""
    group: list[int] = []
    first = last = 0
    for n in order:
        about, offset, size = ranges[n]
        near = (
            group
            and ranges[group[0]][0].address == about.address
            and offset <= last + _GAP_BYTES
            and offset + size - first <= _MOST_BYTES
        )
        if near:
            group.append(n)
            last = max(last, offset + size)
            continue
        if group:
            yield group
        group, first, last = [n], offset, offset + size
    if group:
        yield group


class RemoteFile:
    """An object that is read as a file is; each read looks whether it is what it was."""

    def __init__(self, about: Object, stores: Stores) -> None:
        self.path = shown(about.address)
        self.about = about
        self._stores = stores

    def check(self) -> None:
        """Do nothing: reading checks."""

    def read(self, offset: int, size_bytes: int) -> bytes:
        """Return bytes of the object."""
        return self._stores.read([(self.about, offset, size_bytes)])[0]


class _Beside:
    """The process beside this one."""

    lock = threading.RLock()
    ours: _Beside | None = None

    @classmethod
    def of_this_process(cls) -> _Beside:
        """Return it; start it where there is none, or it has ended."""
        with cls.lock:
            ours = cls.ours
            if ours is not None and ours._process.poll() is not None:
                ours.end()
                ours = None
            if ours is None:
                ours = cls.ours = cls()
            return ours

    def __init__(self) -> None:
        import_extra("obstore", "remote")
        with _memory_file() as counter:
            counter.truncate(mmap.PAGESIZE)
            self._counter = mmap.mmap(counter.fileno(), mmap.PAGESIZE)
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_PROGRAM), str(counter.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[counter.fileno()],
                start_new_session=True,  # Ctrl-C is the user's process's business
            )
        self._counted = 0
        self._counting = threading.Lock()
        traffic.count_beside(self._kept_bytes)

    def _kept_bytes(self) -> int:
        """Return the bytes of the shards that were fetched to be kept since it was last asked."""
        with self._counting:
            before = self._counted
            (self._counted,) = struct.unpack_from("<q", self._counter)
            return self._counted - before

    def ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], list[bytes]]:
        """Return the answer to a request, and the bytes that come with it."""
        written = json.dumps(request).encode()
        with self.lock:
            to, back = self._process.stdin, self._process.stdout
            assert to is not None
            assert back is not None
            try:
                to.write(len(written).to_bytes(4, "big") + written + data)
                to.flush()
                head = back.read(4)
                answer = json.loads(back.read(int.from_bytes(head, "big")))
                sizes = answer.get("ok") if request["do"] == "read" else None
                parts = [back.read(size) for size in sizes or ()]
            except BaseException as error:
                self.end()  # half an answer may be on its way
                if isinstance(error, (OSError, ValueError)):
                    raise ConnectionError(
                        "the process that reads object stores has ended (was it killed?); the next "
                        "read starts another"
                    ) from error
                raise
        if sizes and [len(part) for part in parts] != sizes:
            self.end()
            raise ConnectionError("the process that reads object stores has ended within an answer")
        return answer, parts

    def end(self) -> None:
        """End the process, which a later request starts again."""
        self._process.kill()
        self._process.communicate()

    def leave(self) -> None:
        """Let go, in a forked child, of its parent's: its pipes would keep the process alive."""
        for pipe in (self._process.stdin, self._process.stdout):
            raw = getattr(pipe, "raw", None)  # what a pipe has buffered is the parent's to write
            if raw is not None:
                raw.close()
        self._process.returncode = 0  # nobody waits for it here


def _memory_file() -> IO[bytes]:
    """Return a file without a name, in memory where the system has such."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("headrace"), "w+b")
    return tempfile.TemporaryFile()


def _in_child() -> None:
    _Beside.lock = threading.RLock()
    if _Beside.ours is not None:
        _Beside.ours.leave()
    _Beside.ours = None
    traffic.count_beside(None)


def _at_exit() -> None:
    if _Beside.ours is not None:
        _Beside.ours.end()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
