"""A loss over learning rates: where it falls fastest, and its picture."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headrace.extras import import_extra
from headrace.written import save_figure

FEWEST = 10  # steps that are a curve
_WIDTH = 0.05  # of the curve: the standard deviation of what smooths it
_NOISES = 5.5  # how often its own noise a loss has to fall

Curve = NDArray[np.float64]


def judged(rates: list[float], losses: list[float]) -> tuple[float | None, float | None, str]:
    """Return the rate at which the loss falls fastest, that of its lowest, and the choice in words.

    Both are None where it falls nowhere by more than chance makes.
    """
    kept = int(np.argmin(np.append(np.isfinite(losses), False)))  # up to the first that is not
    if kept < FEWEST:
        return None, None, f"After {kept} steps there was no loss to judge by: write a lower low=."
    raw = np.array(losses[:kept], float)
    curve = smooth(raw)
    least = int(np.argmin(curve))
    noise = float(np.median(np.abs(np.diff(raw[: max(least, kept // 2)])))) / np.sqrt(
        1 + kept * _WIDTH
    )
    most = int(np.argmax(curve[: least + 1]))
    if curve[most] - curve[least] <= _NOISES * noise:
        why = (
            f"The loss fell nowhere between {rates[0]:.2g} and {rates[kept - 1]:.2g} by more than "
            f"chance makes: write a wider range or more steps=, or look at the model with "
            f"Trainer.overfit_one_batch."
        )
        return None, None, why
    slopes = np.gradient(curve, np.log(rates[:kept]))
    steepest = most + int(np.argmin(slopes[most : least + 1]))
    end = "at the end: write a higher high=" if least == kept - 1 else f"at {rates[least]:.2g}"
    why = f"Take {rates[steepest]:.2g}: there the loss falls fastest. Smoothed, it is lowest {end}."
    return float(rates[steepest]), float(rates[least]), why


def smooth(values: Curve) -> Curve:
    """Return the mean of each value and its neighbours, in the weights of a bell curve.

    What diverges behind the lowest value is cut off: it must not reach back.
    """
    values = np.minimum(values, values[: int(np.argmin(values)) + 1].max())
    width = max(1.0, _WIDTH * len(values))
    at = np.arange(len(values))
    weights = np.exp(-0.5 * ((at[:, None] - at) / width) ** 2)
    found: Curve = weights @ values / weights.sum(1)
    return found


def draw_rates(
    rates: list[float],
    losses: list[float],
    found: float | None,
    lowest: float | None,
    path: str | os.PathLike[str],
) -> None:
    """Draw the curve and the choice into a file, its type by the name's ending.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figures = import_extra("matplotlib.figure", "plots")
    figure = figures.Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    at = np.isfinite(losses)
    x, y = np.array(rates)[at], np.array(losses, float)[at]
    axes.plot(x, y, color="tab:blue", alpha=0.3, linewidth=0.8, label="loss")
    if len(y):
        curve = smooth(y)
        axes.plot(x, curve, color="tab:blue", label="smoothed")
        # What diverges would leave no room for the rest.
        low, first = float(y.min()), float(curve[: max(1, len(curve) // 4)].max())
        room = max(first - low, 0.05 * abs(first), 1e-12)
        axes.set_ylim(low - 0.2 * room, first + 0.8 * room)
    for rate, color, name in ((found, "tab:orange", "falls fastest"), (lowest, "gray", "lowest")):
        if rate is not None:
            axes.axvline(rate, color=color, linestyle="--", label=f"{name}: {rate:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
    axes.legend()
    axes.grid(alpha=0.3)
    save_figure(figure, Path(path), dpi=150)
