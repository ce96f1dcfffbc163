"""The optimizer against the model: parameters that it does not hold, or that get no gradient."""

from __future__ import annotations

import gc
from typing import Any

from torch import nn
from torch.optim import Optimizer

from headrace.train.guards.finding import Finding, listing


def held_by(optimizer: Optimizer) -> set[int]:
    """Return the identities of an optimizer's parameters."""
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def check_optimizer(model: nn.Module, loss_fn: Any, optimizer: Optimizer) -> Finding | None:
    """Return whether an optimizer misses trainable parameters of the model, or of the loss."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if isinstance(loss_fn, nn.Module):
        of_loss = loss_fn.named_parameters("loss_fn")
        trainable |= {name: p for name, p in of_loss if p.requires_grad}
    held = held_by(optimizer)
    missing = [name for name, p in trainable.items() if id(p) not in held]
    if not missing:
        return None
    kind = type(optimizer).__name__
    if not held & {id(p) for p in [*model.parameters(), *trainable.values()]}:
        return Finding(
            "optimizer",
            f"the optimizer ({kind}) holds none of the model's {len(trainable)} trainable "
            f"parameters, so that nothing would be learnt: was the model made, replaced or copied "
            f"after the optimizer? Write optimizer = torch.optim.{kind}(model.parameters(), ...) "
            f"behind the last line that changes the model.",
            is_error=True,
        )
    elsewhere = _held_elsewhere(optimizer)
    missing = [name for name in missing if id(trainable[name]) not in elsewhere]
    if not missing:
        return None
    return Finding(
        "optimizer",
        f"{len(missing)} of {len(trainable)} trainable parameters are in no optimizer "
        f"and would not be learnt: {listing(missing)}. Write torch.optim.{kind}"
        f"(model.parameters(), ...), or, if that is meant, parameter.requires_grad_(False) for "
        f"each of them, which also saves their gradients.",
    )


def _held_elsewhere(optimizer: Optimizer) -> set[int]:
    """Return what the other optimizers of the program hold: GANs and the like have several."""
    found: set[int] = set()
    for thing in gc.get_objects():
        if issubclass(type(thing), Optimizer) and thing is not optimizer:
            found |= held_by(thing)
    return found


def without_gradient(model: nn.Module, optimizer: Optimizer) -> set[str]:
    """Return the trainable parameters in the optimizer that have no gradient now."""
    held = held_by(optimizer)
    return {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and p.grad is None and id(p) in held
    }


def check_without_gradient(names: set[str], model: nn.Module, steps: int) -> Finding | None:
    """Return the finding for parameters that had no gradient in any of the first steps."""
    if not names:
        return None
    ordered = [name for name, _ in model.named_parameters() if name in names]
    when = "the first step" if steps == 1 else f"each of the first {steps} steps"
    return Finding(
        "gradients",
        f"{len(ordered)} trainable parameters got no gradient in {when}: {listing(ordered)}. "
        f"The loss does not depend on them: look for a layer that forward() does not use, for "
        f"detach(), .data, .item(), numpy() or torch.no_grad() on the way. If that is meant, write "
        f"parameter.requires_grad_(False) for each of them.",
    )


def nonfinite_gradients(model: nn.Module) -> list[str]:
    """Return the parameters whose gradients are not finite."""
    return [
        name
        for name, p in model.named_parameters()
        if p.grad is not None and not bool(_values(p.grad).isfinite().all())
    ]


def check_nonfinite_gradients(names: list[str], step: int) -> Finding | None:
    """Return the finding for parameters whose gradients are not finite."""
    if not names:
        return None
    return Finding(
        "gradient",
        f"the gradient is not finite at step {step:,}, though the loss is: the backward pass makes "
        f"it, in {listing(names)}. Look for sqrt, norm, log, a division or a power at 0, and write "
        f".clamp(min=1e-8) before it: torch.autograd.set_detect_anomaly(True) names the operation.",
        is_error=True,
    )


def nonfinite_parameters(model: nn.Module) -> list[str]:
    """Return the parameters that are not finite."""
    return [n for n, p in model.named_parameters() if not bool(p.detach().isfinite().all())]


def _values(gradient: Any) -> Any:
    return gradient.coalesce().values() if gradient.is_sparse else gradient
