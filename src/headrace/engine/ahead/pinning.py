"""Page-locked memory: for which accelerator, and the leases that are locked for copies to it.

``pin_memory=True`` copies batches to torch's own page-locked memory, because the *user* copies from
there: torch's allocator keeps it back until copies on any stream are done. Only copies that
headrace issues itself (``device=``) read leases, which are locked where they are.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

from headrace.engine.lease import memory_at
from headrace.machine import device_here
from headrace.notices import warn_user

_PORTABLE = 1  # cudaHostRegisterPortable: locked for all devices


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


def target_device(device: str | int | torch.device | None) -> torch.device | None:
    """Return the device that batches should arrive on, None where that is the CPU.

    Raises:
        OptionError: there is no such device here.
    """
    if device is None:
        return None
    target = device_here(device, "DataLoader")
    return None if target.type == "cpu" else target


class CudaPages:
    """Page-locks the leases that tensors lie in, so that a copy of them need not wait.

    Args:
        cudart: the CUDA runtime, ``torch.cuda.cudart()``.
    """

    def __init__(self, cudart: Any) -> None:
        self._cudart = cudart
        self._may_lock = True

    def lock_under(self, tensor: torch.Tensor) -> bool:
        """Page-lock the lease that a CPU tensor lies in; False where it lies in none."""
        if not self._may_lock:
            return False
        memory = memory_at(tensor.data_ptr())
        return memory is not None and memory.lock_pages(self._lock, self._cudart.cudaHostUnregister)

    def _lock(self, address: int, size_bytes: int) -> bool:
        if int(self._cudart.cudaHostRegister(address, size_bytes, _PORTABLE)) == 0:
            return True
        # No more memory may be locked here, or none at all: from now on batches go through torch's
        # page-locked memory. CUDA keeps the error for whatever is launched next; be that one.
        self._may_lock = False
        with suppress(RuntimeError):
            torch.zeros(1, device="cuda")
        return False
