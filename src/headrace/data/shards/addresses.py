"""Which shards are meant: one address, several, braces, a pattern, a directory."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from headrace.data.images.walk import is_hidden
from headrace.data.shards.places import Place
from headrace.data.stores.remote import Object, Stores, is_remote, shown
from headrace.data.text.known import not_there
from headrace.errors import SourceError

Addresses: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_BRACES = re.compile(r"\{([^{}]*)\}")
_NESTED = re.compile(r"\{[^{}]*\{")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
_PATTERN = "*?["
_AT_MOST = 1_000_000


def find_shards(addresses: Addresses, ending: str, stores: Stores) -> list[Place]:
    """Return the places of the shards that addresses name, in their order.

    Args:
        addresses: one or several; in each, braces are written out as a shell writes them
            (``{000..146}``, ``{train,extra}``), a pattern (``*.tar``) is all that matches it and a
            directory all in it that ends with ``ending``, both sorted by name.
        ending: ".tar".
        stores: reads those that are not on this machine.

    Raises:
        SourceError: no address, or one that names no shard.
        OSError: there is no such file, or a store refuses access or does not answer.
    """
    single = isinstance(addresses, (str, os.PathLike))
    given: Iterable[str | os.PathLike[str]] = [addresses] if single else addresses  # type: ignore
    every = [written for address in given for written in written_out(os.fspath(address))]
    looked_at = [a for a in every if is_remote(a) and a.endswith(ending) and not _is_pattern(a)]
    known = iter(stores.look(looked_at) if looked_at else ())
    found: list[Place] = []
    for address in every:
        if not is_remote(address):
            found += map(Place.local, _local(address, ending))
        elif address.endswith(ending) and not _is_pattern(address):
            found.append(Place.remote(next(known)))
        else:
            found += map(Place.remote, _in_store(address, ending, stores))
    if not found:
        raise SourceError(
            f"there are no shards: the list of addresses is empty. Give it one, such as "
            f"'train/{{000..146}}{ending}'."
        )
    return found


def written_out(address: str) -> Iterator[str]:
    """Yield the addresses that one with braces stands for, the last braces counting fastest.

    Raises:
        SourceError: a range of more than a million, a step of 0, braces within braces.
    """
    if _NESTED.search(address):
        raise SourceError(
            f"{address} has braces within braces. Write a list of addresses: "
            f"['train/{{000..146}}.tar', 'extra/{{00..12}}.tar']."
        )
    found = _BRACES.search(address)
    if found is None:
        yield address
        return
    for choice in _choices(found[1], address):
        yield from written_out(address[: found.start()] + choice + address[found.end() :])


def _choices(inside: str, address: str) -> Iterable[str]:
    span = _RANGE.fullmatch(inside)
    if span is None:
        return inside.split(",")
    first, last = int(span[1]), int(span[2])
    step = abs(int(span[3] or 1))
    if not step or abs(last - first) // step >= _AT_MOST:
        raise SourceError(
            f"{{{inside}}} in {address} stands for no range of at most {_AT_MOST:,} shards. "
            f"Write {{000..146}}."
        )
    padded = any(
        len(text.lstrip("-")) > 1 and text.lstrip("-")[0] == "0" for text in span.groups()[:2]
    )
    width = max(len(span[1]), len(span[2])) if padded else 0
    down = -1 if last < first else 1
    return [f"{number:0{width}d}" for number in range(first, last + down, down * step)]


def _is_pattern(address: str) -> bool:
    return any(mark in address for mark in _PATTERN)


def _in_store(address: str, ending: str, stores: Stores) -> list[Object]:
    """Return the objects that match a pattern, or that are right in a directory."""
    if address.startswith("http"):
        raise SourceError(
            f"{shown(address)} is no address of a shard, and a web server does not list its files. "
            f"Write the address of each: 'https://.../{{000..146}}{ending}'."
        )
    pattern = address if _is_pattern(address) else f"{glob.escape(address.rstrip('/'))}/*{ending}"
    start = min((pattern.find(mark) for mark in _PATTERN if mark in pattern), default=len(pattern))
    above = pattern[:start].rpartition("/")[0] if _is_pattern(address) else address.rstrip("/")
    matches = re.compile(_as_expression(pattern)).fullmatch
    found = [about for about in stores.below(above + "/") if matches(about.address)]
    if not found:
        raise SourceError(
            f"nothing in the store matches {shown(address)} (shards end with {ending})."
        )
    return found


def _as_expression(pattern: str) -> str:
    """Return a pattern as a regular expression: a star is anything but a slash."""
    parts = re.split(r"(\*\*/?|\*|\?|\[[^\]]+\])", pattern)
    known = {"**": ".*", "**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        known.get(part) or (part.replace("[!", "[^") if part[:1] == "[" else re.escape(part))
        for part in parts
    )


def _local(address: str, ending: str) -> list[str]:
    path = os.path.expanduser(address.removeprefix("file://"))
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        names = sorted(os.listdir(path))
        found = [os.path.join(path, n) for n in names if n.endswith(ending) and not is_hidden(n)]
        if not found:
            raise SourceError(
                f"there is no file in the directory {path} that ends with {ending}. Write the "
                f"directory of the shards, or a pattern such as '{path}/*/*{ending}'."
            )
        return found
    if _is_pattern(path):
        found = sorted(glob.glob(path, recursive=True))
        if not found:
            raise SourceError(f"no file matches {address}. Write a pattern that some match.")
        return found
    raise not_there(path, FileNotFoundError(2, os.strerror(2), path))
