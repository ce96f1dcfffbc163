"""How far a file has come: a note beside it, so that a run that was killed goes on."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headrace.apply.rows import Column
from headrace.apply.sinks import part_path
from headrace.errors import StateError

_VERSION = 1
COMMIT_EVERY_S = 1.0


@dataclass
class Note:
    """What was written to a part file, and where the loader stood.

    Attributes:
        columns: what the function returned.
        length: rows of the input, None where that is not known.
        rows_look_like: type and shape of the input's arrays, None for other inputs.
        rows: rows written.
        batches: batches of the loader that they came from.
        loader: the loader's state behind them; None for loaders that have none.
        weights: a checksum of some values of the module's, None where there is none.
        values: a checksum of some rows of the input's arrays, None for other inputs.
        version: of this note.
    """

    columns: list[Column]
    length: int | None
    rows_look_like: list[str] | None
    rows: int = 0
    batches: int = 0
    loader: dict[str, Any] | None = None
    weights: int | None = None
    values: int | None = None
    version: int = _VERSION


class Notes:
    """Reads and writes the note of one file, about once a second."""

    def __init__(self, out: Path) -> None:
        self.part = part_path(out)
        self._rows = 0  # that the note on the disk speaks of
        self._path = out.with_name(f"{out.name}.part.json")
        self._new = self._path.with_name(f"{self._path.name}.new")
        self._due = time.monotonic() + COMMIT_EVERY_S

    def read(self) -> Note | None:
        """Return the note of a run that did not finish, None where there is none.

        Raises:
            StateError: it is not ours, or of another version.
        """
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        if not self.part.exists():
            self.remove()  # the run was killed between its last two steps: the file is whole
            return None
        try:
            values = json.loads(text)
            columns = [Column(c["name"], c["dtype"], tuple(c["shape"])) for c in values["columns"]]
            found = Note(**{**values, "columns": columns})
        except (ValueError, TypeError, KeyError) as error:
            raise self.refused(f"it cannot be read ({error})") from error
        if found.version != _VERSION:
            raise self.refused(f"it is of version {found.version}, and this is {_VERSION}")
        self._rows = found.rows
        return found

    def noted(self) -> str:
        """Say how much stays of a run that ends here."""
        if not self._rows:
            return "no row is kept. Make room, or write another out=, and call again"
        return f"{self._rows:,} rows are kept. Make room, and call again: it goes on behind them"

    def is_due(self) -> bool:
        """Say whether it is time for a note."""
        return time.monotonic() >= self._due

    def write(self, note: Note) -> None:
        """Replace the note; what it speaks of must be on the disk."""
        with open(self._new, "wb") as file:
            file.write(json.dumps(asdict(note)).encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(self._new, self._path)
        self._rows = note.rows
        self._due = time.monotonic() + COMMIT_EVERY_S

    def remove(self) -> None:
        """Remove the note of a file that is finished."""
        self._new.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def check(self, name: str, before: Any, now: Any) -> None:
        """Raise where an earlier run wrote something else.

        Raises:
            StateError: the two differ.
        """
        if before != now:
            raise self.refused(f"{name} was {_text(before)}, and now it is {_text(now)}")

    def refused(self, why: str) -> StateError:
        """Return the error for a part file that cannot be gone on with."""
        return StateError(
            f"{self.part} was begun by another call and cannot be gone on with: "
            f"{why.rstrip('.')}. "
            f"Delete it and {self._path.name} to start over, or call as before."
        )


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "nothing"
    return f"{value:,}" if isinstance(value, int) else str(value)
