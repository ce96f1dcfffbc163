"""What a loss function is given: shapes, types and ranges that it does not mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.train.guards.finding import Finding

# The functions that are known, under the name that people know them by.
NAMES: dict[Callable[..., Any], str] = {
    functional.mse_loss: "MSELoss",
    functional.l1_loss: "L1Loss",
    functional.smooth_l1_loss: "SmoothL1Loss",
    functional.huber_loss: "HuberLoss",
    functional.poisson_nll_loss: "PoissonNLLLoss",
    functional.binary_cross_entropy: "BCELoss",
    functional.binary_cross_entropy_with_logits: "BCEWithLogitsLoss",
    functional.cross_entropy: "CrossEntropyLoss",
    functional.nll_loss: "NLLLoss",
}
CLASSES = {functional.cross_entropy, functional.nll_loss}
_STRICT_TYPES = {functional.binary_cross_entropy, functional.huber_loss}

# What does not change the values of a tensor on their way to the loss.
_VIEWS = {
    *("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Permute", "Transpose", "T"),
    *("Mt", "Alias", "Clone", "Expand", "Slice", "Select", "Index", "Unbind", "ToCopy"),
}
_OPS = {"Sigmoid": "sigmoid", "Softmax": "softmax", "LogSoftmax": "log_softmax"}


def check_loss_call(
    function: Callable[..., Any], outputs: Any, targets: Any, options: dict[str, Any], model: Any
) -> Finding | None:
    """Return what is wrong with the arguments of a loss function in ``NAMES``, None if nothing.

    Args:
        function: the function of ``torch.nn.functional``.
        outputs: what the model made.
        targets: what they are held against.
        options: the other arguments, by name.
        model: the model, or None.
    """
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return None
    if outputs.is_nested or targets.is_nested or not outputs.numel() or not targets.numel():
        return None
    if function in CLASSES:
        return (
            _class_targets(function, outputs, targets, options.get("ignore_index", -100))
            or _probabilities(function, outputs.detach(), final_op(outputs), model)
            or _log_probabilities(function, outputs.detach())
        )
    return (
        _check_shapes(NAMES[function], outputs, targets)
        or _number_targets(function, outputs, targets)
        or _probabilities(function, outputs.detach(), final_op(outputs), model)
        or _binary_range(function, outputs.detach(), targets)
    )


def check_difference(outputs: Tensor, targets: Tensor) -> Finding | None:
    """Return what is wrong with ``outputs - targets``, as in losses written by hand."""
    found = _unpaired(outputs, targets)
    if found is None:
        return None
    effect, changed_outputs, changed_targets = found
    return Finding(
        "shapes",
        f"{_shapes(outputs, targets)}: outputs - targets {effect}. Write {changed_outputs} - "
        f"{changed_targets}.",
    )


def _check_shapes(name: str, outputs: Tensor, targets: Tensor) -> Finding | None:
    found = _unpaired(outputs, targets)
    if found is not None:
        effect, changed_outputs, changed_targets = found
        return Finding(
            "shapes",
            f"{_shapes(outputs, targets)}: {name} {effect}. Write loss_fn = lambda outputs, "
            f"targets: nn.{name}()({changed_outputs}, {changed_targets}), or give them one shape "
            f"in the model or the dataset.",
            is_error=True,
        )
    a, b = outputs.shape, targets.shape
    if len(b) and b == a[:-1] and b[0] > 1 and a[-1] > 1:
        return Finding(
            "shapes",
            f"{_shapes(outputs, targets)}: {name} compares number with number, and there are "
            f"{a[-1]} outputs for each target. If the targets are classes, write loss_fn = "
            f"nn.CrossEntropyLoss(); if they are numbers, let the model's last layer have one "
            f"output.",
            is_error=True,
        )
    return None


def _unpaired(outputs: Tensor, targets: Tensor) -> tuple[str, str, str] | None:
    """Return what happens to as many outputs as targets whose shapes do not pair them up.

    Returns:
        the effect, and the outputs and targets as they have to be written; None if all is well.
    """
    a, b = tuple(outputs.shape), tuple(targets.shape)
    if a == b or outputs.numel() != targets.numel():
        return None
    shape = _paired(a, b)
    if shape is not None and math.prod(shape) == outputs.numel():
        return None
    size = "" if shape is None else "x".join(map(str, shape))
    effect = f"compares all with all ({size} pairs), not each with its own"
    effect = effect if size else "wants equal shapes"
    if a == (*b, 1):
        return effect, "outputs.squeeze(-1)", "targets"
    line = "squeeze(-1)" if b == (*a, 1) else "reshape(outputs.shape)"
    return effect, "outputs", f"targets.{line}"


def _shapes(outputs: Tensor, targets: Tensor) -> str:
    return (
        f"outputs of shape {tuple(outputs.shape)} against targets of shape {tuple(targets.shape)}"
    )


def _paired(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape that two shapes broadcast to, None if they do not."""
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        return None


def _number_targets(
    function: Callable[..., Any], outputs: Tensor, targets: Tensor
) -> Finding | None:
    """Types that torch refuses, here or only in the backward pass."""
    name = NAMES[function]
    strict = function in _STRICT_TYPES
    whole = not targets.is_floating_point() and (strict or name.startswith("BCE"))
    other = targets.is_floating_point() and targets.dtype != torch.float32
    other = other and outputs.dtype == torch.float32 and strict
    no_minus = targets.dtype == torch.bool and name == "L1Loss"
    if not (whole or other or no_minus):
        return None
    return Finding(
        "target type",
        f"targets of {_dtype(targets)} against outputs of {_dtype(outputs)}: {name} wants both of "
        f"one floating type. Write targets.float(), best in the dataset.",
        is_error=True,
    )


def _binary_range(function: Callable[..., Any], outputs: Tensor, targets: Tensor) -> Finding | None:
    name = NAMES[function]
    if not name.startswith("BCE"):
        return None
    if name == "BCELoss":
        low, high = _range(outputs)
        if low < 0 or high > 1:
            return Finding(
                "logits",
                f"outputs from {low:.4g} to {high:.4g}: BCELoss wants probabilities, between 0 "
                f"and 1. Write loss_fn = nn.BCEWithLogitsLoss(), which takes them as they are.",
                is_error=True,
            )
    low, high = _range(targets)
    if low < 0 or high > 1:
        return Finding(
            "target range",
            f"targets from {low:.4g} to {high:.4g}: {name} wants them between 0 and 1"
            f"{' (for -1 and 1 write (targets + 1) / 2)' if (low, high) == (-1, 1) else ''}. "
            f"For more than two classes write loss_fn = nn.CrossEntropyLoss().",
        )
    return None


def _probabilities(
    function: Callable[..., Any], outputs: Tensor, op: str | None, model: Any
) -> Finding | None:
    """Probabilities where logits are wanted: the loss takes a softmax or sigmoid of its own."""
    if function is functional.cross_entropy:
        own, layer = "softmax", "nn.Softmax"
        found = op in ("softmax", "sigmoid") or _rows_sum_to_one(outputs)
    elif function is functional.binary_cross_entropy_with_logits:
        own, layer = "sigmoid", "nn.Sigmoid"
        guessed = op == "unknown" and _ends_in_sigmoid(model) and _between_0_and_1(outputs)
        found = op in ("softmax", "sigmoid") or guessed
    else:
        return None
    if not found:
        return None
    layer = {"softmax": "nn.Softmax", "sigmoid": "nn.Sigmoid"}.get(op or "", layer)
    return Finding(
        "probabilities",
        f"the outputs are probabilities (from {_range(outputs)[0]:.3g} to "
        f"{_range(outputs)[1]:.3g}), and {NAMES[function]} wants logits: it takes the {own} "
        f"itself, and a second one makes the training slow and its probabilities flat. Leave "
        f"the last {layer}() out of the model, and take it where you predict.",
    )


def _log_probabilities(function: Callable[..., Any], outputs: Tensor) -> Finding | None:
    if function is not functional.nll_loss or outputs.ndim < 2 or outputs.shape[1] < 2:
        return None
    total = torch.logsumexp(outputs.double(), 1)
    if not bool(torch.isfinite(total).all()) or bool((total.abs() < 0.05).all()):
        return None
    probabilities = _rows_sum_to_one(outputs)
    what = "probabilities" if probabilities else "no logarithms of probabilities"
    line = (
        "Write nn.LogSoftmax(dim=1) in place of nn.Softmax"
        if probabilities
        else "Write loss_fn = nn.CrossEntropyLoss(), which takes them as they are"
    )
    return Finding(
        "logits",
        f"the outputs are {what} (from {_range(outputs)[0]:.3g} to {_range(outputs)[1]:.3g}), and "
        f"NLLLoss wants log-probabilities: of others this loss means nothing. {line}.",
    )


def _class_targets(
    function: Callable[..., Any], outputs: Tensor, targets: Tensor, ignored: int
) -> Finding | None:
    name = NAMES[function]
    classes = outputs.shape[1 if outputs.ndim > 1 else 0]
    wanted = outputs.shape[:1] + outputs.shape[2:] if outputs.ndim > 1 else outputs.shape[1:]
    if function is functional.cross_entropy and classes == 1 and outputs.ndim > 1:
        return _wrong(
            f"outputs of shape {tuple(outputs.shape)} have one class: the loss is always 0. For "
            f"two classes write loss_fn = nn.BCEWithLogitsLoss() with targets.float() of the same "
            f"shape, or give the model's last layer two outputs"
        )
    if targets.is_floating_point() and targets.shape == outputs.shape:
        if function is functional.cross_entropy:
            return None
        return _wrong(
            f"targets are probabilities of shape {tuple(targets.shape)}, and NLLLoss wants one "
            f"class number for each sample. Write targets.argmax(1)"
        )
    return _class_shape(name, outputs, targets, tuple(wanted)) or _class_values(
        name, targets, classes, ignored
    )


def _class_shape(
    name: str, outputs: Tensor, targets: Tensor, wanted: tuple[int, ...]
) -> Finding | None:
    shape = tuple(targets.shape)
    to_long = "" if targets.dtype in (torch.int64, torch.uint8) else ".long()"
    came = f"targets of shape {shape} and {_dtype(targets)}"
    want = f"{name} wants class numbers of shape {wanted} and int64"
    if shape == wanted:
        if not to_long:
            return None
        return _wrong(f"{came}, and {want}. Write targets.long(), best in the dataset")
    if shape == tuple(outputs.shape):
        floats = " (or targets.float() for class probabilities)" * (name == "CrossEntropyLoss")
        return _wrong(f"{came} look one-hot, and {want}. Write targets.argmax(1){floats}")
    if len(shape) == len(wanted) + 1 and shape == (*wanted[:1], 1, *wanted[1:]):
        return _wrong(f"{came}, and {want}. Write targets.squeeze(1){to_long}")
    if outputs.ndim > 2 and shape == tuple(outputs.shape[:-1]):
        return _wrong(
            f"outputs of shape {tuple(outputs.shape)} against targets of shape {shape}: {name} "
            f"wants the classes in dimension 1, outputs of shape (batch, classes, ...). Write "
            f"loss_fn = lambda outputs, targets: nn.{name}()(outputs.movedim(-1, 1), targets)"
        )
    return None  # torch's own error says what does not fit


def class_range(
    function: Callable[..., Any], targets: Tensor, classes: int, ignored: int
) -> Finding | None:
    """Return whether class numbers are out of range; quickly where they are not."""
    if not targets.numel():
        return None
    low, high = (int(value) for value in torch.aminmax(targets))
    if low >= 0 and high < classes:
        return None
    return _class_values(NAMES[function], targets, classes, ignored)


def _class_values(name: str, targets: Tensor, classes: int, ignored: int) -> Finding | None:
    counted = targets[targets != ignored]
    if not counted.numel():
        return None
    low, high = (int(value) for value in torch.aminmax(counted))
    if low >= 0 and high < classes:
        return None
    if low >= 1 and high == classes:
        line = "They seem to count from 1: write targets - 1, best in the dataset"
    elif low in (-1, -100) and bool(((counted == low) | (counted >= 0)).all()) and high < classes:
        line = f"If {low} marks what is to be left out, write nn.{name}(ignore_index={low})"
    elif high == 255 and bool(((counted == 255) | (counted < classes)).all()):
        line = f"If 255 marks what is to be left out, write nn.{name}(ignore_index=255)"
    elif low < 0:
        line = "Number the classes from 0"
    else:
        line = (
            f"Give the model's last layer {high + 1} outputs, or number the classes from 0 to "
            f"{classes - 1}: np.unique(targets, return_inverse=True)[1]"
        )
    return _wrong(
        f"targets from {low} to {high}, and the model has {classes} outputs: {name} wants class "
        f"numbers from 0 to {classes - 1}. {line}"
    )


def _wrong(text: str) -> Finding:
    return Finding("class targets", text + ".", is_error=True)


def final_op(outputs: Tensor) -> str | None:
    """Return the operation that made a tensor, past views and casts, as autograd recorded it.

    Returns:
        "sigmoid", "softmax", "log_softmax"; "unknown" where autograd does not say (a compiled
        model); None for all others.
    """
    node: Any = outputs.grad_fn
    for _ in range(20):
        if node is None:
            return "unknown"
        name = node.name().removeprefix("torch::autograd::").partition("Backward")[0]
        if name in _OPS:
            return _OPS[name]
        if name not in _VIEWS or not node.next_functions:
            return "unknown" if name.startswith("Compiled") else None
        node = node.next_functions[0][0]
    return None


def _ends_in_sigmoid(model: Any) -> bool:
    return isinstance(model, nn.Module) and isinstance(list(model.modules())[-1], nn.Sigmoid)


def _between_0_and_1(values: Tensor) -> bool:
    low, high = _range(values)
    return low >= 0 and high <= 1


def _rows_sum_to_one(outputs: Tensor) -> bool:
    """Say whether the values over dimension 1 are probabilities of more than one class."""
    if outputs.ndim < 2 or outputs.shape[1] < 2 or not outputs.is_floating_point():
        return False
    low, high = _range(outputs)
    if not (low >= 0 and high <= 1 + 1e-3):
        return False
    return bool(((outputs.float().sum(1) - 1).abs() < 1e-2).all())


def _range(values: Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(values.detach())
    return float(low), float(high)


def _dtype(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
