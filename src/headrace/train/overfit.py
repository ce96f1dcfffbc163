"""A smoke test: a model that learns at all can learn one batch by heart."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from headrace.errors import TrainingError
from headrace.train.checks import no_batch
from headrace.train.guards.finding import warn
from headrace.train.progress import Progress
from headrace.train.randomness import loader_generators, random_states, set_random_states
from headrace.train.training import Training

_FALL = 0.03  # of the loss, over three quarters of the steps: more than chance makes


def overfit(trainer: Training, loader: Iterable[Any], steps: int, fraction: float) -> list[float]:
    """Train on the first batch of a loader, and put everything back; see the Trainer's method."""
    updater, ranks = trainer.updater, trainer.ranks
    show = trainer.progress if ranks.rank == 0 else False
    losses = []
    with _put_back(trainer, loader), Progress(1, 0, show) as progress:
        batches = iter(loader)
        batch = next(batches, None)
        if batch is None:
            raise no_batch("the loader", loader, 0, "train on")
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
        _judge(losses, trainer)
    return losses


def _judge(losses: list[float], trainer: Training) -> None:
    """Say what a loss that did not fall to its fraction means: no learning, or a slow one."""
    course = f"{len(losses)} steps on one batch took the loss from {losses[0]:.4g} to "
    course += f"{losses[-1]:.4g} only"
    if not _falls(losses):
        raise TrainingError(
            f"{course}: something keeps the model from learning. Look at the learning rate first, "
            f"then whether the targets belong to the inputs, whether the loss reaches all layers "
            f"(.detach(), .item(), no_grad), and how the inputs are scaled."
        )
    if trainer.ranks.rank == 0:
        rate = max(group["lr"] for group in trainer.updater.optimizer.param_groups)
        warn(
            f"{course}, and it is still falling: the model learns, slowly. Write a larger learning "
            f"rate than {float(rate):.4g}, or overfit_one_batch(loader, steps={10 * len(losses)})."
        )


def _falls(losses: list[float]) -> bool:
    """Say whether the losses fall to the end: each quarter below the one before, and clearly."""
    size = len(losses) // 4
    if not size or not all(map(math.isfinite, losses)):
        return False
    means = [sum(losses[n * size : (n + 1) * size]) / size for n in range(4)]
    return means == sorted(means, reverse=True) and means[3] <= means[0] - _FALL * abs(means[0])


@contextmanager
def _put_back(trainer: Training, loader: Any) -> Iterator[None]:
    """Leave model, loss, optimizer, loader and random numbers as they were."""
    updater = trainer.updater
    modules = [m for m in (updater.model, trainer.loss_module) if m is not None]
    parameters = [(p, p.detach().clone()) for m in modules for p in m.parameters()]
    buffers = [
        (part, name, buffer, buffer.detach().clone())
        for m in modules
        for part in m.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
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
        for parameter, value in parameters:
            parameter.detach().copy_(value)
        for part, name, buffer, value in buffers:
            buffer.detach().copy_(value)
            part._buffers[name] = buffer  # where the module has put another in its place
        updater.optimizer.load_state_dict(optimizer)
        updater.optimizer.zero_grad()
        if precision:
            updater.precision.load_state_dict(precision)
        for generator, numbers in generators:
            generator.set_state(numbers)
        if state is not None:
            loader.load_state_dict(state)
        set_random_states(random, trainer.device)
