"""A model's outputs for all batches of a loader."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from headrace.errors import TrainingError
from headrace.train.batch import forward_any, to_device
from headrace.train.checks import check_loader
from headrace.train.evaluation import mode
from headrace.train.guards.loaders import check_order
from headrace.train.outputs import joined
from headrace.train.training import Training

_CPU = torch.device("cpu")


def predict(trainer: Training, loader: Iterable[Any], join: bool) -> Any:
    """Return the outputs in the loader's order, on the CPU; see the Trainer's method."""
    check_loader("loader", loader)
    if trainer.ranks.size > 1 and getattr(loader, "shard", None) is not None:
        raise TrainingError(
            "predict returns all outputs in the loader's order, and this loader is divided "
            "among the ranks. Write predict(DataLoader(dataset, ...)) without shard=."
        )
    trainer.guards.report(check_order(loader))
    updater = trainer.updater
    found = []
    with mode(updater.model, training=False), torch.inference_mode():
        for batch in loader:
            with updater.precision.forward_context():
                outputs = forward_any(updater.model, trainer.device, batch)
            found.append(to_device(updater.precision.convert_output(outputs), _CPU))
    return joined(found) if join else found
