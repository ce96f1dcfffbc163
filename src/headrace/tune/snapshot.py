"""A model, an optimizer and the random state as they were: taken, and put back bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from headrace.train.randomness import random_states, set_random_states


class Snapshot:
    """What training steps change, kept in the host's memory.

    Parameters, their gradients, buffers, the mode of each module, the optimizer's state and
    settings, the generators of torch, NumPy and ``random``, and whatever else has ``state_dict()``.
    The tensors that were there are the tensors that are there again.
    """

    def __init__(
        self,
        model: nn.Module | None,
        optimizer: torch.optim.Optimizer | None,
        others: Iterable[Any],
        device: torch.device,
    ) -> None:
        self._device = device
        self._optimizer = optimizer
        self._modules = [] if model is None else [(m, m.training) for m in model.modules()]
        self._buffers = [
            (module, name, buffer, _kept(buffer))
            for module, _ in self._modules
            for name, buffer in module._buffers.items()
        ]
        parameters = _parameters(model, optimizer)
        self._parameters = [(p, _kept(p), p.grad, _kept(p.grad)) for p in parameters]
        self._groups: list[dict[str, Any]] = []
        self._state: list[tuple[Any, dict[str, tuple[Any, Any]]]] = []
        if optimizer is not None:
            self._groups = [_settings(group) for group in optimizer.param_groups]
            self._state = [
                (key, {name: (value, _kept(value)) for name, value in state.items()})
                for key, state in optimizer.state.items()
            ]
        self._others = [(other, copy.deepcopy(other.state_dict())) for other in others]
        self._random = random_states(device)

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        for module, training in self._modules:
            module.training = training
        for module, name, buffer, value in self._buffers:
            module._buffers[name] = _put_back(buffer, value)
        for parameter, value, grad, grad_value in self._parameters:
            _put_back(parameter, value)
            parameter.grad = _put_back(grad, grad_value)
        if self._optimizer is not None:
            self._restore_optimizer(self._optimizer)
        for other, state in self._others:
            other.load_state_dict(copy.deepcopy(state))
        set_random_states(self._random, self._device)

    def _restore_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        for group, settings in zip(optimizer.param_groups, self._groups, strict=True):
            for name, (value, kept) in settings.items():
                group[name] = _put_back(value, kept)
        optimizer.state.clear()  # and what did not exist before is gone
        for key, state in self._state:
            optimizer.state[key] = {n: _put_back(value, kept) for n, (value, kept) in state.items()}


def _parameters(model: nn.Module | None, optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    found = [] if model is None else list(model.parameters())
    groups = [] if optimizer is None else optimizer.param_groups
    found += [parameter for group in groups for parameter in group["params"]]
    return list({id(parameter): parameter for parameter in found}.values())


def _settings(group: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (value, _kept(value)) for name, value in group.items() if name != "params"}


def _kept(value: Any) -> Any:
    if isinstance(value, Tensor):
        # On the host: what is kept must not take the device's memory from what is measured.
        return value.detach().to("cpu", copy=True)
    return copy.deepcopy(value)


def _put_back(value: Any, kept: Any) -> Any:
    """Return the object that was there, with the value that it had."""
    if isinstance(value, Tensor):
        value.detach().copy_(kept)
        return value
    return copy.deepcopy(kept)
