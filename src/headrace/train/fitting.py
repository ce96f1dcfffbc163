"""A call of ``fit``: what was given is checked, folders are held, and the loop runs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from headrace.errors import OptionError
from headrace.train.best import Best
from headrace.train.checkpoint import Checkpoints
from headrace.train.checks import check_again, check_loader, count
from headrace.train.evaluation import mode
from headrace.train.history import History
from headrace.train.loop import Fit
from headrace.train.places import held, logs_saved
from headrace.train.plan import Plan
from headrace.train.schedule import Length, check_duration, steps_of_epoch, steps_taken
from headrace.train.training import Training


def fit(
    trainer: Training,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any] | None,
    *,
    epochs: int,
    folder: str | os.PathLike[str] | None,
    resume: str,
    checkpoint_every_steps: int | None,
    checkpoint_every_s: float | None,
    keep: int,
    best: Best | None,
) -> History:
    """Train, and validate after each epoch; see the Trainer's method."""
    if resume not in ("auto", "never"):
        raise OptionError(f"resume={resume!r}: write resume='auto' or resume='never'.")
    count("epochs", epochs)
    if checkpoint_every_steps is not None:
        count("checkpoint_every_steps", checkpoint_every_steps)
    for name, loader in (("train_loader", train_loader), ("val_loader", val_loader)):
        check_loader(name, loader)
        check_again(name, loader, epochs)
    checkpoints = None if folder is None else Checkpoints(folder, count("keep", keep), best)
    if best is not None and folder is None:
        raise OptionError(
            f"keep_best={best.count} checkpoints, and there is no folder for them. Write "
            f"fit(..., checkpoint_dir='run', keep_best={best.count})."
        )
    plan = Plan(
        epochs, checkpoints, resume == "auto", checkpoint_every_steps, checkpoint_every_s, best
    )
    trainer.ranks.check_alike(
        {"train_loader": train_loader, "val_loader": val_loader},
        {
            "epochs": epochs,
            "accumulate": trainer.accumulate,
            "checkpoint_every_steps": checkpoint_every_steps,
            "checkpoint_dir (given or not)": folder is not None,
            "resume": resume,
            "keep_best and best_by": best and [best.count, best.metric, best.sign],
        },
    )
    trainer.guards.before_fit(train_loader, val_loader)
    steps = steps_of_epoch(train_loader, trainer.accumulate)
    length = Length(trainer.schedule_every, steps, epochs, trainer.accumulate)
    scheduler = trainer.updater.scheduler
    if scheduler is not None and checkpoints is None:
        length = replace(length, before=steps_taken(scheduler) or 0)
    trainer.guards.report(check_duration(scheduler, length))
    trainer.stopping = False
    try:
        with (
            held(trainer.ranks, checkpoints, trainer.log_folder),
            logs_saved(trainer.logger if trainer.logs else None),
            mode(trainer.updater.model, training=True),
        ):
            history = Fit(trainer, train_loader, val_loader, plan).run()
        taken = None if scheduler is None else steps_taken(scheduler)
        if length.count is None and taken is not None and not trainer.stopping:
            trainer.guards.report(check_duration(scheduler, length.taken(taken)))
        return history
    finally:
        trainer.guards.after_fit()
