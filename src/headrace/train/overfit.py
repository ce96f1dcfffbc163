"""A smoke test: a model that learns at all can learn one batch by heart."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from headrace.errors import TrainingError
from headrace.train.progress import Progress
from headrace.train.randomness import loader_generators, random_states, set_random_states

if TYPE_CHECKING:
    from headrace.train.trainer import Trainer


def overfit(trainer: Trainer, loader: Iterable[Any], steps: int, fraction: float) -> list[float]:
    """Train on the first batch of a loader, and put everything back; see the Trainer's method."""
    updater, ranks = trainer.updater, trainer.ranks
    show = trainer.progress if ranks.rank == 0 else False
    losses = []
    with _put_back(trainer, loader), Progress(1, 0, show) as progress:
        batches = iter(loader)
        batch = next(batches, None)
        if batch is None:
            raise TrainingError("the loader gave no batch: there is nothing to train on.")
        last = getattr(loader, "last_indices", None)
        indices = None if last is None else [last()]
        del batches  # and with it the workers
        progress.begin_epoch(0, steps)
        weight = trainer.weight(batch)
        total = weight if ranks.size == 1 else ranks.sum([float(weight)])[0]
        for step in range(1, steps + 1):
            loss = updater.gradients([batch], [weight], total, everywhere=True)
            trainer.guards.after_backward(loss, step=step, group=[batch], indices=indices)
            updater.update()
            losses.append(ranks.sum([loss.item()])[0])
            progress.step(1, loss=losses[-1])
        progress.end_epoch({"loss": losses[-1]})
    if not losses[-1] <= losses[0] * fraction or not math.isfinite(losses[-1]):
        raise TrainingError(
            f"{steps} steps on one batch took the loss from {losses[0]:.4g} to {losses[-1]:.4g} "
            f"only: something keeps the model from learning. Look at the learning rate first, "
            f"then whether the targets belong to the inputs, whether the loss reaches all layers "
            f"(.detach(), .item(), no_grad), and how the inputs are scaled."
        )
    return losses


@contextmanager
def _put_back(trainer: Trainer, loader: Any) -> Iterator[None]:
    """Leave the model, the optimizer, the loader and the random numbers as they were."""
    updater = trainer.updater
    model = copy.deepcopy(updater.model.state_dict())
    optimizer = copy.deepcopy(updater.optimizer.state_dict())
    precision = copy.deepcopy(updater.precision.state_dict())
    generators = [(g, g.get_state()) for g in loader_generators(loader)]
    random = random_states(trainer.device)
    # Any other loader's state would put torch's generator back when it is iterated over next.
    state = loader.state_dict() if getattr(loader, "seed", None) is not None else None
    try:
        trainer.guards.before_fit(loader)
        yield
    finally:
        trainer.guards.after_fit()
        updater.model.load_state_dict(model)
        updater.optimizer.load_state_dict(optimizer)
        updater.optimizer.zero_grad()
        if precision:
            updater.precision.load_state_dict(precision)
        for generator, before in generators:
            generator.set_state(before)
        if state is not None:
            loader.load_state_dict(state)
        set_random_states(random, trainer.device)
