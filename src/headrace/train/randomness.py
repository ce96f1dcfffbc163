"""The random states of a process and of a loader, taken and put back: torch, NumPy, ``random``."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_states(device: torch.device) -> dict[str, Any]:
    """Return the states of torch's generators (CPU and ``device``), NumPy's and Python's."""
    version, words, gauss = random.getstate()
    states = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(legacy=False),
        "python": {"version": version, "words": np.array(words, np.int64), "gauss": gauss},
    }
    if device.type != "cpu":
        states["device"] = torch.get_device_module(device).get_rng_state()
    return states


def set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Put them back."""
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["numpy"])
    python = states["python"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    if device.type != "cpu" and "device" in states:
        torch.get_device_module(device).set_rng_state(states["device"])


def loader_generators(loader: Any) -> list[torch.Generator]:
    """Return the generators of its own that a loader, or one of its samplers, draws from."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    inner = getattr(batch_sampler, "sampler", None)
    holders = (loader, getattr(loader, "sampler", None), batch_sampler, inner)
    found = [getattr(holder, "generator", None) for holder in holders]
    return list(dict.fromkeys(g for g in found if isinstance(g, torch.Generator)))
