"""The two pictures: one batch as it reaches the network, and how the training went."""

from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from torch import Tensor

from headrace.written import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from headrace.cli.demo.training import History

_PAPER = "#fbfaf7"
_INK = "#1d2b45"
_MUTED = "#7c8698"
_WATER = "#1f7a8c"
_RUST = "#d1603d"
_MOST_SHOWN = 64
_FONT: Any = {"font.family": "DejaVu Sans", "text.color": _INK, "axes.labelcolor": _INK}


def draw_batch(images: Tensor, labels: Tensor, path: Path) -> None:
    """Draw a batch as a grid, each image (1, 8, 8) under its label; 64 images at most."""
    shown = min(len(labels), _MOST_SHOWN)
    columns = min(8, shown)
    rows = ceil(shown / columns)
    part = "" if shown == len(labels) else f" (the first {shown})"
    noun = "digit" if len(labels) == 1 else "digits"
    with matplotlib.rc_context(_FONT):
        width = max(columns, 4) * 0.95 + 0.5
        figure = _figure(width, rows * 1.12 + 1.05)
        figure.suptitle(f"One batch of {len(labels)} {noun}{part}", fontsize=15, weight="bold")
        grid = figure.subplots(rows, columns, squeeze=False)
        ink = LinearSegmentedColormap.from_list("ink", ["#ffffff", "#9fb8c4", _INK])
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, image, label in zip(grid.flat, images, labels.tolist(), strict=False):
            axes.set_axis_on()
            axes.imshow(image.squeeze(0).numpy(), cmap=ink, vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color="#d9dde3", linewidth=0.8)
            axes.set_title(str(label), fontsize=12, weight="bold", color=_WATER, pad=3)
        save_figure(figure, path, dpi=150)


def draw_curves(history: "History", path: Path) -> None:
    """Draw the losses and the validation accuracy over the epochs, side by side."""
    with matplotlib.rc_context(_FONT):
        figure = _figure(11, 4.4)
        loss, accuracy = figure.subplots(1, 2)
        _draw_losses(loss, history)
        _draw_accuracy(accuracy, history)
        save_figure(figure, path, dpi=150)


def _draw_losses(axes: "Axes", history: "History") -> None:
    numbers = [epoch.number for epoch in history.epochs]
    steps = len(history.step_losses) / len(numbers)
    # A step's loss stands where it happened: epoch 1 lies between 0 and 1 on the axis.
    at = [(step + 1) / steps for step in range(len(history.step_losses))]
    axes.plot(at, history.step_losses, color=_WATER, alpha=0.25, linewidth=1, label="each batch")
    train = [epoch.train_loss for epoch in history.epochs]
    validation = [epoch.validation_loss for epoch in history.epochs]
    axes.plot(numbers, train, "o-", color=_WATER, markersize=4, label="training, epoch's mean")
    axes.plot(numbers, validation, "o-", color=_RUST, markersize=4, label="validation")
    axes.set_yscale("log")
    _dress(axes, "Loss", "cross-entropy (log scale)", len(numbers))
    axes.legend(frameon=False)


def _draw_accuracy(axes: "Axes", history: "History") -> None:
    numbers = [epoch.number for epoch in history.epochs]
    accuracies = [epoch.accuracy for epoch in history.epochs]
    axes.plot(numbers, accuracies, "o-", color=_RUST, markersize=4)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes.set_ylim(min(*accuracies, 0.9) - 0.03, 1.01)
    _dress(axes, "Accuracy", "validation images named right", len(numbers))
    axes.annotate(
        f"{accuracies[-1]:.1%}",
        (numbers[-1], accuracies[-1]),
        xytext=(0, -20),
        textcoords="offset points",
        ha="right",
        weight="bold",
        fontsize=13,
        color=_RUST,
    )


def _dress(axes: "Axes", title: str, quantity: str, epochs: int) -> None:
    axes.set_title(title, loc="left", weight="bold", fontsize=13)
    axes.set_xlabel("epoch")
    axes.set_ylabel(quantity)
    axes.set_xlim(0, epochs + max(0.4, epochs * 0.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c9ced6")


def _figure(width: float, height: float) -> Figure:
    # No pyplot: it would pick a window system and keep every figure alive.
    figure = Figure(figsize=(width, height), facecolor=_PAPER)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", rect=_inside(width, height))
    return figure


def _inside(width: float, height: float) -> tuple[float, float, float, float]:
    """Return the rectangle (left, bottom, width, height) that leaves a margin on all sides."""
    margin = 0.15
    return margin / width, margin / height, 1 - 2 * margin / width, 1 - 2 * margin / height
