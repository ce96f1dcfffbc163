"""The process that reads object stores for another one: requests on stdin, answers on stdout.

It is a program by itself, which imports nothing of headrace and none of torch, so that it starts in
a tenth of a second. Why there is such a process: see ``remote.py``.

A request is 4 bytes of length and a JSON object: ``{"do": "read", "options": {...}, "spans":
[[address, etag, size, first, last], ...]}``, or "head", "list", "put" (with the bytes behind it).
An answer is 4 bytes of length, a JSON object, and for "read" the bytes that it says follow. The end
of stdin ends the process.
"""

import json
import os
import random
import sys
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
    modified = meta["last_modified"]
    return [address, meta["size"], meta["e_tag"] or "", int(modified.timestamp() * 1_000_000)]


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
        if meta["size"] != size or (etag and meta["e_tag"] and meta["e_tag"] != etag):
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


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer)
