"""The Trainer: what is trained, how, the calls that do it, and what it calls meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from headrace.errors import OptionError
from headrace.spelling import suggests_names
from headrace.train.batch import OwnWeight, Weight, forward_any, weight_of
from headrace.train.best import Mode, best_wanted
from headrace.train.checks import (
    check_callbacks,
    check_class_weights,
    check_clip_norm,
    check_loader,
    check_loss_module,
    check_training,
    count,
)
from headrace.train.devices import launch
from headrace.train.evaluation import Evaluation, mode
from headrace.train.fitting import fit
from headrace.train.guards import Guards
from headrace.train.history import History
from headrace.train.metrics import Metrics
from headrace.train.oom_split import OnOom
from headrace.train.overfit import overfit
from headrace.train.places import logger_of
from headrace.train.predicting import predict
from headrace.train.ranks import Ranks
from headrace.train.schedule import check_scheduler
from headrace.train.states import load_states, states_of
from headrace.train.update import Step, Updater


class Callback:
    """Base of callbacks: methods that do nothing. They are called on every rank.

    ``trainer.stop()`` ends the training behind the present epoch. A callback with ``state_dict()``
    and ``load_state_dict()`` is part of the checkpoints.
    """

    def on_fit_start(self, trainer: Trainer) -> None:
        """Before the first step, after a checkpoint was loaded."""

    def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        """Before an epoch; they count from 0."""

    def on_log(self, trainer: Trainer, step: int, values: dict[str, float]) -> None:
        """Whenever losses are read, every ``log_every`` steps: the mean since the last time."""

    def on_step_end(self, trainer: Trainer, step: int) -> None:
        """After a step of the optimizer that was not skipped; they count from 1."""

    def on_evaluation_start(self, trainer: Trainer) -> None:
        """Before validation: for who evaluates other weights. Also before ``on_fit_end``."""

    def on_epoch_end(self, trainer: Trainer, epoch: int, values: dict[str, float]) -> None:
        """After an epoch and its validation."""

    def on_evaluation_end(self, trainer: Trainer) -> None:
        """After ``on_epoch_end``, in the reverse order: the training goes on."""

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """After a checkpoint was written, on rank 0."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last epoch."""


class Trainer:
    """Mini-batch training as it is written by hand, done right once.

    Args:
        model: any module. It is moved to the device.
        loss_fn: ``loss_fn(outputs, targets)``, a mean over the batch; a sum if it has
            ``reduction="sum"``. A module is moved to the device, and part of the checkpoints. May
            be left out where ``step=`` is given.
        optimizer: holds the model's parameters.
        scheduler: stepped after each step of the optimizer that was not skipped;
            ``ReduceLROnPlateau`` after each epoch, with the validation loss.
        metrics: of evaluations: ``"accuracy"``, the share of right classes; a torchmetrics
            ``Metric`` or ``MetricCollection``; a function ``(outputs, targets) -> mean over the
            batch``; a dict of these by name, or a list.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
        precision: ``"bf16-mixed"`` and ``"16-mixed"`` compute in 16 bits where that is safe, and
            keep the weights in 32; float16 with gradient scaling.
        accumulate: batches whose gradients are added up for one step of the optimizer.
        clip_norm: scale the gradients down to this norm where theirs is larger.
        devices: how many to train on. Under torchrun there is one for each of its processes.
        strategy: ``"auto"``, ``"ddp"`` or ``"ddp_find_unused_parameters_true"``.
        callbacks: see `Callback`.
        step: ``step(model, batch)`` returns the mean loss, instead of
            ``loss_fn(model(inputs), targets)``.
        weight: ``weight(batch)`` says how much a batch counts in losses, metrics and accumulated
            gradients. By default what a mean loss divides by: its samples, or for cross-entropy
            the targets that are not ignored.
        schedule_every: ``"step"``, or ``"epoch"`` for a scheduler that counts epochs.
        log_every: steps after which the losses since the last time are read from the device.
        logger: a folder for TensorBoard, or any of Lightning Fabric's loggers.
        guards: look for the usual mistakes, see the guide; False for none.
        on_oom: ``"error"``, or ``"split"`` a batch that does not fit into the device's memory.
        progress: show it; ``"auto"`` shows bars on a terminal and in notebooks, lines elsewhere.

    Raises:
        OptionError: a value that cannot be.
        MissingExtraError: ``headrace[train]`` is not installed.
    """

    @suggests_names
    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        scheduler: LRScheduler | ReduceLROnPlateau | None = None,
        metrics: Any = None,
        device: str | torch.device = "auto",
        precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
        accumulate: int = 1,
        clip_norm: float | None = None,
        devices: int = 1,
        strategy: str = "auto",
        callbacks: Sequence[Callback] = (),
        step: Step | None = None,
        weight: Weight | None = None,
        schedule_every: Literal["step", "epoch"] = "step",
        log_every: int = 10,
        logger: Any = None,
        guards: bool = True,
        on_oom: OnOom = "error",
        progress: bool | Literal["auto"] = "auto",
    ) -> None:
        check_training(model, loss_fn, optimizer, step)
        check_class_weights(loss_fn)
        assert optimizer is not None
        check_scheduler(scheduler, optimizer)
        if step is not None and metrics is not None:
            raise OptionError(
                "metrics need outputs and targets, which step= keeps to itself. Write "
                "Trainer(model, loss_fn, optimizer, metrics=...)."
            )
        if schedule_every not in ("step", "epoch"):
            raise OptionError(f"schedule_every={schedule_every!r}: write 'step' or 'epoch'.")
        self.accumulate = count("accumulate", accumulate)
        self.log_every = count("log_every", log_every)
        check_clip_norm(clip_norm)
        fabric = launch(str(device), devices, precision, strategy)
        self.ranks = Ranks(fabric.global_rank, fabric.world_size)
        self.device = fabric.device
        self.model = model
        self.weight = weight_of(loss_fn) if weight is None else OwnWeight(weight)
        counts = self.weight  # of metrics, where class weights are none of their business
        if weight is None and getattr(loss_fn, "weight", None) is not None:
            counts = weight_of(loss_fn, class_weights=False)
        self.loss_module = loss_fn if isinstance(loss_fn, nn.Module) else None
        if self.loss_module is not None:
            check_loss_module(self.loss_module, self.ranks.size)
            self.loss_module.to(self.device)
        plateau = isinstance(scheduler, ReduceLROnPlateau)
        self.schedule_every: Literal["step", "epoch"] = "epoch" if plateau else schedule_every
        self.progress: bool | Literal["auto"] = progress
        self.stopping = False
        self.guards = Guards.off()
        if guards:
            forward = partial(forward_any, model, self.device)
            self.guards = Guards(
                model, loss_fn, optimizer, forward=forward, scaled=precision == "16-mixed"
            )
        self.updater = Updater(
            fabric=fabric,
            model=model,
            loss_fn=loss_fn,
            step=step,
            optimizer=optimizer,
            scheduler=scheduler,
            clip_norm=clip_norm,
            on_oom=on_oom,
            weight=self.weight,
            guards=self.guards,
            ranks=self.ranks,
        )
        found = Metrics(metrics, self.device, loss_fn)
        self._evaluation = Evaluation(
            self.updater,
            found,
            weight=self.weight,
            counts=counts,
            ranks=self.ranks,
            guards=self.guards,
        )
        self._callbacks = check_callbacks(callbacks)
        self.logger, self.log_folder = logger_of(logger)
        self.logs = self.logger is not None and self.ranks.rank == 0

    def fit(
        self,
        train_loader: Iterable[Any],
        val_loader: Iterable[Any] | None = None,
        epochs: int = 1,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        resume: Literal["auto", "never"] = "auto",
        *,
        checkpoint_every_steps: int | None = None,
        checkpoint_every_s: float | None = None,
        keep: int = 3,
        keep_best: int = 0,
        best_by: str = "val_loss",
        best_mode: Mode = "auto",
    ) -> History:
        """Train, and validate after each epoch.

        Args:
            train_loader: headrace's loader, torch's, or any iterable of batches.
            val_loader: evaluated after each epoch.
            epochs: how many in all, those before a checkpoint that is resumed included.
            checkpoint_dir: where checkpoints are written, after each epoch and at the end.
            resume: ``"auto"`` goes on from the newest whole checkpoint in ``checkpoint_dir``;
                ``"never"`` begins, and refuses a folder that holds one.
            checkpoint_every_steps: write one every so many steps of the optimizer, instead of
                after each epoch.
            checkpoint_every_s: the same in seconds.
            keep: how many of them to keep; others than this run's own are never removed.
            keep_best: how many more to keep, of the epochs that were best.
            best_by: the value of an epoch that says so: "val_loss", "val_accuracy", "loss".
            best_mode: "min", if less of it is better, or "max"; "auto" tells by the name.

        Returns:
            the losses of all steps, and the values of all epochs.

        Raises:
            OptionError: a value that cannot be, or a dataset where a loader is wanted.
            TrainingError: the training cannot be right, or went wrong; the text says what to do.
            StateError: a checkpoint does not fit; or another run's is in the way.
            InUseError: another program writes to ``checkpoint_dir``, or to the logger's folder.
            OSError: a checkpoint cannot be written: the disk is full, the folder read-only.
            SystemExit: with code 143, after SIGTERM, once a checkpoint is written.
        """
        return fit(
            self,
            train_loader,
            val_loader,
            epochs=epochs,
            folder=checkpoint_dir,
            resume=resume,
            checkpoint_every_steps=checkpoint_every_steps,
            checkpoint_every_s=checkpoint_every_s,
            keep=keep,
            best=best_wanted(keep_best, best_by, best_mode),
        )

    def stop(self) -> None:
        """End the training behind the present epoch; for callbacks."""
        self.stopping = True

    def evaluate(self, loader: Iterable[Any]) -> dict[str, float]:
        """Return the mean loss over all samples of a loader, and the metrics.

        In evaluation mode and without gradients; the model's modes are put back. On several ranks
        each one evaluates its part, and all get the values of the whole.

        Raises:
            OptionError: the loader is a dataset or a tensor.
            TrainingError: the loader gave no batch.
        """
        check_loader("loader", loader)
        self.ranks.check_alike({"loader": loader}, {})
        self.ranks.share_buffers(self.model)
        return self.run_evaluation(loader, lambda: None)

    def run_evaluation(
        self, loader: Iterable[Any], after_batch: Callable[[], None]
    ) -> dict[str, float]:
        """Evaluate, and call ``after_batch()`` after each batch."""
        return self._evaluation.run(loader, after_batch)

    def predict(self, loader: Iterable[Any], *, join: bool = True) -> Any:
        """Return the model's outputs for all batches, in the loader's order, on the CPU.

        Args:
            loader: its batches may have targets or not. Under torchrun each rank predicts all of
                it: give one without ``shard=``.
            join: put the batches' outputs together, each tensor along its first dimension; False
                for a list with the outputs of each batch.

        Raises:
            OptionError: the loader is a dataset or a tensor.
            TrainingError: the loader is divided among ranks, or the outputs do not fit together.
        """
        return predict(self, loader, join)

    def overfit_one_batch(
        self, loader: Iterable[Any], steps: int = 100, fraction: float = 0.5
    ) -> list[float]:
        """Train on the first batch of a loader only, as a smoke test, and put everything back.

        Args:
            loader: its first batch is used, in each of the steps.
            steps: of the optimizer; the schedule is left alone.
            fraction: of the first loss that the last one must not exceed.

        Returns:
            the losses of the steps.

        Raises:
            OptionError: the loader is a dataset or a tensor.
            TrainingError: the loss did not fall so far, and does not go on falling: the model does
                not learn. (Where it learns slowly, it is a warning.)
        """
        check_loader("loader", loader)
        with mode(self.model, training=True):
            return overfit(self, loader, count("steps", steps), fraction)

    # ---- what the loop asks for

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a method of all callbacks."""
        backward = hook == "on_evaluation_end"  # what was put in last comes out first
        for callback in reversed(self._callbacks) if backward else self._callbacks:
            getattr(callback, hook)(self, *arguments)

    def log(self, values: dict[str, float], step: int, prefix: str = "") -> None:
        """Hand values to the logger, on rank 0."""
        if self.logs:
            named = {prefix + name: value for name, value in values.items()}
            self.logger.log_metrics(named, step)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all but the model: part of a checkpoint."""
        return states_of(self.updater, self.loss_module, self._callbacks)

    def load_state_dict(self, state: dict[str, Any], path: Path) -> None:
        """Put them back.

        Raises:
            StateError: they do not fit.
        """
        load_states(self.updater, self.loss_module, self._callbacks, state, path)
