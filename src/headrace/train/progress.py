"""How far a training has come: nested bars in a terminal or a notebook, plain lines elsewhere."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Self

from headrace.errors import MissingExtraError
from headrace.extras import import_extra

_REFRESH_S = 0.1
_LINE_EVERY_S = 30.0
_MANY = 50  # epochs, of which lines that follow each other within a second are left out
_QUICK_S = 1.0


class Progress:
    """Shows the course of a training on stderr; use it as a context manager.

    In a terminal, and in a notebook that has ipywidgets, a bar for the epochs and one for the
    steps. Elsewhere, and without rich, a line for each epoch, and one every 30 seconds within. No
    thread runs: the display is drawn from :meth:`step`, ten times a second.

    Args:
        epochs: epochs in all.
        first_epoch: epochs done before.
        show: False shows nothing (other ranks); True draws bars even where stderr is no terminal.
    """

    def __init__(
        self, epochs: int, first_epoch: int = 0, show: bool | Literal["auto"] = "auto"
    ) -> None:
        self._epochs, self._epoch = epochs, first_epoch
        self._view = _Nothing() if show is False else _view_of(epochs, first_epoch, show is True)
        self._shown: Mapping[str, float] = {}
        self._done, self._steps, self._what = 0, None, "training"
        self._began = self._next = time.monotonic()
        self._last_line = -math.inf

    _steps: int | None

    def __enter__(self) -> Self:
        self._view.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._view.stop()

    def begin_epoch(self, epoch: int, steps: int | None) -> None:
        """Begin an epoch, counted from 0, of so many steps; None if nobody knows."""
        self._epoch, self._began, self._shown = epoch, time.monotonic(), {}
        self._begin("training", steps)

    def begin_validation(self, steps: int | None) -> None:
        """Begin the validation of the epoch."""
        self._begin("validation", steps)

    def _begin(self, what: str, steps: int | None) -> None:
        self._what, self._steps, self._done = what, steps, 0
        self._next = time.monotonic() + self._view.begin(self._epoch, what, steps)

    def step(self, advance: int = 1, **shown: float) -> None:
        """Count steps; ``shown`` are the values to show from now on."""
        self._done += advance
        if shown:
            self._shown = shown
        if time.monotonic() >= self._next:
            self._draw()

    def validation_step(self) -> None:
        """Count a step of the validation."""
        self.step()

    def _draw(self) -> None:
        pause = self._view.draw(self._done, self._steps, self._what, self._shown)
        self._next = time.monotonic() + pause

    def end_epoch(self, values: Mapping[str, float]) -> None:
        """End the epoch with what it came to, which becomes a line."""
        now = time.monotonic()
        done, seconds = self._epoch + 1, now - self._began
        self._view.end_epoch(done)
        # A thousand epochs within a second would be a thousand lines: some of them say as much.
        if self._epochs > _MANY and done < self._epochs and now - self._last_line < _QUICK_S:
            return
        self._last_line = now
        number = str(done).rjust(len(str(self._epochs)))
        self.message(f"epoch {number}/{self._epochs}  {_values(values)}  {_duration(seconds)}")

    def message(self, text: str) -> None:
        """Show a line above the bars."""
        self._view.message(text)


class _Nothing:
    """What other ranks show; also what the other two displays are."""

    def start(self) -> None:
        """Take the terminal."""

    def stop(self) -> None:
        """Give it back."""

    def begin(self, epoch: int, what: str, steps: int | None) -> float:  # noqa: ARG002
        """Begin a bar; return the seconds until the next drawing."""
        return math.inf

    def draw(self, done: int, steps: int | None, what: str, shown: Mapping[str, float]) -> float:  # noqa: ARG002
        """Show a state; return the seconds until the next drawing."""
        return math.inf

    def end_epoch(self, done: int) -> None:
        """Show that so many epochs are done."""

    def message(self, text: str) -> None:
        """Show a line."""


class _Lines(_Nothing):
    """Plain lines, for logs, pipes and notebooks without widgets."""

    def __init__(self, epochs: int, first_epoch: int, stream: Any) -> None:
        self._epochs, self._stream = epochs, stream
        self._epoch = first_epoch

    def begin(self, epoch: int, what: str, steps: int | None) -> float:  # noqa: ARG002
        self._epoch = epoch
        return _LINE_EVERY_S

    def draw(self, done: int, steps: int | None, what: str, shown: Mapping[str, float]) -> float:
        of = "" if steps is None else f" of {steps:,}"
        text = f"epoch {self._epoch + 1}/{self._epochs}  {what}: step {done:,}{of}"
        self.message(f"{text}  {_values(shown)}".rstrip())
        return _LINE_EVERY_S

    def message(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class _Bars(_Nothing):
    """Two bars by rich, drawn by whoever calls."""

    def __init__(self, epochs: int, first_epoch: int, console: Any) -> None:
        rich = import_extra("rich.progress", "cli")
        self._console, self._epochs = console, epochs
        self._progress = rich.Progress(
            rich.TextColumn("{task.description}"),
            rich.BarColumn(bar_width=30),
            rich.MofNCompleteColumn(),
            rich.TimeRemainingColumn(),
            rich.TextColumn("{task.fields[shown]}"),
            console=console,
            auto_refresh=False,
            transient=True,
        )
        add = self._progress.add_task
        self._outer = add("epochs", total=epochs, completed=first_epoch, shown="")
        self._inner = add("training", total=None, shown="")
        self._drawn = -math.inf

    def start(self) -> None:
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()

    def begin(self, epoch: int, what: str, steps: int | None) -> float:
        self._progress.update(self._outer, completed=epoch)
        self._progress.disable = True  # reset() would draw, even for epochs of a millisecond
        self._progress.reset(self._inner, description=what, shown="")
        self._progress.tasks[self._inner].total = steps  # reset() takes None for "as it was"
        self._progress.disable = False
        self._refresh()
        return _REFRESH_S

    def draw(self, done: int, steps: int | None, what: str, shown: Mapping[str, float]) -> float:  # noqa: ARG002
        self._progress.update(self._inner, completed=done, shown=_values(shown))
        self._refresh()
        return _REFRESH_S

    def end_epoch(self, done: int) -> None:
        self._progress.update(self._outer, completed=done)
        self._refresh()

    def _refresh(self) -> None:
        """Draw, unless that was just done: it takes milliseconds, and epochs may take less."""
        now = time.monotonic()
        if now - self._drawn >= _REFRESH_S:
            self._drawn = now
            self._progress.refresh()

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)


def _view_of(epochs: int, first_epoch: int, force: bool) -> _Nothing:
    notebook = _in_notebook()
    # A notebook shows stderr in red.
    stream = sys.stdout if notebook else sys.stderr
    try:
        console = import_extra("rich.console", "cli").Console(
            file=None if notebook else stream, force_terminal=True if force else None
        )
    except MissingExtraError:
        return _Lines(epochs, first_epoch, stream)
    if notebook:
        bars = importlib.util.find_spec("ipywidgets") is not None
    else:
        bars = console.is_terminal and not console.is_dumb_terminal
    return _Bars(epochs, first_epoch, console) if bars else _Lines(epochs, first_epoch, stream)


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell" or "COLAB_RELEASE_TAG" in os.environ


def _values(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {_number(value)}" for name, value in values.items())


def _number(value: float) -> str:
    if isinstance(value, int) or not math.isfinite(value):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02} h" if hours else f"{minutes}:{seconds:02} min"
