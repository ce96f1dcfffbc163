"""Where NaN and infinity come from: the data and its rows, the weights, the first layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from headrace.errors import TrainingError, format_path
from headrace.train.batch import (
    CountTargets,
    OwnWeight,
    Weight,
    parts_of,
    weight_of,
)
from headrace.train.guards.finding import Finding, listing
from headrace.train.guards.parameters import nonfinite_parameters

_MOST_ROWS = 5
_HUGE = 1e12  # outputs whose squares are on their way to the end of float32


def name_of(value: float) -> str:
    """Return "nan", "inf" or "-inf"."""
    return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")


def describe_ignored(loss_fn: Any, group: list[Any] | None) -> str | None:
    """Return what to do about a step whose targets are all ignored, None if they are not.

    Where the loss does not say what it ignores, targets that are all one number below 0 are taken
    to be marks for that.
    """
    weight = weight_of(loss_fn)
    if isinstance(weight, CountTargets):
        if not group or any(weight(batch) for batch in group):
            return None
        return f"All targets of the step are {weight.ignored} and so left out: {_MEAN_OF_NONE}"
    for batch in group or []:
        mark = _only_target(batch)
        if mark is not None and mark < 0:
            return (
                f"All targets of a batch are {mark}, which mostly marks what is left out: "
                f"{_MEAN_OF_NONE} Or say what counts: Trainer(..., weight=lambda batch: (batch[1] "
                f"!= {mark}).sum())."
            )
    return None


_MEAN_OF_NONE = (
    "the mean over none of them is not a number. Leave samples without targets out of the dataset, "
    "or write a larger batch_size."
)


def nothing_counts(weight: Weight, step: int) -> Finding:
    """Return the finding for a step whose batches weigh 0 in all."""
    if isinstance(weight, OwnWeight):
        return Finding(
            "weight",
            f"weight= gave 0 for all batches of step {step:,}: nothing is learnt from them. Leave "
            f"them out of the dataset, or let it return what the mean loss divides by.",
        )
    text = f"the loss is nan at step {step:,}. "
    if isinstance(weight, CountTargets):
        text += f"All targets of the step are {weight.ignored} and so left out: {_MEAN_OF_NONE}"
    else:
        text += "Its batches have no samples: look at the batch sampler, or the collate function."
    return Finding("loss", text, is_error=True)


def _only_target(batch: Any) -> int | None:
    try:
        targets = parts_of(batch)[1]
    except TrainingError:
        return None
    if not isinstance(targets, Tensor) or not targets.numel() or targets.is_floating_point():
        return None
    low, high = torch.aminmax(targets)
    return int(low) if low == high else None


def describe_source(
    model: nn.Module | None,
    group: list[Any] | None,
    indices: Sequence[Any] | None,
    forward: Callable[[Any], Any] | None,
) -> str:
    """Return where a loss that is not finite comes from, and the line to write.

    Args:
        model: as it made the loss; None where it is not so any more.
        group: the batches it was given; None if they are not known.
        indices: the dataset indices of each batch's samples, where they are known.
        forward: runs the model on a batch, if that is not ``model(batch)``.
    """
    for place, batch in enumerate(group or []):
        data = _describe_data(batch, None if indices is None else indices[place])
        if data is not None:
            return data
    if model is None or group is None:
        seen = "" if group is None else "The batch is finite. "
        return (
            f"{seen}The weights have moved on since, so that the layer cannot be told: write "
            f"Trainer(..., log_every=1) to find it. {_CALM}"
        )
    weights = nonfinite_parameters(model)
    if weights:
        return (
            f"The batch is finite, and the weights are not ({listing(weights)}): the step before "
            f"made them so. {_CALM}"
        )
    largest = 0.0
    for batch in group:
        layer, size = run_and_look(model, batch, forward)
        if layer is not None:
            return (
                f"The batch and the weights are finite: the first layer that makes it is {layer}. "
                f"Look there for log, sqrt, exp or a division. {_CALM}"
            )
        largest = max(largest, size)
    if largest > _HUGE:
        return f"The model's outputs are as large as {largest:.2g}: the training diverges. {_CALM}"
    return (
        "The batch and the model's outputs are finite: the loss function makes it. Look there "
        "for log(0), a division by 0 or a sqrt at 0, and write .clamp(min=1e-8) before it; or "
        "look for targets outside its range."
    )


_CALM = (
    "Where it grew without bounds, write a smaller learning rate, or Trainer(..., clip_norm=1.0)."
)


def _describe_data(batch: Any, indices: Sequence[Any] | None) -> str | None:
    for path, leaf in _tensors(batch, ()):
        if not (leaf.is_floating_point() or leaf.is_complex()) or leaf.layout != torch.strided:
            continue
        values = leaf.detach()
        bad = ~values.isfinite()
        if not bool(bad.any()):
            continue
        where = format_path(path).replace("sample", "batch", 1)
        kind = "nan" if bool(values.isnan().any()) else "inf"
        rows = bad.reshape(len(bad), -1).any(1).nonzero().flatten().tolist() if bad.ndim else []
        return (
            f"The data holds {kind}: {where}{_describe_rows(rows, indices)}. Leave these samples "
            f"out, or write torch.nan_to_num(x) in the dataset."
        )
    return None


def _describe_rows(rows: list[int], indices: Sequence[Any] | None) -> str:
    if not rows:
        return ""
    text = f", {'row' if len(rows) == 1 else 'rows'} {_numbers(rows)} of the batch"
    if indices is not None and rows[-1] < len(indices):
        found = [indices[row] for row in rows]
        text += f" (dataset {'index' if len(rows) == 1 else 'indices'} {_numbers(found)})"
    return text


def _numbers(values: Sequence[Any]) -> str:
    shown = ", ".join(map(str, values[:_MOST_ROWS]))
    more = len(values) - _MOST_ROWS
    return shown if more <= 0 else f"{shown} and {more} more"


def _tensors(
    tree: Any, path: tuple[Hashable, ...]
) -> Iterator[tuple[tuple[Hashable, ...], Tensor]]:
    if isinstance(tree, Tensor):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _tensors(value, (*path, key))
    elif isinstance(tree, (tuple, list)):
        for number, value in enumerate(tree):
            yield from _tensors(value, (*path, number))


def run_and_look(
    model: nn.Module, batch: Any, forward: Callable[[Any], Any] | None = None
) -> tuple[str | None, float]:
    """Run the model once more, with an eye on each module; buffers and random states are put back.

    Returns:
        the first module whose output is not finite (the innermost: it returns first), None if all
        are; and the largest output of the model.
    """
    found: list[str] = []

    def hook_of(name: str) -> Callable[..., None]:
        def look(module: nn.Module, _: Any, output: Any) -> None:
            if not found and any(
                not bool(t.detach().isfinite().all())
                for _, t in _tensors(output, ())
                if t.is_floating_point() and t.layout == torch.strided
            ):
                found.append(f"{name or 'the model'!r} ({type(module).__name__})")

        return look

    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    handles = [m.register_forward_hook(hook_of(name)) for name, m in model.named_modules()]
    try:
        devices = sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)
        with torch.no_grad(), torch.random.fork_rng(devices):
            outputs = (forward or model)(batch)
    finally:
        for handle in handles:
            handle.remove()
        for buffer, value in buffers:
            buffer.copy_(value)
    largest = (float(t.abs().max()) for _, t in _tensors(outputs, ()) if t.numel())
    return (found[0] if found else None), max(largest, default=0.0)
