"""The names of a model's parameters: its own, also where parts of it are compiled.

``torch.compile(module)`` wraps a module, and puts ``_orig_mod.`` before the names of what is in
it. A checkpoint has the names of the model itself, for the same model compiled or not, and for any
other program.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

_WRAPPED = re.compile(r"(?:^|(?<=\.))_orig_mod\.")


def own_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict under the names that the module has when nothing of it is compiled."""
    return {_WRAPPED.sub("", name): value for name, value in state.items()}


def names_for(module: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict under the names that a module has now."""
    now = {_WRAPPED.sub("", name): name for name in module.state_dict()}
    return {now.get(_WRAPPED.sub("", name), name): value for name, value in state.items()}
