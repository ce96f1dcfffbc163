"""The training as it is shown: a live bar in a terminal, plain lines elsewhere."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


@dataclass(frozen=True)
class EpochResult:
    """What one epoch came to.

    Losses are means over samples, accuracy is a share of 1, ``samples_per_s`` counts the training
    alone, ``seconds`` training and validation.
    """

    number: int
    train_loss: float
    validation_loss: float
    accuracy: float
    samples_per_s: float
    seconds: float


class Display(ABC):
    """Shows the course of a training; use it as a context manager."""

    @abstractmethod
    def epoch_begins(self, number: int) -> None:
        """Epoch ``number``, counted from 1, begins."""

    @abstractmethod
    def step(self, loss: float, samples_per_s: float) -> None:
        """One more batch was trained on."""

    @abstractmethod
    def epoch_ends(self, result: EpochResult) -> None:
        """An epoch has ended and been validated."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027  (most displays hold nothing)
        """Release the terminal."""


class PlainDisplay(Display):
    """One line an epoch, for logs and pipes."""

    def __init__(self, console: Console, epochs: int) -> None:
        self._console = console
        self._epochs = epochs

    def epoch_begins(self, number: int) -> None:
        """Say nothing."""

    def step(self, loss: float, samples_per_s: float) -> None:
        """Say nothing."""

    def epoch_ends(self, result: EpochResult) -> None:
        """Print the epoch's line."""
        self._console.print(_epoch_line(result, self._epochs))


class LiveDisplay(Display):
    """A bar for the running epoch under the lines of those that have ended."""

    def __init__(self, console: Console, epochs: int, steps: int) -> None:
        self._console = console
        self._epochs = epochs
        self._progress = Progress(
            TextColumn("[bold]epoch {task.fields[number]}/" + str(epochs)),
            BarColumn(bar_width=30, complete_style="cyan", finished_style="cyan"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            transient=True,
        )
        first = _number(1, epochs)
        self._task = self._progress.add_task("", total=steps, number=first, figures="")

    def epoch_begins(self, number: int) -> None:
        """Empty the bar."""
        self._progress.update(self._task, completed=0, number=_number(number, self._epochs))

    def step(self, loss: float, samples_per_s: float) -> None:
        """Move the bar on."""
        figures = f"loss [magenta]{loss:.4f}[/]   {samples_per_s:,.0f} samples/s"
        self._progress.update(self._task, advance=1, figures=figures)

    def epoch_ends(self, result: EpochResult) -> None:
        """Print the epoch's line above the bar."""
        self._console.print(_epoch_line(result, self._epochs))

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def close(self) -> None:
        """Take the bar away and give the cursor back."""
        self._progress.stop()


def display_for(console: Console, epochs: int, steps: int) -> Display:
    """Return the display that suits the console."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveDisplay(console, epochs, steps)
    return PlainDisplay(console, epochs)


def _number(number: int, epochs: int) -> str:
    return str(number).rjust(len(str(epochs)))


def _epoch_line(result: EpochResult, epochs: int) -> str:
    return (
        f"epoch {_number(result.number, epochs)}/{epochs}"
        f"   train loss [magenta]{result.train_loss:.4f}[/]"
        f"   validation accuracy [cyan]{result.accuracy:.4f}[/]"
        f"   {result.samples_per_s:,.0f} samples/s"
    )
