"""How far something long has come: nothing for two seconds, then a bar or plain lines."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from torch.utils.data import get_worker_info

from headrace.errors import MissingExtraError
from headrace.extras import import_extra

_SILENT_S = 2.0
_LINE_EVERY_S = 10.0


class Progress:
    """Shows on stderr how far something has come, once it has taken two seconds.

    A bar (rich) in a terminal, a line every ten seconds elsewhere, in a worker process, and where
    rich is not installed.

    Args:
        what: what is done: "indexing train.jsonl".
        total: units in all, None where nobody knows.
        unit: what is counted: "samples", "bytes".
    """

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._rate = ""
        self._next = time.monotonic() + _SILENT_S
        self._bar: Any = None
        self._started = False
        self._told = -1  # units, in the last line

    def __enter__(self) -> Self:
        return self

    def advance(self, units: int = 1, *, rate: str = "") -> None:
        """Say that ``units`` more are done; ``rate`` stands behind the bar: "2.1 M tokens/s"."""
        self._done += units
        self._rate = rate
        if self._bar is not None:
            self._bar.update(0, completed=self._done, rate=rate)
        elif time.monotonic() >= self._next:
            self._show()

    def _show(self) -> None:
        if not self._started:
            self._started = True
            self._bar = _bar(self._what, self._total, self._done)
        if self._bar is None:
            self._next = time.monotonic() + _LINE_EVERY_S
            self._line()

    def _line(self) -> None:
        if self._told == self._done:
            return
        self._told = self._done
        whole = "" if self._total is None else f" of {self._total:,}"
        rate = self._rate and f", {self._rate}"
        count = f"{self._done:,}{whole} {self._unit}{rate}"
        print(f"headrace: {self._what}: {count}", file=sys.stderr, flush=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._started and error is None:
            self._line()


def _bar(what: str, total: int | None, done: int) -> Any:
    """Return a bar that has begun, None where lines are the better way."""
    if get_worker_info() is not None or not sys.stderr.isatty():
        return None
    try:
        console = import_extra("rich.console", "cli").Console(stderr=True)
        progress = import_extra("rich.progress", "cli")
    except MissingExtraError:
        return None
    if console.is_dumb_terminal:
        return None
    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=30),
        progress.TaskProgressColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[rate]}"),
        console=console,
        transient=True,
    )
    bar.add_task(what, total=total, completed=done, rate="")
    bar.start()
    return bar
