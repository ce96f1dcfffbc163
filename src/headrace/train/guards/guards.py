"""The guards around a training: each tells of its mistake once, and costs nothing afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch.distributed
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from headrace.train.guards.finding import Finding, listing, tell
from headrace.train.guards.loaders import (
    check_validation,
    check_waiting,
    foretell_batch_norm,
    waited_s,
)
from headrace.train.guards.losses import NAMES, check_loss_call, check_shapes, known_loss
from headrace.train.guards.nonfinite import describe_source, name_of
from headrace.train.guards.parameters import (
    check_optimizer,
    check_without_gradient,
    nonfinite_gradients,
    without_gradient,
)

CHECKED_BATCHES = 3
CHECKED_BACKWARDS = 10


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
        self._batches = self._backwards = 0
        self._without: set[str] | None = None
        self._hooks: list[Any] = []
        self._waited: float | None = None

    @classmethod
    def off(cls) -> Self:
        """Return guards that do nothing."""
        guards = cls(None, None, None)
        guards.on = False
        return guards

    def _tell(self, finding: Finding | None) -> None:
        if finding is not None and finding.kind not in self._told:
            self._told.add(finding.kind)
            tell(finding)

    def before_fit(self, train_loader: Any, val_loader: Any = None) -> None:
        """Check what can be seen before the first batch."""
        if not self.on:
            return
        if self._model is not None and self._optimizer is not None:
            self._tell(check_optimizer(self._model, self._optimizer))
        if val_loader is not None:
            self._tell(check_validation(val_loader))
        self._remove_hooks()
        if self._model is not None:
            self._hooks = foretell_batch_norm(self._model, train_loader, self._tell)
        self._waited = waited_s(train_loader)

    def check_outputs(self, outputs: Any, targets: Any) -> None:
        """Check what a known loss function is about to be given, in the first batches."""
        if not self.on or self._batches >= CHECKED_BATCHES:
            return
        self._batches += 1
        self._remove_hooks()
        known = known_loss(self._loss_fn)
        if known is not None:
            self._tell(check_loss_call(known[0], outputs, targets, known[1], self._model))

    @contextmanager
    def watch_loss(self, outputs: Any = None, targets: Any = None) -> Iterator[None]:
        """Check every loss function of torch that runs inside, in the first batches.

        So lambdas, functions of one's own and whole steps are seen too.

        Args:
            outputs: the model's outputs, if they are known: their difference to ``targets``, as in
                a loss written by hand, is looked at too.
            targets: the batch's targets.
        """
        if not self.on or self._batches >= CHECKED_BATCHES:
            yield
            return
        self._batches += 1
        with _Watch(self._model, self._tell, outputs, targets):
            yield
        self._remove_hooks()

    def after_backward(self) -> None:
        """Look for parameters without a gradient, in the first backward passes."""
        if not self.on or self._backwards >= CHECKED_BACKWARDS:
            return
        if self._model is None or self._optimizer is None:
            return
        self._backwards += 1
        now = without_gradient(self._model, self._optimizer)
        self._without = now if self._without is None else self._without & now
        # Among several processes the next step of one that misses gradients fails.
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        if several or not self._without or self._backwards == CHECKED_BACKWARDS:
            self._tell_without_gradient()

    def _tell_without_gradient(self) -> None:
        steps, self._backwards = self._backwards, CHECKED_BACKWARDS
        if self._model is not None and self._without:
            self._tell(check_without_gradient(self._without, self._model, steps))
        self._without = None

    def check_loss(self, loss_value: float, *, step: int, inputs: Any, loader: Any) -> None:
        """Find where a loss that is not finite comes from.

        Args:
            loss_value: the loss as a number.
            step: the step it belongs to, for the text.
            inputs: what the model was given in that step.
            loader: where the batch came from.

        Raises:
            TrainingError: it is not finite.
        """
        if not self.on or math.isfinite(loss_value):
            return
        source = describe_source(self._model, inputs, loader, self._forward)
        text = f"the loss is {name_of(loss_value)} at step {step:,}. {source}"
        self._tell(Finding("loss", text, is_error=not self._scaled))

    def check_gradients(self, norm: float, *, step: int | None = None) -> None:
        """Find the parameters whose gradients are not finite.

        Raises:
            TrainingError: the norm is not finite, and gradients are not scaled.
        """
        if not self.on or self._scaled or math.isfinite(norm):
            return
        names = [] if self._model is None else nonfinite_gradients(self._model)
        at = "" if step is None else f" at step {step:,}"
        text = (
            f"the gradient's norm is {name_of(norm)}{at}, and the loss is finite: the backward "
            f"pass makes it, in {listing(names) if names else 'the sum over all parameters'}. Look "
            f"for sqrt, norm, log, a division or a power at 0: torch.autograd.set_detect_anomaly"
            f"(True) names the operation."
        )
        self._tell(Finding("gradient", text, is_error=True))

    def after_epoch(self, loader: Any, seconds: float) -> None:
        """Check how long an epoch of ``seconds`` waited for its batches."""
        if not self.on:
            return
        self._tell_without_gradient()
        waited = waited_s(loader)
        if waited is not None and self._waited is not None:
            self._tell(check_waiting(loader, waited - self._waited, seconds))
        self._waited = waited

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


class _Watch(TorchFunctionMode):
    """Sees the calls of torch's loss functions, and of a difference of outputs and targets."""

    def __init__(
        self,
        model: nn.Module | None,
        tell_of: Callable[[Finding | None], None],
        outputs: Any,
        targets: Any,
    ) -> None:
        super().__init__()
        self._model, self._tell_of = model, tell_of
        self._pair = (outputs, targets)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        if func in NAMES:
            pair = dict(zip(("input", "target"), args, strict=False)) | options
            found = check_loss_call(func, pair["input"], pair["target"], options, self._model)
            self._tell_of(found)
        elif getattr(func, "__name__", "") in ("sub", "rsub", "__rsub__", "subtract"):
            self._look_at_difference(args)
        return func(*args, **options)

    def _look_at_difference(self, args: tuple[Any, ...]) -> None:
        outputs, targets = self._pair
        if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)) or len(args) < 2:
            return
        if {id(args[0]), id(args[1])} == {id(outputs), id(targets)}:
            found = check_shapes("MSELoss", outputs, targets)
            if found is not None:
                self._tell_of(
                    Finding(found.kind, found.text.replace("MSELoss", "outputs - targets"))
                )
