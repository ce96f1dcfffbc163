"""Which accelerator batches are copied to page-locked memory for."""

from __future__ import annotations

import torch

from headrace.notices import warn_user


def pin_device(pin_memory: bool, device: str) -> str | None:
    """Return the accelerator that ``pin_memory`` is for, with torch's warnings if it is none."""
    if not pin_memory:
        return None
    if device:
        warn_user(
            f"pin_memory_device is deprecated, the current accelerator will be used as the device,"
            f"ignore pin_memory_device='{device}'.",
        )
    accelerator = torch.accelerator.current_accelerator() if _has_accelerator() else None
    if accelerator is None or accelerator.type == "mps":
        what = "supported on MPS now" if accelerator is not None else None
        warn_user(
            "'pin_memory' argument is set as true but "
            + (f"not {what}, " if what else "no accelerator is found, then ")
            + "device pinned memory won't be used.",
        )
        return None
    return accelerator.type


def _has_accelerator() -> bool:
    return bool(torch.accelerator.is_available())
