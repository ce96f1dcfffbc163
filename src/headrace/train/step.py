"""The loop as plain functions, for people who write their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from headrace.errors import TrainingError
from headrace.train.batch import OwnWeight, Weight, call_model, parts_of, samples_of, to_device
from headrace.train.checks import check_loader, no_batch
from headrace.train.devices import device_of


def train_step(
    batch: Any,
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    clip_norm: float | None = None,
) -> Tensor:
    """Train on one batch: zero the gradients, forward, backward, one step of the optimizer.

    Args:
        batch: inputs and targets, as a pair, a longer tuple or a dict; on the model's device.
        model: put into training mode if it is not.
        loss_fn: ``loss_fn(outputs, targets)``, a mean over the batch.
        optimizer: holds the model's parameters.
        clip_norm: scale the gradients down to this norm where theirs is larger.

    Returns:
        the loss, detached, on the device: reading it is what waits for the device.
    """
    if not model.training:
        model.train()
    inputs, targets = parts_of(batch)
    optimizer.zero_grad()
    loss = loss_fn(call_model(model, inputs), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    return loss.detach()


def train_epoch(
    loader: Iterable[Any],
    step: Callable[[Any], Tensor | float],
    device: torch.device | str = "cpu",
    *,
    weight: Weight = samples_of,
) -> float:
    """Run ``step`` on every batch of a loader; return the mean of its losses over all samples.

    Args:
        loader: any iterable of batches.
        step: takes a batch, trains on it however it likes, and returns its mean loss:
            ``partial(train_step, model=model, loss_fn=loss_fn, optimizer=optimizer)``.
        device: where the batches are moved to.
        weight: how much a batch counts in the mean; by default its samples, so that a smaller
            last batch counts for less.

    Returns:
        the mean loss, read from the device once, at the end.

    Raises:
        OptionError: the loader is a dataset or a tensor, or the device is none.
        TrainingError: the loader gave no batch, or ``step`` no loss.
    """
    check_loader("loader", loader)
    device = device_of(device, "train_epoch")
    total: Any = 0.0
    weights: Any = 0.0
    batches = 0
    weight = weight if weight is samples_of else OwnWeight(weight)
    for batch in loader:
        batches += 1
        share = weight(batch)
        loss = step(to_device(batch, device))
        if loss is None:
            raise TrainingError("step returned None. Let it end with: return loss.")
        mean = loss.detach().double() if isinstance(loss, Tensor) else loss
        if not isinstance(share, Tensor) and not share:
            continue  # the mean over none may be no number
        total = total + mean * share
        weights = weights + share
    if not weights:
        raise no_batch("the loader", loader, batches, "train on")
    return float(total / weights)
