"""The guards around a training: each tells of its mistake once, and costs nothing afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Self

import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from headrace.oom import is_out_of_memory
from headrace.train.guards.classes import ClassNumbers
from headrace.train.guards.evaluation import WatchEvaluation, WatchNothing
from headrace.train.guards.finding import Finding, tell
from headrace.train.guards.loaders import (
    check_validation,
    check_waiting,
    foretell_batch_norm,
    waited_s,
)
from headrace.train.guards.losses import CLASSES, NAMES, check_difference, check_loss_call
from headrace.train.guards.nonfinite import describe_ignored, describe_source, name_of
from headrace.train.guards.parameters import (
    check_nonfinite_gradients,
    check_optimizer,
    check_without_gradient,
    nonfinite_gradients,
    without_gradient,
)

CHECKED_BATCHES = 3
CHECKED_BACKWARDS = 10
_NOTHING = nullcontext()


class Guards:
    """Looks for the common mistakes of a training: errors where it cannot be right, else warnings.

    Args:
        model: the model that is trained, or None.
        loss_fn: what compares outputs and targets, or None.
        optimizer: what learns, or None.
        forward: runs the model on the inputs of a batch; ``model(inputs)`` if left out.
        scaled: gradients are scaled (float16): single losses and gradients that are not finite
            are part of it, and only warned of.
    """

    def __init__(
        self,
        model: nn.Module | None,
        loss_fn: Callable[..., Any] | None,
        optimizer: Optimizer | None,
        *,
        forward: Callable[[Any], Any] | None = None,
        scaled: bool = False,
    ) -> None:
        self.on = True
        self._model, self._loss_fn, self._optimizer = model, loss_fn, optimizer
        self._forward, self._scaled = forward, scaled
        self._told: set[str] = set()
        self._batches = CHECKED_BATCHES  # that are still to be looked at
        self._backwards = 0
        self._without: set[str] | None = None  # parameters without a gradient, in all steps so far
        self._told_without = False
        self._hooks: list[Any] = []
        self._waited: float | None = None
        self._classes = ClassNumbers()

    @classmethod
    def off(cls) -> Self:
        """Return guards that do nothing."""
        guards = cls(None, None, None)
        guards.on, guards._batches = False, 0
        return guards

    def report(self, finding: Finding | None) -> None:
        """Tell of what was found elsewhere, once."""
        if self.on:
            self._tell(finding)

    def _tell(self, finding: Finding | None) -> None:
        if finding is not None and finding.kind not in self._told:
            if not finding.is_error:
                self._told.add(finding.kind)  # an error is one each time
            tell(finding)

    def before_fit(self, train_loader: Any, val_loader: Any = None) -> None:
        """Check what can be seen before the first batch."""
        if not self.on:
            return
        self._batches, self._backwards = CHECKED_BATCHES, 0
        self._without, self._told_without = None, False
        if self._model is not None and self._optimizer is not None:
            self._tell(check_optimizer(self._model, self._loss_fn, self._optimizer))
        if val_loader is not None:
            self._tell(check_validation(val_loader))
        if self._model is not None:
            self._hooks = foretell_batch_norm(self._model, train_loader, self._tell)
        self._waited = waited_s(train_loader)

    def watch_loss(self, outputs: Any = None, targets: Any = None) -> AbstractContextManager[Any]:
        """Check every loss function of torch that runs inside, in the first batches.

        They are seen wherever they are called: in modules, lambdas, functions of one's own, whole
        steps. After the first batches, only a loss that fails is looked at.

        Args:
            outputs: the model's outputs, if they are known: their difference to ``targets``, as in
                a loss written by hand, is looked at too.
            targets: the batch's targets.
        """
        if self._batches == 0:
            if outputs is None or not self.on:
                return _NOTHING
            return _Explain(self, outputs, targets)
        self._batches -= 1
        if not self._batches:
            self.after_fit()
        return _Watch(self, outputs, targets)

    def before_move(self, batch: Any, device: torch.device) -> None:
        """Look at the class numbers of a batch before it goes to a device.

        Raises:
            TrainingError: one is out of range.
        """
        if self.on:
            self._tell(self._classes.check(batch, device))

    def watch_evaluation(self, loader: Any) -> WatchEvaluation | WatchNothing:
        """Return what looks at the losses of an evaluation."""
        if not self.on:
            return WatchNothing()

        def describe(batch: Any, indices: Any) -> str:
            rows = None if indices is None else [indices]
            return describe_source(self._model, [batch], rows, self._forward)

        return WatchEvaluation(loader, describe, self._tell)

    def after_backward(
        self,
        loss: Tensor,
        *,
        step: int,
        group: list[Any],
        indices: Sequence[Any] | None = None,
        every_step: bool = False,
    ) -> None:
        """Look at the loss and the gradients before the optimizer steps.

        The gradients are looked at in the first steps. So is the loss; on the CPU, where nothing
        waits for it, in every step.

        Args:
            loss: the loss of the step, on the device.
            step: its number, for the text.
            group: its batches.
            indices: the dataset indices of each batch's samples, where they are known.
            every_step: look at the loss of every step.

        Raises:
            TrainingError: the loss or a gradient is not finite.
        """
        if not self.on:
            return
        first = self._backwards < CHECKED_BACKWARDS
        if first or every_step or loss.is_cpu:
            self.check_loss(loss.item(), step=step, group=group, indices=indices)
        if first and self._model is not None and self._optimizer is not None:
            self._backwards += 1
            self._look_at_gradients(self._model, self._optimizer, step)

    def _look_at_gradients(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        if not self._scaled:
            names = nonfinite_gradients(model)
            self._tell(check_nonfinite_gradients(names, step))
        if self._told_without:
            return
        now = without_gradient(model, optimizer)
        self._without = now if self._without is None else self._without & now
        # Among several processes the next step of one that misses gradients fails.
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        if several or not self._without or self._backwards == CHECKED_BACKWARDS:
            self._tell_without_gradient()

    def _tell_without_gradient(self) -> None:
        self._told_without = True
        if self._model is not None and self._without:
            found = check_without_gradient(self._without, self._model, self._backwards)
            self._tell(found)
        self._without = None

    def check_loss(
        self,
        loss_value: float,
        *,
        step: int,
        group: list[Any] | None,
        indices: Sequence[Any] | None = None,
        updated: bool = False,
    ) -> None:
        """Find where a loss that is not finite comes from.

        Args:
            loss_value: the loss as a number.
            step: the step it belongs to, for the text.
            group: the batches of that step, None if they are not kept any more.
            indices: the dataset indices of each batch's samples, where they are known.
            updated: the optimizer has stepped since.

        Raises:
            TrainingError: it is not finite.
        """
        if not self.on or math.isfinite(loss_value):
            return
        model = None if updated else self._model
        source = describe_ignored(self._loss_fn, group)
        source = source or describe_source(model, group, indices, self._forward)
        text = f"the loss is {name_of(loss_value)} at step {step:,}. {source}"
        self._tell(Finding("loss", text, is_error=not self._scaled))

    def check_gradients(self, norm: float, *, step: int) -> None:
        """Say that the norm of a step's gradients is not finite.

        Raises:
            TrainingError: so it is, and gradients are not scaled.
        """
        if not self.on or self._scaled or math.isfinite(norm):
            return
        names = [] if self._model is None else nonfinite_gradients(self._model)
        self._tell(check_nonfinite_gradients(names or ["all"], step))

    def after_epoch(self, loader: Any, seconds: float) -> None:
        """Check how long an epoch of ``seconds`` waited for its batches."""
        if not self.on:
            return
        self._tell_without_gradient()
        waited = waited_s(loader)
        if waited is not None and self._waited is not None:
            self._tell(check_waiting(loader, waited - self._waited, seconds))
        self._waited = waited

    def after_fit(self) -> None:
        """Take away what was hung into the model; to be called however the training ended."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


class _Explain:
    """Looks at a loss only if it fails: a class number that came late in the data."""

    __slots__ = ("_guards", "_pair")

    def __init__(self, guards: Guards, outputs: Any, targets: Any) -> None:
        self._guards, self._pair = guards, (outputs, targets)

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        """Compute the loss again where the arguments are seen."""
        guards = self._guards
        if not isinstance(error, (IndexError, ValueError, RuntimeError)) or guards._loss_fn is None:
            return
        if not is_out_of_memory(error):
            with _Watch(guards, *self._pair), suppress(type(error)):
                guards._loss_fn(*self._pair)


class _Watch(TorchFunctionMode):
    """Sees the calls of torch's loss functions, and of a difference of outputs and targets."""

    def __init__(self, guards: Guards, outputs: Any, targets: Any) -> None:
        super().__init__()
        self._guards, self._pair = guards, (outputs, targets)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        if func in NAMES:
            pair = dict(zip(("input", "target"), args, strict=False)) | options
            model = self._guards._model
            found = check_loss_call(func, pair["input"], pair["target"], options, model)
            self._guards._tell(found)
            if func in CLASSES and pair["target"] is self._pair[1]:
                self._guards._classes.learn(func, pair["input"], options.get("ignore_index", -100))
        elif getattr(func, "__name__", "") in ("sub", "rsub", "__rsub__", "subtract"):
            self._look_at_difference(args)
        return func(*args, **options)

    def _look_at_difference(self, args: tuple[Any, ...]) -> None:
        outputs, targets = self._pair
        if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)) or len(args) < 2:
            return
        if {id(args[0]), id(args[1])} == {id(outputs), id(targets)}:
            self._guards._tell(check_difference(outputs, targets))
