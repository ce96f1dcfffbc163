"""The members of a tar archive, by one look at its headers: ustar, GNU's long names, pax.

The format is that of POSIX.1-2001 (pax) and of GNU tar's manual, "Basic Tar Format". Blocks of 512
bytes: a header, the content padded to whole blocks, the next header; a block of zeros ends it.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

Read: TypeAlias = Callable[[int, int], bytes]

BLOCK = 512

_FILES = (b"0", b"\0", b"7")
_DIRECTORY = b"5"
_WITHOUT_CONTENT = {b"1": "hard link", b"2": "link", b"3": "device", b"4": "device", b"6": "pipe"}
_LONG_NAME, _LONG_LINK, _SPARSE = b"L", b"K", b"S"
_PAX, _PAX_OF_ALL = b"x", b"g"
_MOST_PADDING_BYTES = 1 << 20  # behind the end: more than that is another archive
_LONGEST_NAME_BYTES = 1 << 20


class Fault(NamedTuple):
    """What is wrong at a place of an archive."""

    offset: int
    name: str  # of the member, "" where it has none that could be read
    reason: str


@dataclass
class Members:
    """The regular files of an archive in their order; ``left_out`` counts what is none, by kind."""

    names: list[str] = field(default_factory=list)
    offsets: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    faults: list[Fault] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    has_end: bool = False
    behind_end_bytes: int = 0


class _DamagedHeaderError(Exception):
    """A block that is no header; the text says why."""


def members_of(read: Read, size_bytes: int) -> Members:
    """Return the members of an archive.

    Behind a header that is damaged, the next one that is whole is looked for.

    Args:
        read: returns the bytes at an offset, of a size.
        size_bytes: of the archive.
    """
    scan = _Scan(read, size_bytes)
    while scan.position < size_bytes and not scan.found.has_end:
        try:
            scan.step()
        except _DamagedHeaderError as problem:
            scan.found.faults.append(Fault(scan.position, "", str(problem)))
            scan.resume()
    return scan.found


class _Scan:
    def __init__(self, read: Read, size_bytes: int) -> None:
        self.found = Members()
        self.position = 0
        self._read = read
        self._end = size_bytes
        self._name: str | None = None  # of the next member, as a member before it says
        self._size: int | None = None
        self._sparse = False

    def step(self) -> None:
        """Take the header at the position, and go on to the next one."""
        if self.position + BLOCK > self._end:
            left = self._end - self.position
            raise _DamagedHeaderError(f"the archive is cut short: {left} bytes of a header")
        block = self._read(self.position, BLOCK)
        if block[0] == 0 and not any(block):
            self.found.has_end = True
            behind = self._end - self.position
            self.found.behind_end_bytes = behind if behind > _MOST_PADDING_BYTES else 0
            return
        kind = block[156:157]
        if not _is_whole(block):
            raise _DamagedHeaderError("what should be a header does not have its checksum")
        size = _number(block[124:136])
        content = self.position + BLOCK
        if kind in (_LONG_NAME, _LONG_LINK, _PAX, _PAX_OF_ALL):
            self._take_notice(kind, content, size)
        else:
            size = self._take_member(kind, block, content, size)
        self.position = content + -(-size // BLOCK) * BLOCK

    def _take_notice(self, kind: bytes, content: int, size: int) -> None:
        if content + size > self._end:
            raise _DamagedHeaderError("the archive is cut short in a long name")
        if size > _LONGEST_NAME_BYTES:
            raise _DamagedHeaderError(f"a name would have {size:,} bytes")
        if kind == _LONG_NAME:
            self._name = _text(self._read(content, size))
        elif kind == _PAX:
            self._take_pax(self._read(content, size))

    def _take_pax(self, records: bytes) -> None:
        while records.strip(b"\0"):
            length, _, _ = records.partition(b" ")
            if not length.isdigit() or not len(length) < int(length) <= len(records):
                raise _DamagedHeaderError("a pax header that cannot be read")
            record, records = records[len(length) + 1 : int(length) - 1], records[int(length) :]
            key, _, value = record.partition(b"=")
            if key in (b"path", b"GNU.sparse.name"):
                self._name = value.decode("utf-8", "surrogateescape")
            elif key == b"size" and value.isdigit():
                self._size = int(value)
            self._sparse = self._sparse or key.startswith(b"GNU.sparse.")

    def _take_member(self, kind: bytes, block: bytes, content: int, size: int) -> int:
        """Take a member, or count it as left out; return how many bytes of content it has."""
        name = _name(block) if self._name is None else self._name
        size = size if self._size is None else self._size
        sparse = self._sparse or kind == _SPARSE
        self._name, self._size, self._sparse = None, None, False
        if kind == _DIRECTORY or (kind == b"\0" and name.endswith("/")):
            return 0
        if kind in _WITHOUT_CONTENT:
            self.found.left_out[_WITHOUT_CONTENT[kind]] += 1
            return 0
        if content + size > self._end:
            reason = (
                f"the archive is cut short: {self._end - content:,} of {size:,} bytes are there"
            )
            self.found.faults.append(Fault(content, name, reason))
        elif sparse:
            self.found.left_out["sparse file"] += 1
            size += self._sparse_blocks(block, content) * BLOCK
        elif kind in _FILES:
            self.found.names.append(name)
            self.found.offsets.append(content)
            self.found.sizes.append(size)
        else:
            self.found.left_out[f"member of type {kind.decode('latin-1')!r}"] += 1
        return size

    def _sparse_blocks(self, block: bytes, content: int) -> int:
        """Return how many blocks of a map stand before what a sparse file holds."""
        if block[156:157] != _SPARSE:
            return 0
        count, more = 0, block[482]
        while more and content + (count + 1) * BLOCK <= self._end:
            more = self._read(content + count * BLOCK, BLOCK)[504]
            count += 1
        return count

    def resume(self) -> None:
        """Go to the next block that is a header, or to the end."""
        self._name, self._size, self._sparse = None, None, False
        while self.position + 2 * BLOCK <= self._end:
            self.position += BLOCK
            block = self._read(self.position, BLOCK)
            if block[257:262] == b"ustar" and _is_whole(block):
                return
        self.position = self._end
        self.found.has_end = True  # there is a word on what is wrong already


def _is_whole(block: bytes) -> bool:
    """Say whether a header has its checksum; old programs summed the bytes as signed ones."""
    try:
        wanted = _number(block[148:156])
    except _DamagedHeaderError:
        return False
    rest = block[:148] + b" " * 8 + block[156:]
    total = sum(rest)
    return total == wanted or total - 256 * sum(byte >> 7 for byte in rest) == wanted


def _number(raw: bytes) -> int:
    """Return a number: octal digits, or where its first bit is set, the bytes of it."""
    if raw[0] & 0x80:
        return int.from_bytes(raw, "big") & ~(0x80 << 8 * (len(raw) - 1))
    digits = raw.partition(b"\0")[0].strip()
    try:
        value = int(digits or b"0", 8)
    except ValueError:
        value = -1
    if value < 0:
        raise _DamagedHeaderError("a header that no number can be read from")
    return value


def _name(block: bytes) -> str:
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345]:  # GNU's own format has other fields there
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")
