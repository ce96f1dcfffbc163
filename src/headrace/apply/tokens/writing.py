"""A corpus that grows: the tokens, the lengths of documents, and a note of how far it has come."""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from headrace.apply.tokens.texts import Place
from headrace.errors import StateError
from headrace.written import told

_VERSION = 1
_NOTE_EVERY_S = 1.0
_CODES = {"uint16": 8, "int32": 4}  # Megatron's, of its index


@dataclass
class Note:
    """How far a corpus has come, and what it is made of.

    Attributes:
        made_of: files, tokenizer and options, as JSON knows them.
        documents: written.
        tokens: written.
        checksum: CRC-32 of them.
        place: where the last of their texts ends.
        version: of this note.
    """

    made_of: dict[str, Any]
    documents: int = 0
    tokens: int = 0
    checksum: int = 0
    place: tuple[int, int, int] = Place(0, 0, 0)
    version: int = _VERSION


class Writer:
    """Writes ``NAME.bin`` and ``NAME.idx``, Megatron's pair, and goes on with what was begun.

    Until all is written the files are called ``NAME.bin.part`` and ``NAME.idx.part``, and a note
    beside them, written about once a second, says how many bytes of them count.

    Raises:
        StateError: what was begun is made of something else.
        FileExistsError: the corpus is there.
    """

    def __init__(self, out: Path, dtype: str, made_of: dict[str, Any]) -> None:
        self.out, self.index = out, out.with_suffix(".idx")
        self._part, self._lengths_part = _part(out), _part(self.index)
        self._note_path = out.with_name(f"{out.name}.part.json")
        self._dtype = np.dtype(dtype)
        self.note = self._found(made_of) or Note(made_of)
        self.is_whole = out.exists() and not self._part.exists()
        if self.is_whole:  # killed between its last two steps
            self._tidy()
            return
        with told(out, self._kept):
            self._file = open(self._part, "ab")  # noqa: SIM115 - closed by close()
            self._lengths = open(self._lengths_part, "ab")  # noqa: SIM115
            self._file.truncate(self.note.tokens * self._dtype.itemsize)
            self._lengths.truncate(self.note.documents * 4)
        self._due = time.monotonic() + _NOTE_EVERY_S

    def _found(self, made_of: dict[str, Any]) -> Note | None:
        try:
            found = Note(**json.loads(self._note_path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            for path in (self.out, self.index):
                if path.exists():
                    raise FileExistsError(
                        f"{path} is there already, and is not written over. Remove it, or write "
                        f"another name."
                    ) from None
            return None
        except (ValueError, TypeError) as error:
            raise self._refused(f"its note cannot be read ({error})") from error
        if found.version != _VERSION:
            raise self._refused(f"its note is of version {found.version}")
        for name, value in made_of.items() if found.documents else ():
            if found.made_of.get(name) != value:
                before = found.made_of.get(name)
                raise self._refused(f"{name} was {before}, and now it is {value}")
        whole = self.out if self.out.exists() and not self._part.exists() else self._part
        sizes = {whole: found.tokens * self._dtype.itemsize}
        if whole is self._part:
            sizes[self._lengths_part] = found.documents * 4
        for path, size in sizes.items():
            if not path.exists() or path.stat().st_size < size:
                raise self._refused(f"{path.name} is shorter than its note says")
        return found

    def _refused(self, why: str) -> StateError:
        return StateError(
            f"{self._part} was begun by another run and cannot be gone on with: {why}. Remove "
            f"{self._part.name} and {self._note_path.name} to start over, or write as before."
        )

    def _kept(self) -> str:
        return (
            f"{self.note.documents:,} documents are kept. Make room, and call again: it goes on "
            f"behind them"
        )

    def add(self, tokens: npt.NDArray[Any], lengths: npt.NDArray[Any], place: Place) -> None:
        """Append documents, which end at a place of the texts."""
        raw = tokens.astype(self._dtype).tobytes()
        with told(self.out, self._kept):
            self._file.write(raw)
            self._lengths.write(lengths.astype("<i4").tobytes())
        self.note.documents += len(lengths)
        self.note.tokens += len(tokens)
        self.note.checksum = zlib.crc32(raw, self.note.checksum)
        self.note.place = place
        if time.monotonic() >= self._due:
            self.keep()

    def keep(self) -> None:
        """Have everything on the disk, and a note of it."""
        with told(self.out, self._kept):
            for file in (self._file, self._lengths):
                file.flush()
                os.fsync(file.fileno())
            _put(self._note_path, json.dumps(asdict(self.note)).encode())
        self._due = time.monotonic() + _NOTE_EVERY_S

    def finish(self) -> None:
        """Write the index, and give the files their names."""
        self.keep()
        self._close()
        lengths = np.fromfile(self._lengths_part, "<i4")
        sizes = lengths.astype(np.int64) * self._dtype.itemsize
        with told(self.out, self._kept):
            _put(
                self.index,
                b"MMIDIDX\x00\x00",
                struct.pack("<QB", 1, _CODES[self._dtype.name]),
                struct.pack("<QQ", len(lengths), len(lengths) + 1),
                lengths.tobytes(),
                (np.cumsum(sizes) - sizes).astype("<i8").tobytes(),
                np.arange(len(lengths) + 1, dtype="<i8").tobytes(),
            )
            os.replace(self._part, self.out)
            self._tidy()

    def _tidy(self) -> None:
        for path in (self._lengths_part, _new(self.index), _new(self._note_path), self._note_path):
            path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if error is not None and self.note.documents:
            with suppress(OSError):  # of a full disk, which was told already
                self.keep()
        self._close()
        if error is not None and not self.note.documents:
            self._part.unlink(missing_ok=True)
            self._tidy()

    def _close(self) -> None:
        self._file.close()
        self._lengths.close()


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _new(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _put(path: Path, *parts: bytes) -> None:
    """Write a file anew, whole or not at all; nobody else writes it, so one name is enough."""
    with open(_new(path), "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    os.replace(_new(path), path)
