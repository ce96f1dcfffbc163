"""What a training is made of, checked before it begins: each error has the line to write."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from headrace.errors import OptionError, TrainingError
from headrace.sized import length_of

T = TypeVar("T")


def check_training(model: Any, loss_fn: Any, optimizer: Any, step: Any) -> None:
    """Check that model, loss and optimizer are what their names say.

    Raises:
        OptionError: one is not.
    """
    if not isinstance(model, nn.Module):
        raise OptionError(
            f"model is a {type(model).__name__}, not a torch.nn.Module. Write "
            f"Trainer(model, loss_fn, optimizer)."
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise OptionError(
            f"optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer. Write "
            f"Trainer(model, loss_fn, torch.optim.Adam(model.parameters()))."
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise OptionError(
            "LBFGS computes the loss several times a step, which this loop does not. Write your "
            "own loop with headrace.train.train_epoch."
        )
    if isinstance(loss_fn, type):
        raise OptionError(
            f"loss_fn is the class {loss_fn.__name__}, not a function of outputs and targets. "
            f"Write Trainer(model, {loss_fn.__name__}(), optimizer)."
        )
    if (loss_fn is None) == (step is None):
        raise OptionError(
            "exactly one of loss_fn and step= says how the loss is computed. Write Trainer(model, "
            "loss_fn, optimizer), or Trainer(model, None, optimizer, step=step)."
        )


def check_loss_module(loss_fn: nn.Module, ranks: int) -> None:
    """Refuse a loss that learns where several ranks train.

    Raises:
        OptionError: it has parameters, and there are several ranks.
    """
    if ranks > 1 and any(p.requires_grad for p in loss_fn.parameters()):
        raise OptionError(
            f"loss_fn has parameters of its own, whose gradients the {ranks} ranks would not add "
            f"up. Make the loss a part of the model: Trainer(model, None, optimizer, step=...)."
        )


def check_clip_norm(value: Any) -> None:
    """Check that a norm can be one.

    Raises:
        OptionError: it is not above zero.
    """
    if value is not None and not value > 0:
        raise OptionError(f"clip_norm={value!r} is no norm. Write clip_norm=1.0, or None.")


def check_callbacks(given: Iterable[T]) -> tuple[T, ...]:
    """Return the callbacks that were given.

    Raises:
        OptionError: they are no list of them.
    """
    found = tuple(given) if isinstance(given, Iterable) else (given,)
    wrong = [c for c in found if isinstance(c, type) or not hasattr(c, "on_fit_start")]
    if wrong or not isinstance(given, Iterable):
        raise OptionError(
            f"callbacks={given!r} is no list of headrace.train.Callback objects. Write "
            f"Trainer(..., callbacks=[MyCallback()])."
        )
    return found


def check_loader(name: str, loader: Any) -> None:
    """Refuse what gives no batches, or samples that would be taken for batches.

    Raises:
        OptionError: the loader is a map-style dataset, a tensor or an array, or no iterable.
    """
    kind = type(loader).__name__
    if isinstance(loader, (str, bytes)) or not (
        loader is None or hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")
    ):
        count = type(loader) is int
        line = f"fit(train_loader, epochs={loader!r})" if count else "DataLoader(dataset, ...)"
        raise OptionError(f"{name}={loader!r} is no loader. Write {line}.")
    if isinstance(loader, (torch.Tensor, np.ndarray)):
        data = "TensorDataset" if isinstance(loader, torch.Tensor) else "ArrayDataset"
        raise OptionError(
            f"{name} is a {kind} of shape {tuple(loader.shape)}, whose rows are no batches. Write "
            f"DataLoader({data}(x), batch_size=256), or {data}(x, y) with the targets."
        )
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        order = ", shuffle=True" if name == "train_loader" else ""
        raise OptionError(
            f"{name} is a {kind}, whose samples are no batches. Write DataLoader(dataset, "
            f"batch_size=32{order}), or batch_size=None where each of them is a whole batch."
        )


def no_batch(name: str, loader: Any, batches: int, purpose: str) -> TrainingError:
    """Return the error for a loader that gave nothing to train on, or to evaluate.

    Args:
        name: of the loader, for the text.
        loader: it.
        batches: that it gave, of which none counts.
        purpose: "train on" or "evaluate".
    """
    if batches:
        return TrainingError(
            f"the {batches:,} batches of {name} weigh 0 in all: there is nothing to {purpose}. All "
            f"of their targets are ignored, or weight= says so: let it return what the mean loss "
            f"divides by, weight=lambda batch: len(batch[1])."
        )
    samples, size = length_of(getattr(loader, "dataset", None)), getattr(loader, "batch_size", None)
    why = "An iterable that was gone through before gives nothing again: write list(...) of it."
    if samples == 0:
        why = f"Its dataset ({type(loader.dataset).__name__}) is empty: look where it is filled."
    elif samples and size and samples < size and getattr(loader, "drop_last", False):
        why = (
            f"Its dataset has {samples:,} samples, fewer than batch_size={size}, and "
            f"drop_last=True leaves them out. Write drop_last=False, or batch_size={samples}."
        )
    elif samples:
        why = f"Its dataset has {samples:,} samples: look at its sampler."
    return TrainingError(f"{name} gave no batch: there is nothing to {purpose}. {why}")


def check_class_weights(loss_fn: Any) -> None:
    """Check the class weights of a loss.

    Raises:
        OptionError: one is not finite, or below 0.
    """
    weights = getattr(loss_fn, "weight", None)
    if not isinstance(loss_fn, (nn.CrossEntropyLoss, nn.NLLLoss)) or weights is None:
        return
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise OptionError(
            f"weight={weights.tolist()} of {type(loss_fn).__name__} holds what no class can weigh: "
            f"its mean divides by the sum. Write a number from 0 on for each class."
        )


def check_again(name: str, loader: Any, epochs: int) -> None:
    """Refuse what can be gone through only once, where there are more epochs.

    Raises:
        OptionError: the loader is a generator.
    """
    if isinstance(loader, Generator) and epochs > 1:
        raise OptionError(
            f"{name} is a generator, which ends with the first of {epochs} epochs. Write "
            f"{name} = list(...) of it, or a DataLoader."
        )


def count(name: str, value: Any) -> int:
    """Return a count.

    Raises:
        OptionError: it is no whole number above zero.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionError(f"{name}={value!r} is no count. Write {name}=1, or more.")
    return value
