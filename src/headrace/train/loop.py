"""The training loop, from top to bottom: fit, epochs, steps, validation, checkpoints.

Where the host waits for the device is marked WAITS. Where the ranks wait for each other is marked
AGREE: what comes there must come on every rank.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from headrace.errors import HeadraceError, StateError, TrainingError
from headrace.sized import length_of
from headrace.train.batch import check_weight
from headrace.train.best import value_of
from headrace.train.checkpoint import load, step_of
from headrace.train.checks import no_batch
from headrace.train.feed import Feed, load_into
from headrace.train.guards.nonfinite import nothing_counts
from headrace.train.history import History
from headrace.train.names import names_for, own_names
from headrace.train.plan import Plan
from headrace.train.progress import Progress
from headrace.train.schedule import not_compared, steps_of_epoch
from headrace.train.sigterm import EXIT_CODE, Sigterm
from headrace.train.storable import pack, unpack
from headrace.train.training import Training
from headrace.train.update import counts_nothing
from headrace.tree import size_bytes


@dataclass
class Position:
    """Where the training stands; part of a checkpoint."""

    epoch: int = 0  # epochs done
    step: int = 0  # steps of the optimizer
    batches: int = 0  # that this process has had of the present epoch
    loss: float = 0.0  # losses times weights of the present epoch, so far as they were read
    weight: float = 0.0
    stopped_of: int = 0  # epochs that there were to be, when the training was stopped before


@dataclass(slots=True)
class _Unread:
    """A step whose loss is still on the device."""

    step: int
    loss: Tensor  # this rank's part of it
    weight: Any
    norm: Tensor | None
    group: list[Any] | None  # its batches, to say what was wrong with them
    indices: Sequence[Any] | None  # of their samples in the dataset, where the loader says so


@dataclass(slots=True)
class _Agreed:
    """What all ranks know before a step."""

    weight: Any  # of the groups of all ranks
    everywhere: bool  # every rank has a batch
    anywhere: bool  # one has
    save: bool  # a checkpoint is due behind the step
    leave: bool  # SIGTERM came
    ended: bool  # a loader has come to its end: its state is that of the next epoch already


_KEPT_BYTES = 1 << 24  # of batches whose losses have not been read


class Fit:
    """One call of ``fit``."""

    def __init__(self, trainer: Training, train_loader: Any, val_loader: Any, plan: Plan) -> None:
        self.trainer = trainer
        self.updater = trainer.updater
        self.ranks = trainer.ranks
        self.feed = Feed(train_loader, val_loader, trainer.device)
        self.plan = plan
        self.position = Position()
        self.history = History()
        self.unread: list[_Unread] = []
        self.on_cpu = trainer.device.type == "cpu"
        self.save_later = False  # behind the validation, for the loader is at its end
        self.saved_at = time.monotonic()
        self.saved_as: tuple[int, int] | None = None
        self.values: dict[str, float] = {}  # of the epoch that has just been validated
        self.rates: dict[str, float] = {}  # of the last step, where they are logged

    def run(self) -> History:
        """Train up to the last epoch, or until SIGTERM or ``trainer.stop()``."""
        plan, trainer = self.plan, self.trainer
        self._resume()
        stopped = self.position.stopped_of >= plan.epochs
        within = self.ranks.sum([self.position.batches])[0] > 0  # AGREE: an epoch to be finished
        trainer.stopping = stopped and not within
        self.updater.optimizer.zero_grad()
        trainer.call("on_fit_start")
        show = trainer.progress if self.ranks.rank == 0 else False
        self.progress = Progress(plan.epochs, self.position.epoch, show)
        # Without a checkpoint to write, SIGTERM ends the process as it always does.
        with Sigterm(plan.checkpoints is not None) as self.sigterm, self.progress:
            self._tell_resumed()
            try:
                while self.position.epoch < plan.epochs and not trainer.stopping:
                    trainer.stopping = stopped  # it was asked for within this epoch
                    self._epoch()
                self._save()
            except KeyboardInterrupt as error:
                self._note_checkpoint(error)
                raise
        trainer.call("on_evaluation_start")  # the weights to stay are those that were evaluated
        trainer.call("on_fit_end")
        return self.history

    # ---- an epoch

    def _epoch(self) -> None:
        trainer, position = self.trainer, self.position
        epoch, started = position.epoch, time.perf_counter()
        self.values = {}
        trainer.call("on_epoch_start", epoch)
        self.progress.begin_epoch(epoch, steps_of_epoch(self.feed.train_loader, trainer.accumulate))
        self._train(epoch)
        trainer.guards.after_epoch(self.feed.train_loader, time.perf_counter() - started)
        if not position.weight:
            raise no_batch("train_loader", self.feed.train_loader, position.batches, "train on")
        values = {"loss": position.loss / position.weight}
        with self._evaluation_weights():
            self._validate(epoch, values)
        trainer.stopping = self.ranks.sum([trainer.stopping])[0] > 0  # AGREE
        self.position.stopped_of = self.plan.epochs if trainer.stopping else 0
        self.values = values
        often = self.plan.every_steps is not None or self.plan.every_s is not None
        if self._is_best() or self.save_later or not often:
            self._save()
        self._leave_if(self.ranks.sum([self.sigterm.came])[0] > 0)  # AGREE

    def _is_best(self) -> bool:
        """Say whether the epoch belongs to the best ones, of which there is a checkpoint each."""
        checkpoints, best = self.plan.checkpoints, self.plan.best
        if checkpoints is None or best is None:
            return False
        value_of(best.metric, self.values, "keep_best goes by", "fit(..., best_by=...)")
        found = self.ranks.rank == 0 and checkpoints.is_best(self.values)
        return self.ranks.sum([found])[0] > 0  # AGREE

    @contextmanager
    def _evaluation_weights(self) -> Iterator[None]:
        """Have the callbacks put in the weights that are evaluated, and take them out again."""
        try:
            self.trainer.call("on_evaluation_start")
            yield
        finally:
            self.trainer.call("on_evaluation_end")

    def _validate(self, epoch: int, values: dict[str, float]) -> None:
        """Evaluate the model behind an epoch, and tell everybody."""
        trainer, position = self.trainer, self.position
        if self.feed.val_loader is not None:
            self.ranks.share_buffers(self.updater.model)
            self.progress.begin_validation(length_of(self.feed.val_loader))
            found = trainer.run_evaluation(self.feed.val_loader, self.progress.validation_step)
            values |= {f"val_{name}": value for name, value in found.items()}
        self._schedule_epoch(values)
        self.history.add_epoch(epoch, **values)
        trainer.log(values, position.step)
        self.progress.end_epoch(values)
        self.position = Position(epoch + 1, position.step)
        trainer.call("on_epoch_end", epoch, values)

    def _train(self, epoch: int) -> None:
        trainer, position = self.trainer, self.position
        updater, guards = self.updater, trainer.guards
        batches = self.feed.epoch(epoch, position.batches)
        while True:
            # A group is drawn before any of it is computed: what share of it a batch has is known
            # only then, and the loader's state always stands between two steps of the optimizer.
            group, indices = self.feed.draw(batches, trainer.accumulate)
            position.batches += len(group)
            weights = [trainer.weight(batch) for batch in group]
            agreed = self._agree(weights)  # AGREE
            if not agreed.anywhere:
                break
            loss = updater.gradients(group, weights, agreed.weight, agreed.everywhere)
            every_step = trainer.log_every == 1
            nothing = counts_nothing(agreed.weight)
            if nothing:
                guards.report(nothing_counts(trainer.weight, position.step + 1))
            else:
                guards.after_backward(
                    loss,
                    step=position.step + 1,
                    group=group,
                    indices=indices,
                    every_step=every_step,
                )
            if trainer.logs:  # a schedule that steps changes them
                self.rates = updater.learning_rates()
            stepped = not nothing and updater.update()
            if stepped and trainer.schedule_every == "step" and updater.scheduler is not None:
                updater.scheduler.step()
            position.step += 1
            if stepped:
                trainer.call("on_step_end", position.step)
            self.unread.append(
                _Unread(position.step, loss, agreed.weight, updater.norm, group, indices)
            )
            if len(self.unread) >= trainer.log_every:
                self._read()
            elif self.on_cpu or len(self.unread) * size_bytes(group) > _KEPT_BYTES:
                self.unread[-1].group = None
            if (agreed.save or agreed.leave) and not agreed.ended:
                self._save()
                self._leave_if(agreed.leave)
            self.save_later = agreed.save and agreed.ended
        self._read()

    def _agree(self, weights: list[Any]) -> _Agreed:
        plan = self.plan
        save = False
        if plan.every_steps is not None:
            save = (self.position.step + 1) % plan.every_steps == 0
        if plan.every_s is not None:
            save = save or time.monotonic() - self.saved_at >= plan.every_s
        weight: Any = weights[0] if len(weights) == 1 else sum(weights)
        some = bool(weights)
        if self.ranks.size == 1:
            return _Agreed(weight, some, some, save, self.sigterm.came, self.feed.ended)
        mine = [not some, some, save, self.sigterm.came, self.feed.ended]
        weight, *counts = self.ranks.sum([float(weight), *map(float, mine)])
        without, having, saving, leaving, ended = (count > 0 for count in counts)
        return _Agreed(weight, not without, having, saving, leaving, ended)

    def _read(self) -> None:
        """Read the losses since the last time: WAITS for the device, once for all of them."""
        if not self.unread:
            return
        trainer, position = self.trainer, self.position
        unread, self.unread = self.unread, []
        values = self.ranks.sum(torch.stack([u.loss for u in unread]).tolist())  # AGREE
        for one, value in zip(unread, values, strict=True):
            weight = float(one.weight)
            check_weight(weight)
            self.history.add_step(one.step, position.epoch, loss=value)
            if counts_nothing(one.weight):
                continue
            position.loss += value * weight
            position.weight += weight
            self._check(one, value)
        counted = [v for v, one in zip(values, unread, strict=True) if float(one.weight)]
        shown = {"loss": sum(counted) / len(counted) if counted else math.nan}
        self.progress.step(len(unread), **shown)
        if trainer.logs:
            norm = self.updater.gradient_norm()
            norms = {} if norm is None else {"grad_norm": float(norm)}
            trainer.log({**shown, **norms, **self.rates}, position.step, prefix="step_")
        trainer.call("on_log", position.step, shown)

    def _check(self, one: _Unread, loss: float) -> None:
        guards = self.trainer.guards
        if not math.isfinite(loss):
            guards.check_loss(
                loss, step=one.step, group=one.group, indices=one.indices, updated=True
            )
        elif one.norm is not None and guards.on:
            guards.check_gradients(float(one.norm), step=one.step)

    def _schedule_epoch(self, values: dict[str, float]) -> None:
        scheduler = self.updater.scheduler
        if scheduler is None or self.trainer.schedule_every == "step":
            return
        if isinstance(scheduler, ReduceLROnPlateau):
            loss = values.get("val_loss", values["loss"])
            if math.isfinite(loss):
                scheduler.step(loss)
            else:
                self.trainer.guards.report(not_compared(loss))
        else:
            scheduler.step()

    # ---- checkpoints

    def _save(self) -> None:
        """Write a checkpoint; rank 0 does, with what the other ranks tell it. AGREE, WAITS."""
        checkpoints, trainer, position = self.plan.checkpoints, self.trainer, self.position
        if checkpoints is None or self.saved_as == (position.step, position.epoch):
            return
        self.saved_as = (position.step, position.epoch)
        self._read()
        if self.ranks.sum([trainer.stopping])[0] > 0:  # AGREE
            position.stopped_of = self.plan.epochs
        mine = self.feed.state_dict(position.batches)
        everyone = [mine]
        if self.ranks.size > 1:
            everyone = [unpack(part) for part in self.ranks.gather(pack(mine))]
        problem: Exception | None = None
        if self.ranks.rank == 0:
            state = {"position": asdict(position), "ranks": everyone, **trainer.state_dict()}
            state["history"] = self.history.state_dict()
            model = own_names(self.updater.model.state_dict())
            try:
                path = checkpoints.save(position.step, position.epoch, model, state, self.values)
            except (OSError, HeadraceError) as error:
                problem = error
            else:
                trainer.call("on_checkpoint", path)
        self.ranks.raise_together(problem)  # AGREE
        self.saved_at = time.monotonic()

    def _leave_if(self, leave: bool) -> None:
        if not leave:
            return
        self._save()
        assert self.plan.checkpoints is not None
        self.progress.message(
            f"SIGTERM: saved at step {self.position.step} in {self.plan.checkpoints.folder}; the "
            f"same program goes on from there."
        )
        raise SystemExit(EXIT_CODE)

    def _note_checkpoint(self, error: KeyboardInterrupt) -> None:
        """Tell who interrupts where the training can go on: nothing is written in mid-step."""
        checkpoints = self.plan.checkpoints
        names = [] if checkpoints is None else checkpoints.names()
        if checkpoints is not None and names:
            error.add_note(
                f"headrace: the last checkpoint is step {step_of(names[-1])} in "
                f"{checkpoints.folder}; the same program goes on from there."
            )

    def _tell_resumed(self) -> None:
        if self.plan.checkpoints is None or not self.position.step:
            return
        done, epochs, folder = self.position.epoch, self.plan.epochs, self.plan.checkpoints.folder
        text = f"goes on from step {self.position.step} (epoch {done + 1} of {epochs}) in {folder}"
        if done >= epochs:
            text = f"{epochs} of {epochs} epochs are done in {folder}: nothing to train"
        elif self.trainer.stopping:
            text = (
                f"the training in {folder} was stopped behind epoch {done} of {epochs}: nothing to "
                f"train; with epochs={epochs + 1} or more it goes on"
            )
        self.progress.message(text)

    def _resume(self) -> None:
        """Go on from the newest whole checkpoint; without one, begin."""
        checkpoints = self.plan.checkpoints
        if checkpoints is None:
            return
        name = ""
        if self.ranks.rank == 0:
            name = checkpoints.begin() or ""
        name = max(part.decode() for part in self.ranks.gather(name.encode()))  # rank 0's
        if not name:
            return
        path = checkpoints.folder / name
        if not self.plan.resume:
            raise TrainingError(
                f"{checkpoints.folder} holds checkpoints, and resume='never' would mix two runs. "
                f"Give another checkpoint_dir, or remove this one."
            )
        model, state = load(path)
        load_into(self.updater.model, names_for(self.updater.model, model), "model", path)
        self.trainer.load_state_dict(state, path)
        self.history.load_state_dict(state["history"])
        self.position = Position(**state["position"])
        self.saved_as = (self.position.step, self.position.epoch)
        self._resume_rank(path, state["ranks"])
        if self.ranks.rank == 0:  # one that was killed behind its last save did not come to it
            checkpoints.forget_before(name)

    def _resume_rank(self, path: Path, everyone: list[dict[str, Any]]) -> None:
        mine = everyone[self.ranks.rank if self.ranks.rank < len(everyone) else 0]
        if self.position.batches and len(everyone) != self.ranks.size and "loader" not in mine:
            raise StateError(
                f"the checkpoint {path} was written within an epoch by {len(everyone)} ranks, and "
                f"its loader cannot be divided among {self.ranks.size}. Start {len(everyone)}, or "
                f"use headrace.DataLoader(..., shard='auto')."
            )
        if self.position.batches:
            self.position.batches = mine["batches"]
        ours = self.ranks.rank < len(everyone)
        self.feed.load_state_dict(mine, path, ours=ours, done=self.position.batches)
