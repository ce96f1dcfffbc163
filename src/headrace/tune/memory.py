"""The memory that a piece of work takes at its peak, on a device or in this process."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import torch

from headrace.machine import available_memory_bytes

_KIBI = 1024


class PeakMemory:
    """Measures the most memory that is taken at a time, over what is taken now.

    On a CUDA device it is what torch has allocated; its peak counter is set back to zero. On the
    CPU it is this process's resident memory; where the system cannot set its peak back (all but
    Linux), the figure is too large when more was taken before.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0
        if device.type == "cuda":
            self._before = torch.cuda.memory_allocated(device)
        elif device.type == "cpu":
            self._before = _resident_bytes()

    def begin(self) -> None:
        """Forget the peaks before."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._device.type == "cpu":
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM = VmRSS
            # What others let go of meanwhile must not hide what the work takes.
            self._before = min(self._before, _resident_bytes())

    def taken_bytes(self, at_least: int | None = None) -> int | None:
        """Return the peak since ``begin``, or ``at_least``; None on devices that do not tell."""
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
        elif self._device.type == "cpu":
            peak = _peak_bytes()
        else:
            return None
        return max(peak - self._before, at_least or 0)


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that work could still take; None on devices that do not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    return available_memory_bytes() if device.type == "cpu" else None


def _resident_bytes() -> int:
    return _status("VmRSS:") or _peak_bytes()


def _peak_bytes() -> int:
    kilobytes = _status("VmHWM:")
    if kilobytes is not None:
        return kilobytes
    import resource  # not on Windows, where nothing else tells either

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * _KIBI


def _status(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = [line.split()[1] for line in lines.splitlines() if line.startswith(name)]
    return int(found[0]) * _KIBI if found else None
