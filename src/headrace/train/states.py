"""The states of all that trains a model, as part of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from headrace.errors import StateError
from headrace.train.names import names_for, own_names
from headrace.train.schedule import load_schedule
from headrace.train.update import Updater


def states_of(
    updater: Updater, loss_module: nn.Module | None, callbacks: Sequence[Any]
) -> dict[str, Any]:
    """Return the states of loss, optimizer, scheduler, gradient scaler and callbacks."""
    scheduler = updater.scheduler
    callbacks = [c for c in callbacks if hasattr(c, "state_dict")]
    return {
        "kinds": {**_kinds(updater), "callbacks": _names(callbacks)},
        "loss_fn": {} if loss_module is None else own_names(loss_module.state_dict()),
        "optimizer": updater.optimizer.state_dict(),
        "scheduler": None if scheduler is None else scheduler.state_dict(),
        "precision": updater.precision.state_dict(),
        "callbacks": [c.state_dict() for c in callbacks],
    }


def _kinds(updater: Updater) -> dict[str, str]:
    parts = {"optimizer": updater.optimizer, "scheduler": updater.scheduler}
    return {name: "no" if p is None else type(p).__name__ for name, p in parts.items()}


def _names(callbacks: Sequence[Any]) -> str:
    return ", ".join(type(callback).__name__ for callback in callbacks)


def load_states(
    updater: Updater,
    loss_module: nn.Module | None,
    callbacks: Sequence[Any],
    state: dict[str, Any],
    path: Path,
) -> None:
    """Put them back.

    Args:
        updater: holds optimizer, scheduler and scaler.
        loss_module: the loss, where it is a module.
        callbacks: those with a state get theirs.
        state: what `states_of` returned.
        path: the checkpoint that it stood in.

    Raises:
        StateError: they do not fit.
    """
    callbacks = [c for c in callbacks if hasattr(c, "load_state_dict")]
    now = {
        "callbacks that have a state": len(callbacks),
        **_kinds(updater),
        "callbacks": _names(callbacks),  # in this order: each gets its own state
    }
    before = {"callbacks that have a state": len(state["callbacks"]), **state["kinds"]}
    for name, kind in before.items():
        if now[name] != kind:
            raise StateError(
                f"the checkpoint {path} was written with {kind} {name}, and this Trainer has "
                f"{now[name]} {name}. Make it as it was, or give another checkpoint_dir."
            )
    try:
        if loss_module is not None:
            loss_module.load_state_dict(names_for(loss_module, state["loss_fn"]))
        updater.optimizer.load_state_dict(state["optimizer"])
    except (ValueError, KeyError, RuntimeError) as error:
        raise StateError(
            f"the checkpoint {path} does not fit this optimizer or loss: {error}"
        ) from error
    if updater.scheduler is not None:
        load_schedule(updater.scheduler, state["scheduler"], f"the checkpoint {path}")
    if state["precision"]:
        updater.precision.load_state_dict(state["precision"])
    for callback, saved in zip(callbacks, state["callbacks"], strict=True):
        callback.load_state_dict(saved)
