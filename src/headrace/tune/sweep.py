"""Batch size against speed and accuracy."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import torch.utils.data as torch_data
from torch import Tensor, nn

from headrace.data.progress import Progress
from headrace.errors import OptionError
from headrace.extras import data_frame, import_extra
from headrace.loader import DataLoader
from headrace.oom import release_memory
from headrace.train.batch import call_model, parts_of, samples_of, to_device, weight_of
from headrace.train.devices import device_of
from headrace.train.randomness import random_states, set_random_states
from headrace.train.step import train_epoch, train_step
from headrace.tune.memory import PeakMemory
from headrace.tune.table import as_text, mebibytes, number, show
from headrace.written import save_figure

Accuracy = Callable[[Any, Any], "float | Tensor"]

_AS_GOOD = 0.01  # of accuracy, or a relative difference in loss, is no reason for another size
_AS_FAST = 0.9


@dataclass(frozen=True)
class SweepRow:
    """One batch size, trained with from the same first weights.

    Attributes:
        batch_size: samples.
        samples_per_s: in training, the first epoch left out where there are several.
        epoch_s: seconds of training for an epoch.
        memory_bytes: taken at the peak on a CUDA device; None elsewhere. (What a process on the CPU
            takes says more about memory that was free already than about the size.)
        loss: mean of the last epoch, in training.
        val_loss: at the end, on the validation data, or on the training data without them.
        accuracy: at the end, on the same; None where there is none.
    """

    batch_size: int
    samples_per_s: float
    epoch_s: float
    memory_bytes: int | None
    loss: float
    val_loss: float
    accuracy: float | None


@dataclass(frozen=True)
class SweepReport:
    """What :func:`sweep_batch_sizes` measured.

    Attributes:
        rows: one for each size, in the order given.
        best: the row of the size to take.
        advice: in one sentence.
        epochs: that each was trained for.
    """

    rows: tuple[SweepRow, ...]
    best: SweepRow
    advice: str
    epochs: int

    def __str__(self) -> str:
        """Return the table, and the advice."""
        return f"{as_text(*self._table())}\n{self.advice}"

    def show(self) -> None:
        """Print the table, framed in a terminal."""
        show(*self._table(), self.rows.index(self.best), self.advice)

    def to_frame(self) -> Any:
        """Return the rows as a data frame: pandas' where that is installed, else polars'."""
        names = [field.name for field in fields(SweepRow)]
        return data_frame({name: [getattr(row, name) for row in self.rows] for name in names})

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw speed and accuracy against batch size, and return the path of the picture."""
        figures = import_extra("matplotlib.figure", "plots")
        figure = figures.Figure(figsize=(9, 3.8), layout="constrained")
        speed, quality = figure.subplots(1, 2)
        sizes = [row.batch_size for row in self.rows]
        accuracies = [row.accuracy for row in self.rows]
        known = None not in accuracies
        _draw(speed, sizes, [row.samples_per_s for row in self.rows], "samples/s", self.best)
        after = f"after {self.epochs} {'epoch' if self.epochs == 1 else 'epochs'}"
        values = accuracies if known else [row.val_loss for row in self.rows]
        _draw(quality, sizes, values, f"{'accuracy' if known else 'val_loss'} {after}", self.best)
        speed.set_ylim(bottom=0)
        save_figure(figure, Path(path), dpi=150)
        return Path(path)

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Return headings and cells; of what nobody knows there is no column."""
        columns = {
            "batch size": [f"{row.batch_size:,}" for row in self.rows],
            "samples/s": [number(row.samples_per_s) for row in self.rows],
            "epoch s": [number(row.epoch_s) for row in self.rows],
            "MiB": [mebibytes(row.memory_bytes) for row in self.rows],
            "loss": [number(row.loss) for row in self.rows],
            "val_loss": [number(row.val_loss) for row in self.rows],
            "accuracy": [
                "-" if row.accuracy is None else f"{row.accuracy:.4f}" for row in self.rows
            ],
        }
        known = {name: cells for name, cells in columns.items() if set(cells) != {"-"}}
        return list(known), [list(row) for row in zip(*known.values(), strict=True)]


def _draw(axes: Any, sizes: list[int], values: list[Any], title: str, best: SweepRow) -> None:
    whole = {"clip_on": False, "zorder": 3}  # a mark on the axis is not cut in half
    axes.plot(sizes, values, "o-", color="#1f7a8c", **whole)
    place = sizes.index(best.batch_size)
    axes.plot(sizes[place], values[place], "o", color="#d1603d", markersize=10, **whole)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    if max(values) >= 1000:
        axes.yaxis.set_major_formatter("{x:,.10g}")
    axes.minorticks_off()
    axes.set_xlabel("batch size")
    axes.set_title(title, loc="left")
    axes.grid(color="#e4e6ea")
    axes.spines[["top", "right"]].set_visible(False)


def sweep_batch_sizes(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    make_optimizer: Callable[..., torch.optim.Optimizer],
    dataset: torch_data.Dataset[Any],
    validation: torch_data.Dataset[Any] | None = None,
    *,
    batch_sizes: Sequence[int] = (16, 32, 64, 128, 256),
    epochs: int = 3,
    accuracy: Accuracy | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    show: bool = True,
    **loader_options: Any,
) -> SweepReport:
    """Train a fresh copy of a model with each batch size; measure speed, memory and accuracy.

    ::

        report = sweep_batch_sizes(
            model, nn.CrossEntropyLoss(), lambda p: torch.optim.SGD(p, lr=0.1), train, validation
        )
        report.plot("batch-size.png")

    Every copy starts from the weights of ``model``, with the same seed for order and random
    numbers; ``model`` itself and the random state stay as they are. The learning rate is the same
    for all sizes, unless ``make_optimizer`` has an argument ``batch_size`` and makes it so::

        def make_optimizer(parameters, batch_size):
            return torch.optim.SGD(parameters, lr=0.1 * batch_size / 32)

    The advice is the quickest of the sizes whose accuracy is within 0.01 of the best (or, without
    one, whose loss is within 1 % of it), and of those nearly as quick the smallest.

    Args:
        model: on any device; the copies go to ``device``.
        loss_fn: ``loss_fn(outputs, targets)``, a mean over the batch.
        make_optimizer: ``make_optimizer(parameters)`` makes an optimizer of the parameters of a
            copy; one with an argument ``batch_size`` is told that too.
        dataset: to train on, shuffled; its batches are pairs or dicts of inputs and targets.
        validation: to judge on; without it the training data are judged on.
        batch_sizes: to try.
        epochs: for each.
        accuracy: ``accuracy(outputs, targets)``, a mean over the batch; None is the share of right
            classes for outputs (n, classes) and integer targets (n,), and nothing otherwise.
        device: None is where the model is.
        seed: of orders and random numbers.
        show: print the table.
        loader_options: for the DataLoaders: ``num_workers=``, ``collate_fn=``, ...

    Raises:
        OptionError: no sizes, no epochs, no such device; an optimizer in place of a function, a
            loader in place of a dataset.
    """
    _check(make_optimizer, dataset, validation)
    if isinstance(batch_sizes, int):
        raise OptionError(
            f"batch_sizes={batch_sizes!r} is one size, and several are compared. Write "
            f"sweep_batch_sizes(..., batch_sizes=(32, 64, 128)), or ({batch_sizes!r},) for one."
        )
    sizes = list(batch_sizes)
    if not sizes or epochs < 1 or any(type(size) is not int or size < 1 for size in sizes):
        raise OptionError(
            f"batch_sizes={batch_sizes!r}, epochs={epochs!r} leave nothing to train. Write "
            f"sweep_batch_sizes(..., batch_sizes=(32, 64, 128), epochs=3)."
        )
    place = _device_of(model) if device is None else device_of(device, "sweep_batch_sizes")
    told_size = "batch_size" in signature(make_optimizer).parameters
    before = random_states(place)
    rows = []
    try:
        with Progress("trying batch sizes", len(sizes) * epochs, "epochs") as progress:
            for size in sizes:
                torch.manual_seed(seed)
                fresh = copy.deepcopy(model).to(place)
                loader = DataLoader(dataset, size, shuffle=True, seed=seed, **loader_options)
                judged = loader
                if validation is not None:
                    judged = DataLoader(validation, size, seed=seed, **loader_options)
                size_of = {"batch_size": size} if told_size else {}
                optimizer = make_optimizer(fresh.parameters(), **size_of)
                run = _Training(fresh, loss_fn, optimizer, loader, place)
                rows.append(run.measure(epochs, judged, accuracy or _right_classes, progress))
                del fresh, optimizer, run
                release_memory(place)
    finally:
        set_random_states(before, place)
    best, advice = _advice(rows)
    report = SweepReport(tuple(rows), best, advice, epochs)
    if show:
        report.show()
    return report


def _check(make_optimizer: Any, dataset: Any, validation: Any) -> None:
    if not callable(make_optimizer):
        kind = type(make_optimizer).__name__
        known = kind if isinstance(make_optimizer, torch.optim.Optimizer) else "SGD"
        raise OptionError(
            f"make_optimizer is a {kind}, not a function: each size trains a copy of the model "
            f"with an optimizer of its own. Write sweep_batch_sizes(model, loss_fn, "
            f"lambda p: torch.optim.{known}(p, lr=0.1), dataset)."
        )
    for name, data in (("dataset", dataset), ("validation", validation)):
        if isinstance(data, torch_data.DataLoader):
            raise OptionError(
                f"{name} is a DataLoader, whose batch size is fixed. Give its dataset, and its "
                f"options by name: sweep_batch_sizes(..., {name}=loader.dataset, num_workers=2)."
            )


def _device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


class _Training:
    """One copy of the model on its way."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        optimizer: torch.optim.Optimizer,
        loader: DataLoader[Any],
        device: torch.device,
    ) -> None:
        self._model, self._loss_fn, self._optimizer = model, loss_fn, optimizer
        self._loader, self._device = loader, device

    def measure(
        self, epochs: int, judged: DataLoader[Any], accuracy: Accuracy, progress: Progress
    ) -> SweepRow:
        """Train, and return the figures."""
        step = partial(
            train_step, model=self._model, loss_fn=self._loss_fn, optimizer=self._optimizer
        )
        weight = weight_of(self._loss_fn)
        memory = PeakMemory(self._device) if self._device.type == "cuda" else None
        if memory is not None:
            memory.begin()
        seconds = []
        for _ in range(epochs):
            begin = time.perf_counter()
            # It reads the loss, and so waits for the device.
            loss = train_epoch(self._loader, step, self._device, weight=weight)
            seconds.append(time.perf_counter() - begin)
            progress.advance()
        taken = None if memory is None else memory.taken_bytes()
        counted = seconds[1:] or seconds  # the first one warms up
        epoch_s = sum(counted) / len(counted)
        samples = self._loader.statistics().samples / epochs
        final_loss, right = self._judge(judged, accuracy)
        size = self._loader.batch_size or 1
        return SweepRow(size, samples / epoch_s, epoch_s, taken, loss, final_loss, right)

    @torch.no_grad()
    def _judge(self, loader: DataLoader[Any], accuracy: Accuracy) -> tuple[float, float | None]:
        self._model.eval()
        loss = right = 0.0
        weight_of_batch = weight_of(self._loss_fn)
        total, known = 0.0, 0
        for batch in loader:
            inputs, targets = parts_of(to_device(batch, self._device))
            outputs, count = call_model(self._model, inputs), samples_of(batch)
            weight = float(weight_of_batch(batch))
            loss += float(self._loss_fn(outputs, targets)) * weight
            share = accuracy(outputs, targets)
            total += weight
            if share is not None:
                right += float(share) * count
                known += count
        return loss / total, right / known if known else None


def _right_classes(outputs: Any, targets: Any) -> Any:
    """Return the share of right classes; None where outputs and targets are not classes."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return None
    if outputs.ndim != 2 or targets.ndim != 1 or targets.is_floating_point():
        return None
    return (outputs.argmax(1) == targets).double().mean()


def _advice(rows: Sequence[SweepRow]) -> tuple[SweepRow, str]:
    """Return the row to take, and why."""
    if all(row.accuracy is not None for row in rows):
        top = max(rows, key=_accuracy)
        good = [row for row in rows if _accuracy(row) >= _accuracy(top) - _AS_GOOD]
        quality = "accuracy {:.4f}", _accuracy
    else:
        top = min(rows, key=_loss)
        good = [row for row in rows if _loss(row) <= _loss(top) + _AS_GOOD * abs(_loss(top))]
        quality = "val_loss {:.4g}", _loss
    fastest = max(row.samples_per_s for row in good)
    best = min(
        (row for row in good if row.samples_per_s >= _AS_FAST * fastest),
        key=lambda row: row.batch_size,
    )
    text, value = quality
    advice = (
        f"Take batch size {best.batch_size:,}: {number(best.samples_per_s)} samples/s and "
        f"{text.format(value(best))}"
    )
    if best is top:
        return best, f"{advice}, the best of all."
    return best, f"{advice}, beside {text.format(value(top))} at {top.batch_size:,}."


def _accuracy(row: SweepRow) -> float:
    return row.accuracy or 0.0


def _loss(row: SweepRow) -> float:
    return row.val_loss
