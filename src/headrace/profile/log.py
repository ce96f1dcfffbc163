"""What a watched process writes down: JSON lines, appended, so that a kill loses half a second.

One file for each process. A line is an object with one key, its kind; a last line that is cut off
is left out when the file is read.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FIRST_FLUSH_S, _FLUSH_EVERY_S = 0.03, 0.5  # short programs leave something too


class Log:
    """The notes of this process; a fork of it begins its own."""

    def __init__(self, directory: str, role: str, loader: str | None) -> None:
        self.directory = directory
        self.loader = loader  # whose batches are being made
        self.begun = time.perf_counter()
        self._every_s = _FIRST_FLUSH_S
        self.next_flush = self.begun + self._every_s
        self._path = os.path.join(directory, f"{os.getpid()}-{role}.jsonl")
        # Appended to by one thread and taken from by another: both are one step of a deque's.
        self._rows: dict[str, deque[Any]] = {}
        self.note("process", pid=os.getpid(), parent=os.getppid(), role=role, loader=loader)

    def note(self, kind: str, **values: Any) -> None:
        """Write one thing down, at once."""
        self._append(json.dumps({kind: {"at": time.perf_counter(), **values}}) + "\n")

    def rows(self, kind: str) -> deque[Any]:
        """Return what rows of a kind are appended to, until they are flushed."""
        return self._rows.setdefault(kind, deque())

    def flush(self) -> None:
        """Write down the rows there are."""
        self._every_s = min(2 * self._every_s, _FLUSH_EVERY_S)
        self.next_flush = time.perf_counter() + self._every_s
        for kind, rows in list(self._rows.items()):
            taken = []
            with contextlib.suppress(IndexError):
                while True:
                    taken.append(rows.popleft())
            if taken:
                self._append(json.dumps({kind: taken}) + "\n")

    def _append(self, text: str) -> None:
        # Opened each time: no descriptor of ours is inherited, or closed by the program.
        with contextlib.suppress(OSError), open(self._path, "a", encoding="utf-8") as file:
            file.write(text)


def read(directory: str) -> Iterator[list[tuple[str, Any]]]:
    """Yield what each process wrote down, as (kind, values), in its order."""
    for path in sorted(Path(directory).glob("*.jsonl")):
        notes = []
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # cut off by a kill
                notes += json.loads(line).items()
        yield notes
