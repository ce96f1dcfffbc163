"""BatchNorm: which modules of a model normalise over the batch while it trains."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def training_batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return the BatchNorm modules, by name, that use the batch's own statistics in training.

    A model may keep some of them in evaluation mode (frozen ones, through its own ``train()``), so
    it is asked: put into training mode, looked at, and put back.
    """
    norms: dict[str, nn.Module] = {
        name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)
    }
    if not norms:
        return {}
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    found = {name: module for name, module in norms.items() if module.training}
    for module, mode in modes:
        module.training = mode
    return found
