"""What a training measured, per step and per epoch: as lists, a table, JSON and a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headrace.errors import OptionError
from headrace.extras import data_frame
from headrace.train.curves import draw
from headrace.written import written_whole

if TYPE_CHECKING:
    import os

_MOST = 20_000  # rows of a kind: 1.3 MB of a checkpoint, and more than a picture has points
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class History:
    """The values of a training.

    Attributes:
        steps: a dict for each step whose values were read: ``step``, ``epoch`` and the values.
        epochs: a dict for each epoch: ``epoch`` and the values.

    Of more than 20,000 steps every second one is kept, of more than 40,000 every fourth, and so on,
    and so it is with epochs: a checkpoint holds a history, and must not grow with the training.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.epochs: list[dict[str, Any]] = []
        self._added = {"steps": 0, "epochs": 0}  # those that were not kept included

    def __repr__(self) -> str:
        last = ""
        if self.epochs:
            shown = [f"{k}={v:.4g}" for k, v in self.epochs[-1].items() if k != "epoch"]
            last = f", the last: {', '.join(shown)}"
        return f"<History of {len(self.epochs)} epochs and {len(self.steps)} steps{last}>"

    def add_step(self, step: int, epoch: int, **values: float) -> None:
        """Add what was read at a step, counted over all epochs."""
        self._add("steps", {"step": int(step), "epoch": int(epoch), **_numbers(values)})

    def add_epoch(self, epoch: int, **values: float) -> None:
        """Add what an epoch came to."""
        self._add("epochs", {"epoch": int(epoch), **_numbers(values)})

    def _add(self, kind: Literal["steps", "epochs"], row: dict[str, Any]) -> None:
        rows, added = getattr(self, kind), self._added[kind]
        every = _kept_every(added + 1)
        if every != _kept_every(added):
            del rows[1::2]
        if added % every == 0:
            rows.append(row)
        self._added[kind] = added + 1

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the loss of each step and the curves over the epochs, into a file (.png, .svg).

        Values named ``train_x`` and ``val_x`` share one panel.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        draw(self.steps, self.epochs, path)

    def to_frame(self, of: Literal["epochs", "steps"] = "epochs") -> Any:
        """Return the values as a data frame, a row for each epoch or step.

        It is pandas' where that is installed, else polars'.

        Raises:
            OptionError: ``of`` is neither.
            MissingExtraError: neither is installed.
        """
        if of not in ("epochs", "steps"):
            raise OptionError(f"of={of!r}: write to_frame('epochs') or to_frame('steps').")
        rows = self.epochs if of == "epochs" else self.steps
        columns = list(dict.fromkeys(key for row in rows for key in row))
        return data_frame({key: [row.get(key) for row in rows] for key in columns})

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the values as JSON text, and write it to ``path`` if one is given.

        JSON has no word for them, so values that are not finite stand there as "NaN", "Infinity"
        and "-Infinity".
        """
        text = json.dumps(self.state_dict(), allow_nan=False)
        if path is not None:
            with written_whole(Path(path)) as file:
                file.write(f"{text}\n".encode())
        return text

    def state_dict(self) -> dict[str, Any]:
        """Return all values as JSON values: a copy."""
        return {
            "steps": [_encoded(row) for row in self.steps],
            "epochs": [_encoded(row) for row in self.epochs],
            "added": dict(self._added),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Replace all values by those of a state, or of what :meth:`to_json` wrote."""
        added = state_dict.get("added")
        for kind in ("steps", "epochs"):
            rows = [_decoded(row) for row in state_dict[kind]]
            count = len(rows) if added is None else int(added[kind])
            if added is None:  # written when every row was kept
                rows = rows[:: _kept_every(count)]
            setattr(self, kind, rows)
            self._added[kind] = count


def _kept_every(added: int) -> int:
    """Return of how many rows one is kept, when so many were added: a power of two."""
    return 1 << max(0, -(-added // _MOST) - 1).bit_length()


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: value if type(value) is int else float(value) for key, value in values.items()}


def _encoded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value if math.isfinite(value) else _word(value) for key, value in row.items()}


def _word(value: float) -> str:
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def _decoded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _WORDS[v] if isinstance(v, str) else v for k, v in row.items()}
