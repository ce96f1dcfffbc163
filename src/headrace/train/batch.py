"""What a batch is to the loop: the model's arguments, the targets, and how much it weighs."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.errors import OptionError, TrainingError
from headrace.train.explain import explain_inputs
from headrace.tree import convert, is_namedtuple, leaves

INPUT_KEYS = ("inputs", "input", "x")
TARGET_KEYS = ("targets", "target", "labels", "label", "y")

Weight: TypeAlias = Callable[[Any], "float | Tensor"]


def parts_of(batch: Any) -> tuple[Any, Any]:
    """Return a batch's inputs and targets.

    A tuple or list: the last one is the targets, what is before it the inputs. A mapping: the
    targets stand under the one key of ``TARGET_KEYS`` that it has; the inputs under the one of
    ``INPUT_KEYS``, or else they are all its other entries.

    Raises:
        TrainingError: there are no targets to be found.
    """
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return (batch[0] if len(batch) == 2 else tuple(batch[:-1])), batch[-1]
    if isinstance(batch, Mapping):
        found = [key for key in TARGET_KEYS if key in batch]
        if len(found) == 1:
            return _without(batch, found), batch[found[0]]
    raise TrainingError(
        f"a batch of inputs and targets was wanted, and {_describe(batch)} came. Let the dataset "
        f"return (input, target), or a dict with one of the keys {', '.join(TARGET_KEYS)}; or "
        f"compute the loss yourself: Trainer(model, step=lambda model, batch: loss, ...)."
    )


def inputs_of(batch: Any) -> Any:
    """Return a batch's inputs, whether it has targets or not."""
    if isinstance(batch, (tuple, list)):
        return parts_of(batch)[0] if len(batch) > 1 else batch[0]
    if isinstance(batch, Mapping):
        return _without(batch, [key for key in TARGET_KEYS if key in batch])
    return batch


def _without(batch: Mapping[Any, Any], targets: list[str]) -> Any:
    found = [key for key in INPUT_KEYS if key in batch]
    if len(found) == 1:
        return batch[found[0]]
    return {key: value for key, value in batch.items() if key not in targets}


def call_model(model: Callable[..., Any], inputs: Any) -> Any:
    """Call a model: a tuple or list is its arguments, a mapping its keyword arguments."""
    try:
        if isinstance(inputs, Tensor):
            return model(inputs)
        if isinstance(inputs, (tuple, list)) and not is_namedtuple(inputs):
            return model(*inputs)
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        explain_inputs(error, model, inputs)
        raise


def forward_any(model: Callable[..., Any], device: torch.device, batch: Any) -> Any:
    """Return a model's outputs for a batch that may have targets or not."""
    return call_model(model, to_device(inputs_of(batch), device))


def to_device(batch: Any, device: torch.device) -> Any:
    """Move what has a ``to()`` (tensors, packed sequences, batches of graphs), wherever it lies.

    From page-locked memory the copy is asynchronous; later work on the device waits for it.
    """
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=True)
    if type(batch) in (tuple, list):  # the usual batch, on the shortest way
        return type(batch)([to_device(part, device) for part in batch])

    def move(leaf: Any) -> Any:
        return to_device(leaf, device) if isinstance(leaf, Tensor) else leaf.to(device)

    return convert(batch, move)


def samples_of(batch: Any) -> int:
    """Return the samples of a batch: the length of its targets, or of its first tensor.

    Raises:
        TrainingError: no tensor in it says.
    """
    if type(batch) in (tuple, list) and isinstance(batch[-1], Tensor) and batch[-1].ndim:
        return len(batch[-1])
    for leaf in [_targets_or_none(batch), *leaves(batch)]:
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
    raise TrainingError(
        f"cannot tell how many samples {_describe(batch)} holds. Say how much a batch weighs: "
        f"Trainer(..., weight=lambda batch: ...)."
    )


def weight_of(loss_fn: Any, *, class_weights: bool = True) -> Weight:
    """Return how much a batch weighs in a mean loss: what the loss function itself divides by.

    That is its samples; for cross-entropy over classes its targets that are not ignored, each
    with its class weight, so that a mean over tokens stays one over several batches.
    """
    if isinstance(loss_fn, (nn.CrossEntropyLoss, nn.NLLLoss)):
        return CountTargets(loss_fn.ignore_index, loss_fn.weight if class_weights else None)
    function, options = loss_fn, {}
    if isinstance(loss_fn, partial):
        function, options = loss_fn.func, loss_fn.keywords
    if function in (functional.cross_entropy, functional.nll_loss):
        weights = options.get("weight") if class_weights else None
        return CountTargets(options.get("ignore_index", -100), weights)
    return samples_of


class OwnWeight:
    """A weight that somebody wrote, held to what a weight can be.

    Args:
        weight: of a batch, a number or a tensor of one.

    Raises:
        OptionError: it is no function.
        TrainingError: what it returns is no number, or not finite, or below 0. A tensor on a
            device is looked at where it is read.
    """

    def __init__(self, weight: Weight) -> None:
        if not callable(weight):
            raise OptionError(
                f"weight={weight!r} is no function of a batch. Write Trainer(..., "
                f"weight=lambda batch: len(batch[1])), or leave it out."
            )
        self._weight = weight

    def __call__(self, batch: Any) -> float | Tensor:
        """Return the weight of a batch."""
        found = self._weight(batch)
        if isinstance(found, Tensor) and found.numel() == 1:
            if found.is_cpu:
                check_weight(found.item())
            return found.reshape(())
        if isinstance(found, Tensor) or not isinstance(found, numbers.Real):
            shape = f" of shape {tuple(found.shape)}" if isinstance(found, Tensor) else ""
            raise TrainingError(
                f"weight= returned a {type(found).__name__}{shape} for a batch, and has to return "
                f"one number. Write weight=lambda batch: len(batch[1]), or what its mean divides "
                f"by."
            )
        check_weight(float(found))
        return found


def check_weight(value: float) -> None:
    """Check that a batch can count so much.

    Raises:
        TrainingError: it is not finite, or below 0.
    """
    if not (math.isfinite(value) and value >= 0):
        raise TrainingError(
            f"a batch cannot weigh {value:g}: the weight is what its mean loss divides by, 0 or "
            f"more. Write Trainer(..., weight=lambda batch: len(batch[1])), or the number of its "
            f"targets that count."
        )


class CountTargets:
    """Counts the targets that a loss over classes does not ignore, each with its class weight."""

    def __init__(self, ignored: int, class_weights: Tensor | None) -> None:
        self.ignored = ignored
        self._class_weights = class_weights

    def __call__(self, batch: Any) -> float | Tensor:
        """Return how much the targets of a batch weigh."""
        targets = parts_of(batch)[1]
        if not isinstance(targets, Tensor) or targets.is_floating_point():
            return samples_of(batch)  # probabilities: the mean is over samples
        if self._class_weights is not None:
            weights = self._class_weights.detach().to(targets.device)
            total = weights[targets[targets != self.ignored]].sum()
        elif not targets.is_cpu:
            return (targets != self.ignored).sum()
        elif self.ignored < 0 <= _least(targets):
            return targets.numel()  # found in a third of the time that counting takes
        else:
            total = (targets != self.ignored).sum()
        return total.item() if total.is_cpu else total


def _least(targets: Tensor) -> float:
    return targets.min().item() if targets.numel() else 0


def _targets_or_none(batch: Any) -> Any:
    try:
        return parts_of(batch)[1]
    except TrainingError:
        return None


def _describe(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a {type(batch).__name__} with the keys {', '.join(map(repr, batch))}"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {len(batch)}"
    if isinstance(batch, Tensor):
        return f"a tensor of shape {tuple(batch.shape)}"
    return f"a {type(batch).__name__}"
