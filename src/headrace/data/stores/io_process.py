"""The process that reads object stores for another one: requests on stdin, answers on stdout.

It is a program by itself, which imports nothing of headrace and none of torch, so that it starts in
a tenth of a second. Why there is such a process: see ``remote.py``. Its argument is the descriptor
of a file, in which it counts the bytes of the shards that it fetches whole.

A request is 4 bytes of length and a JSON object: ``{"do": "read", "options": {...}, "spans":
[[address, etag, size, first, last], ...]}``, or "head", "list", "fetch", "put" (its bytes follow).
An answer is 4 bytes of length, a JSON object, and for "read" the bytes that it says follow. The end
of stdin ends the process.
"""

import fcntl
import json
import mmap
import os
import random
import struct
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import obstore
from obstore import exceptions
from obstore.store import from_url

_ATTEMPTS = 6
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 5.0
_AT_ONCE = 16
_PIECE_BYTES = 8 << 20
_PIECES_AT_ONCE = 4

# What another attempt will not change.
_FINAL = {
    "missing": (exceptions.NotFoundError, FileNotFoundError),
    "refused": (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError),
    "changed": (exceptions.PreconditionError, exceptions.NotModifiedError),
    "unsupported": (exceptions.NotSupportedError,),
    "wrong": (exceptions.InvalidPathError, exceptions.UnknownConfigurationKeyError, ValueError),
}

_stores: dict[tuple[str, str], Any] = {}


class _ChangedError(Exception):
    """An object that is not the one that was asked for."""


def _store_of(address: str, options: dict[str, Any]) -> tuple[Any, str]:
    """Return the store of an address, and the path in it."""
    parts = urlsplit(address)
    base = f"{parts.scheme}://{parts.netloc}"
    key = (base, json.dumps(options, sort_keys=True))
    if key not in _stores:
        given = dict(options)
        profile = given.pop("profile", None) or os.environ.get("AWS_PROFILE")
        client = {"timeout": "60s", **given.pop("client_options", {})}
        endpoint = str(
            given.get("endpoint")
            or os.environ.get("AWS_ENDPOINT_URL_S3")
            or os.environ.get("AWS_ENDPOINT_URL")
            or os.environ.get("AWS_ENDPOINT")
            or ""
        )
        if parts.scheme == "http" or endpoint.startswith("http://"):
            client["allow_http"] = True
        if parts.scheme.startswith("s3"):
            if endpoint:
                given.setdefault("endpoint", endpoint)
            if profile:
                given["credential_provider"] = _profile(profile)
        retries: Any = {"max_retries": 0}  # they are made here, where what may pass is known
        settings: dict[str, Any] = {**given, "client_options": client, "retry_config": retries}
        _stores[key] = from_url(base, **settings)
    return _stores[key], parts.path.lstrip("/")


def _profile(name: str) -> Any:
    import boto3  # type: ignore[import-untyped,import-not-found,unused-ignore]
    from obstore.auth.boto3 import Boto3CredentialProvider

    return Boto3CredentialProvider(boto3.Session(profile_name=name))


def _again(attempt: Callable[[], Any]) -> Any:
    """Return what an attempt returns; make others, at growing and random times, where one fails."""
    wait_s = _FIRST_WAIT_S
    for number in range(_ATTEMPTS):
        try:
            return attempt()
        except Exception as error:
            final = isinstance(error, _ChangedError) or _kind(error) != "failed"
            if final or number == _ATTEMPTS - 1:
                raise
        time.sleep(wait_s * random.uniform(0.5, 1.5))
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
    raise AssertionError


def _kind(error: Exception) -> str:
    if isinstance(error, _ChangedError):
        return "changed"
    return next((kind for kind, types in _FINAL.items() if isinstance(error, types)), "failed")


def _about(address: str, meta: Any) -> list[Any]:
    return [address, meta["size"], _version(meta), _modified_us(meta)]


def _version(meta: Any) -> str:
    """Return an object's etag, or where its server has none, when it changed."""
    return meta["e_tag"] or f"changed at {_modified_us(meta)}"


def _modified_us(meta: Any) -> int:
    return int(meta["last_modified"].timestamp() * 1_000_000)


def _head(address: str, options: dict[str, Any]) -> list[Any]:
    store, path = _store_of(address, options)
    found: list[Any] = _again(lambda: _about(address, obstore.head(store, path)))
    return found


def _list(address: str, options: dict[str, Any]) -> list[list[Any]]:
    store, prefix = _store_of(address, options)
    base = address[: len(address) - len(prefix)]

    def attempt() -> list[list[Any]]:
        pages = obstore.list(store, prefix=prefix.rstrip("/") or None)
        return [_about(base + meta["path"], meta) for page in pages for meta in page]

    found: list[list[Any]] = _again(attempt)
    return found


def _read(span: list[Any], options: dict[str, Any]) -> Any:
    address, etag, size, first, last = span
    store, path = _store_of(address, options)
    asked: Any = {"range": (first, last)}

    def attempt() -> Any:
        found = obstore.get(store, path, options=asked)
        meta = found.meta
        if meta["size"] != size or _version(meta) != etag:
            raise _ChangedError(f"it had {size:,} bytes and has {meta['size']:,}")
        data = found.bytes()
        if len(data) != last - first:
            raise OSError(f"{len(data):,} of {last - first:,} bytes came")
        return data

    return _again(attempt)


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    pool = ThreadPoolExecutor(_AT_ONCE)
    while head := requests.read(4):
        request = json.loads(requests.read(int.from_bytes(head, "big")))
        options, body = request.get("options", {}), []
        address = request.get("address", "")
        try:
            if request["do"] == "read":
                waiting = [pool.submit(_read, span, options) for span in request["spans"]]
                for span, future in zip(request["spans"], waiting, strict=True):
                    address = span[0]
                    body.append(future.result())
                answer: Any = {"ok": [len(data) for data in body]}
            elif request["do"] == "head":
                looks = [(a, pool.submit(_head, a, options)) for a in request["addresses"]]
                about = []
                for asked, look in looks:
                    address = asked
                    about.append(look.result())
                answer = {"ok": about}
            elif request["do"] == "list":
                answer = {"ok": _list(address, options)}
            elif request["do"] == "fetch":
                answer = {"ok": _keeper.fetch(request, options)}
            else:
                data = requests.read(request["size"])
                store, path = _store_of(address, options)
                _again(partial(obstore.put, store, path, data))
                answer = {"ok": None}
        except Exception as error:
            body = []
            text = str(error).partition("\n")[0] or type(error).__name__
            answer = {"error": _kind(error), "text": text, "address": address}
        written = json.dumps(answer).encode()
        answers.write(len(written).to_bytes(4, "big") + written)
        for data in body:
            answers.write(data)
        answers.flush()


class _Keeper:
    """Fetches shards into a directory, one at a time, beside what is read.

    ``x.shard.part`` is what is on its way, as long as the shard from the beginning so that its room
    is taken; whoever holds its lock fetches it. ``x.shard.mark`` names the file that was put in the
    place of ``x.shard``: only what has its mark is ever removed.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._waiting: set[str] = set()
        self._problem = ""
        self.counter: Any = None  # of the bytes that were fetched, which the other process reads
        self._counted = 0
        self._counting = threading.Lock()

    def fetch(self, request: dict[str, Any], options: dict[str, Any]) -> str:
        """Begin to fetch a shard; return what went wrong with the last one, "" for nothing."""
        path = request["path"]
        if path not in self._waiting:
            self._waiting.add(path)
            self._pool.submit(self._attempt, request, options)
        problem, self._problem = self._problem, ""
        return problem

    def _attempt(self, request: dict[str, Any], options: dict[str, Any]) -> None:
        path = request["path"]
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            descriptor = os.open(path + ".part", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._hold(descriptor, path, request, options)
            finally:
                os.close(descriptor)
        except BlockingIOError:
            pass  # another process fetches it
        except Exception as error:
            self._problem = str(error).partition("\n")[0] or type(error).__name__
        finally:
            self._waiting.discard(path)

    def _hold(
        self, descriptor: int, path: str, request: dict[str, Any], options: dict[str, Any]
    ) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part = path + ".part"
        if not _is_at(part, descriptor):
            return  # it was fetched meanwhile
        if os.path.exists(path):
            os.unlink(part)
            return
        try:
            if not self._take_room(descriptor, path, request["size"], request["bound"]):
                os.unlink(part)
                return
            firsts = range(0, request["size"], _PIECE_BYTES)
            piece = partial(self._piece, descriptor, request, options)
            with ThreadPoolExecutor(_PIECES_AT_ONCE) as pool:
                for _ in pool.map(piece, firsts):
                    pass
            os.fsync(descriptor)
            found = os.fstat(descriptor)
            with open(path + ".mark", "w", encoding="ascii") as mark:
                mark.write(f"{found.st_dev} {found.st_ino} {found.st_size}")
            os.rename(part, path)
        except BaseException:
            os.unlink(part)
            raise

    def _piece(
        self, descriptor: int, request: dict[str, Any], options: dict[str, Any], first: int
    ) -> None:
        last = min(first + _PIECE_BYTES, request["size"])
        span = [request["address"], request["etag"], request["size"], first, last]
        data = memoryview(_read(span, options))
        if self.counter is not None:
            with self._counting:
                self._counted += len(data)
                struct.pack_into("<q", self.counter, 0, self._counted)
        while data:
            data = data[os.pwrite(descriptor, data, last - len(data)) :]

    def _take_room(self, descriptor: int, path: str, size: int, bound: int) -> bool:
        """Give up the shards used least recently until there is room, and take it."""
        folder = os.path.dirname(path)
        lock = os.open(os.path.join(folder, ".room.lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.ftruncate(descriptor, 0)
            used, own = 0, []
            for entry in os.scandir(folder):
                if entry.name.endswith((".shard", ".part")) and entry.is_file():
                    found = entry.stat()
                    used += found.st_size
                    if entry.name.endswith(".shard") and _has_mark(entry.path, found):
                        own.append((found.st_mtime_ns, found.st_size, entry.path))
                    elif entry.name.endswith(".part") and entry.path != path + ".part":
                        used -= _removed_if_abandoned(entry.path, found.st_size)
            for _, freed, oldest in sorted(own):
                if used + size <= bound:
                    break
                os.unlink(oldest)
                os.unlink(oldest + ".mark")
                used -= freed
            if used + size > bound:
                return False
            os.truncate(descriptor, size)
            return True
        finally:
            os.close(lock)


def _is_at(path: str, descriptor: int) -> bool:
    """Say whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _has_mark(path: str, found: os.stat_result) -> bool:
    try:
        with open(path + ".mark", encoding="ascii") as mark:
            return mark.read() == f"{found.st_dev} {found.st_ino} {found.st_size}"
    except OSError:
        return False


def _removed_if_abandoned(part: str, size: int) -> int:
    """Remove what a process that was killed left on its way; return how many bytes that frees."""
    try:
        descriptor = os.open(part, os.O_RDWR)
    except FileNotFoundError:
        return size
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(part, descriptor):
            os.unlink(part)
        return size
    except BlockingIOError:
        return 0
    finally:
        os.close(descriptor)


_keeper = _Keeper()


if __name__ == "__main__":
    _keeper.counter = mmap.mmap(int(sys.argv[1]), mmap.PAGESIZE)
    _serve(sys.stdin.buffer, sys.stdout.buffer)
