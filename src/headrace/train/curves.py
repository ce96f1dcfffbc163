"""The picture of a training: the loss of each step, and curves over the epochs."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.extras import import_extra
from headrace.written import save_figure

if TYPE_CHECKING:
    import os

_TRAIN = "#1f7a8c"
_COLORS = {"training": _TRAIN, "validation": "#d1603d", "value": "#5b6b8c"}
_INK, _MUTED, _PAPER = "#1d2b45", "#7c8698", "#fbfaf7"
_MOST_COLUMNS = 3
_MANY = 50  # epochs from which on points are not marked

Rows = list[dict[str, Any]]


def draw(steps: Rows, epochs: Rows, path: str | os.PathLike[str]) -> None:
    """Draw ``History.steps`` and ``History.epochs`` into a file, its type by the name's ending.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    matplotlib = import_extra("matplotlib", "plots")
    figure_module = import_extra("matplotlib.figure", "plots")
    groups = panels_of(epochs)
    step_values = [key for key in keys_of(steps) if key == "loss" or key.endswith("_loss")][:1]
    count = max(1, len(step_values) + len(groups))
    columns = min(count, _MOST_COLUMNS)
    rows = math.ceil(count / columns)
    with matplotlib.rc_context({"text.color": _INK, "axes.labelcolor": _INK, "font.size": 10}):
        # No pyplot: it would pick a window system and keep every figure alive.
        size = (max(5.5, 4.6 * columns), 3.5 * rows)
        figure = figure_module.Figure(figsize=size, facecolor=_PAPER, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for unused in axes[count:]:
            unused.set_axis_off()
        for key in step_values:
            _draw_steps(axes.pop(0), steps, key)
        for name, keys in groups.items():
            _draw_epochs(axes.pop(0), epochs, name, keys)
        if not step_values and not groups:
            axes[0].text(0.5, 0.5, "no values yet", ha="center", color=_MUTED)
            axes[0].set_axis_off()
        save_figure(figure, Path(path), dpi=150)


def panels_of(epochs: Rows) -> dict[str, list[str]]:
    """Return which values share a panel: ``train_x``, ``val_x`` and ``x`` do; times have none."""
    groups: dict[str, list[str]] = {}
    for key in keys_of(epochs):
        if key == "seconds" or key.endswith("_s"):
            continue  # how long it took is no curve of the training
        groups.setdefault(key.removeprefix("train_").removeprefix("val_"), []).append(key)
    return dict(sorted(groups.items(), key=lambda item: item[0] != "loss"))


def keys_of(rows: Rows) -> list[str]:
    """Return the names of the values in the order in which they first came."""
    names = dict.fromkeys(key for row in rows for key in row)
    return [name for name in names if name not in ("step", "epoch")]


def smoothed(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the exponential mean of a curve, unbiased at its start; NaN is passed over.

    It reaches back about a twentieth of the curve.
    """
    keep = 1 - 1 / max(2.0, len(values) / 20)
    total, weight = 0.0, 0.0
    means = np.full(len(values), np.nan)
    for place, value in enumerate(values.tolist()):
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
            means[place] = total / weight
    return means


def _draw_steps(axes: Any, steps: Rows, key: str) -> None:
    rows = [row for row in steps if key in row]
    at = np.array([row["step"] for row in rows])
    values = _finite([row[key] for row in rows])
    axes.plot(at, values, color=_TRAIN, alpha=0.3, linewidth=0.8, label="each value read")
    if len(rows) >= 20:
        axes.plot(at, smoothed(values), color=_TRAIN, linewidth=1.8, label="smoothed")
    for before, after in pairwise(rows):
        if after["epoch"] != before["epoch"] and rows[-1]["epoch"] - rows[0]["epoch"] <= 30:
            axes.axvline(after["step"] - 0.5, color="#e4e6ea", linewidth=0.8, zorder=0)
    _mark_bad(axes, at, [row[key] for row in rows])
    _dress(axes, f"{key} per step", "step", values)


def _draw_epochs(axes: Any, epochs: Rows, name: str, keys: list[str]) -> None:
    everything = []
    for key in keys:
        rows = [row for row in epochs if key in row]
        at = [row["epoch"] + 1 for row in rows]  # people count epochs from 1
        values = _finite([row[key] for row in rows])
        everything.append(values)
        what = _part(key, keys)
        marker = "o" if len(rows) <= _MANY else None
        axes.plot(at, values, color=_COLORS[what], marker=marker, markersize=3.5, label=what)
        _mark_bad(axes, np.array(at), [row[key] for row in rows])
    _dress(axes, name.replace("_", " "), "epoch", np.concatenate(everything))


def _part(key: str, keys: list[str]) -> str:
    """Return whether a value is of training, validation or neither; ``x`` beside ``val_x`` is."""
    if key.startswith("val_"):
        return "validation"
    return "training" if key.startswith("train_") or f"val_{key}" in keys else "value"


def _finite(values: list[float]) -> np.ndarray[Any, Any]:
    found = np.array(values, float)
    found[~np.isfinite(found)] = np.nan  # a gap in the curve
    return found


def _mark_bad(axes: Any, at: np.ndarray[Any, Any], values: list[float]) -> None:
    """Mark at the foot of the panel where a value is NaN or infinite."""
    bad = ~np.isfinite(np.array(values, float))
    if bad.any():
        low = axes.get_xaxis_transform()
        axes.plot(
            at[bad],
            np.zeros(bad.sum()),
            "x",
            color="#b00020",
            transform=low,
            clip_on=False,
            label="not finite",
        )


def _dress(axes: Any, title: str, across: str, values: np.ndarray[Any, Any]) -> None:
    axes.set_title(title, loc="left", weight="bold")
    axes.set_xlabel(across)
    axes.xaxis.get_major_locator().set_params(integer=True)
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, [0.05, 0.95]) if len(finite) else (0.0, 0.0)
    if len(finite) and finite.min() > 0 and high > 50 * low:
        axes.set_yscale("log")
    axes.grid(color="#e4e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c9ced6")
    handles, labels = axes.get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    if len(by_label) > 1:
        axes.legend(by_label.values(), by_label.keys(), frameon=False, fontsize=9)
