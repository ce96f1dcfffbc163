"""The images of a batch as a labelled grid."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from headrace.written import save_figure

_MOST_SHOWN = 64
_COLUMNS = 8
_LABEL_CHARACTERS = 15


def draw_grid(images: Sequence[tuple[Any, str]], path: Path) -> None:
    """Draw arrays (H, W) or (H, W, 3), each under its label; 64 of them at most."""
    shown = images[:_MOST_SHOWN]
    columns = min(_COLUMNS, len(shown))
    rows = ceil(len(shown) / columns)
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(columns * 1.5 + 0.2, rows * 1.75 + 0.2), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, (image, label) in zip(grid.flat, shown, strict=False):
            axes.imshow(_in_range(image), cmap="gray", interpolation="nearest")
            short = (
                label if len(label) <= _LABEL_CHARACTERS else label[: _LABEL_CHARACTERS - 1] + "…"
            )
            axes.set_title(short, fontsize=9, pad=3)
        save_figure(figure, path, dpi=150, facecolor="white")


def _in_range(image: Any) -> Any:
    """Return colours that are floats in any range from the darkest to the brightest: 0 to 1."""
    if image.dtype.kind != "f" or image.ndim < 3:
        return image
    low, high = float(image.min()), float(image.max())
    return (image - low) / ((high - low) or 1)
