"""One step of the optimizer: forward and backward over a group of batches, then the update."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from headrace.errors import TrainingError
from headrace.train.batch import Weight, call_model, inputs_of, parts_of, to_device
from headrace.train.devices import leave_group_at_exit
from headrace.train.explain import explain_inputs, explain_targets
from headrace.train.guards import Guards
from headrace.train.oom_split import OnOom, OomSplit
from headrace.train.ranks import Ranks

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Step = Callable[[nn.Module, Any], Tensor]


class Updater:
    """The model, its loss and its optimizer, on their device and in their precision.

    The gradient of a group of batches, on however many ranks, is that of one batch of all their
    samples: a mean loss counts with its share of the group's weight, a summed one as it is.

    Fabric's own wrappers of model and optimizer are left out: they would cost 30 us a step.
    """

    def __init__(
        self,
        *,
        fabric: Fabric,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor] | None,
        step: Step | None,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | ReduceLROnPlateau | None,
        clip_norm: float | None,
        on_oom: OnOom,
        weight: Weight,
        guards: Guards,
        ranks: Ranks,
    ) -> None:
        self.device = fabric.device
        self.precision = fabric.strategy.precision
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.summed = getattr(loss_fn, "reduction", None) == "sum"
        self.norm: Tensor | None = None  # of the last step's gradients, where they are clipped
        self._scaler: Any = getattr(self.precision, "scaler", None)  # of float16
        self._wrapped: Any = fabric.strategy.setup_module(fabric.to_device(model))
        self._loss_fn = loss_fn
        self._step = step
        self._clip_norm = clip_norm
        self._weight = weight
        self._guards = guards
        self._ranks = ranks
        self.oom = OomSplit(model, on_oom, optimizer.zero_grad, self.device, ranks.size)
        learning = nn.ModuleList([m for m in (model, loss_fn) if isinstance(m, nn.Module)])
        self._parameters = [p for p in learning.parameters() if p.requires_grad]
        self._stepped = False
        if self._scaler is not None:
            optimizer.register_step_post_hook(self._note_step)
        if ranks.size > 1:
            own = weakref.ref(self)
            leave_group_at_exit(lambda: _give_up_wrapper(own()))

    def _note_step(self, *_: Any) -> None:
        self._stepped = True

    def moved(self, batch: Any) -> Any:
        """Return a batch on the device; its targets are looked at before.

        Raises:
            TrainingError: they hold class numbers that the model does not have.
        """
        self._guards.before_move(batch, self.device)
        return to_device(batch, self.device)

    def loss_of(self, model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
        """Return the loss of a batch on the device, the outputs and the targets.

        Raises:
            TrainingError: the loss is not one number.
        """
        with self.precision.forward_context():
            outputs = targets = None
            if self._step is not None:
                with self._guards.watch_loss():
                    try:
                        loss = self._step(model, batch)
                    except (RuntimeError, ValueError, TypeError, IndexError) as error:
                        explain_inputs(error, model, inputs_of(batch))
                        raise
            else:
                inputs, targets = parts_of(batch)
                outputs = call_model(model, inputs)
                assert self._loss_fn is not None
                with self._guards.watch_loss(outputs, targets):
                    try:
                        loss = self._loss_fn(outputs, targets)
                    except (RuntimeError, ValueError, TypeError) as error:
                        explain_targets(error, outputs, targets)
                        raise
        if not isinstance(loss, Tensor) or loss.ndim:
            what = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TrainingError(
                f"the loss has to be a tensor of one number, and is of {what}. Let the loss "
                f"function return its mean: reduction='mean'."
            )
        return loss, outputs, targets

    def gradients(
        self, group: list[Any], weights: Sequence[Any], total: Any, everywhere: bool
    ) -> Tensor:
        """Set the gradients to those of a group of batches.

        Args:
            group: the batches of this rank; may be empty where another rank's is not.
            weights: what each one counts.
            total: what all of them count, on all ranks.
            everywhere: every rank has a batch in its group.

        Returns:
            this rank's part of the mean loss: over all ranks they add up to it. Where the batches
            count nothing, NaN, and there are no gradients.
        """
        self.optimizer.zero_grad()
        if counts_nothing(total):  # all targets are ignored: the mean over none is not a number
            return torch.full((), torch.nan, device=self.device)

        def attempt(batches: list[Any]) -> Tensor:
            shares = weights if batches is group else [self._weight(batch) for batch in batches]
            return self._backward(batches, shares, total, everywhere)

        loss = self.oom.run(attempt, group)
        if not everywhere:
            self._ranks.add_gradients(self._parameters)
        return loss

    def _backward(
        self, batches: Sequence[Any], weights: Sequence[Any], total: Any, everywhere: bool
    ) -> Tensor:
        # Without a batch on every rank, DDP would wait for a backward that never comes: then the
        # gradients are added up behind it. It divides sums by the ranks, which is undone here.
        model = self._wrapped if everywhere else self.model
        undo = self._ranks.size if everywhere else 1
        if len(batches) == 1 and self._ranks.size == 1:  # its share is 1: to the bit
            loss = self.loss_of(model, self.moved(batches[0]))[0]
            self._differentiate(loss)
            return loss.detach() / total if self.summed else loss.detach()
        loss_sum = torch.zeros((), device=self.device)
        for place, (batch, weight) in enumerate(zip(batches, weights, strict=True)):
            if self._ranks.size == 1 and counts_nothing(weight):
                continue
            with self._gradients_stay(everywhere and place + 1 < len(batches)):
                loss = self.loss_of(model, self.moved(batch))[0]
                part = loss if self.summed else counted(loss * (weight / total), weight)
                self._differentiate(part * undo if undo > 1 else part)
            loss_sum = loss_sum + part.detach()
        if isinstance(total, Tensor):
            loss_sum = torch.where(total == 0, torch.nan, loss_sum)
        return loss_sum / total if self.summed else loss_sum

    def _differentiate(self, loss: Tensor) -> None:
        if not loss.requires_grad:
            raise TrainingError(
                "the loss depends on no parameter that learns. Look for .detach(), .item(), "
                "torch.no_grad() or argmax between the model and the loss, and for parameters "
                "that are all frozen (requires_grad=False)."
            )
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def _gradients_stay(self, stay: bool) -> AbstractContextManager[Any]:
        """Keep gradients on their ranks until the last batch of a group."""
        return self._wrapped.no_sync() if stay and self._ranks.size > 1 else nullcontext()

    def learning_rates(self) -> dict[str, float]:
        """Return ``lr``; of several groups ``lr_`` and the group's name, or its place from 0."""
        groups = self.optimizer.param_groups
        if len(groups) == 1:
            return {"lr": float(groups[0]["lr"])}
        return {f"lr_{g.get('name', at)}": float(g["lr"]) for at, g in enumerate(groups)}

    def gradient_norm(self) -> Tensor | None:
        """Return the norm of the last step's gradients, before clipping, on the device.

        None where there are none, or a fused optimizer has not unscaled those of float16.
        """
        found = [p.grad for p in self._parameters if p.grad is not None]
        if not found or self._clip_norm is not None:
            return self.norm if found else None
        if self._scaler is not None and getattr(
            self.optimizer, "_step_supports_amp_scaling", False
        ):
            return None
        return nn.utils.get_total_norm(
            [g.detach().coalesce().values() if g.is_sparse else g.detach() for g in found]
        )

    def update(self) -> bool:
        """Step the optimizer on the gradients that are there; say whether it did.

        A gradient scaler skips the step where float16 has overflowed.
        """
        scaler = self._scaler
        if self._clip_norm is not None:
            if scaler is not None:
                scaler.unscale_(self.optimizer)
            self.norm = nn.utils.clip_grad_norm_(self._parameters, self._clip_norm)
        if scaler is None:
            self.optimizer.step()
            return True
        self._stepped = False
        inside = getattr(self.optimizer, "_step_supports_amp_scaling", False)
        before = scaler.get_scale() if inside else 0.0
        scaler.step(self.optimizer)
        scaler.update()
        # A fused optimizer is always called and skips by itself: the scale shows that it did.
        return scaler.get_scale() >= before if inside else self._stepped


def counts_nothing(weight: Any) -> bool:
    """Say whether a weight is 0, as far as the host knows."""
    return not isinstance(weight, Tensor) and not weight


def counted(part: Tensor, weight: Any) -> Tensor:
    """Return a part of a mean loss; 0 where it weighs nothing, whatever the mean over none is."""
    if isinstance(weight, Tensor):
        return torch.where(weight == 0, 0, part)
    return part if weight else torch.where(torch.isnan(part), 0, part)


def _give_up_wrapper(updater: Updater | None) -> None:
    if updater is not None:
        updater._wrapped = None
