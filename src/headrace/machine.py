"""What this process may use: cores and memory within the limits of its container, devices."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from headrace.errors import OptionError

_ROOT = Path("/")
_UNLIMITED = sys.maxsize


def available_cores() -> float:
    """Return the cores that this process may keep busy: 1.5 of them with a quota of 150 %.

    It is the smallest of the cores it is bound to and the CPU quotas of its control groups (both
    versions).
    """
    bound: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    bound = bound or os.cpu_count() or 1
    return min([bound, *_quotas()])


def available_memory_bytes() -> int:
    """Return the bytes of memory that this process could still take before it is killed.

    It is the smallest of what the machine has left and what is left of the limits of its control
    groups (both versions), file caches that the kernel would give up not counted as taken. Where
    the system does not say, it is the memory of the machine.
    """
    # MemAvailable is in kB; macOS has no /proc, Windows no sysconf either.
    free = _fields(_ROOT / "proc/meminfo").get("MemAvailable:", 0) * 1024
    if not free and hasattr(os, "sysconf"):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min([free or _UNLIMITED, *_memory_left()]))


def second_level_cache_bytes() -> int:
    """Return the size of a core's second-level cache; 0 where the system does not say."""
    for cache in sorted((_ROOT / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        size = _text(cache / "size").strip()
        if _text(cache / "level").strip() == "2" and size[:-1].isdigit():
            return int(size[:-1]) << {"K": 10, "M": 20}.get(size[-1], 0)
    return 0


def is_out_of_files(error: OSError) -> bool:
    """Say whether an error means that this process, or this machine, can open no more files."""
    return error.errno in (errno.EMFILE, errno.ENFILE)


def open_files_limit() -> int:
    """Return how many descriptors this process may hold at once."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 512
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _UNLIMITED if limit == resource.RLIM_INFINITY else limit


def device_here(device: str | int | torch.device, function: str) -> torch.device:
    """Return a device that torch finds on this machine.

    Args:
        device: what was given to ``function`` as its ``device=``.
        function: its name, for the message.

    Raises:
        OptionError: there is no such device here.
    """
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(
            f"device={device!r} is no device: {reason}. Write {function}(..., device='cpu'), "
            f"'cuda' or 'cuda:1'."
        ) from None
    if target.type in ("cpu", "meta"):
        return target
    try:
        count = torch.get_device_module(target).device_count()
    except (RuntimeError, AttributeError):
        count = 0
    kind = target.type
    if count == 0:
        raise OptionError(
            f"device={str(device)!r} is not here: torch sees no {kind} device on this machine. "
            f"Write {function}(..., device='cpu'), or leave device= out."
        )
    if target.index is not None and target.index >= count:
        last = "" if count == 1 else f" to {kind}:{count - 1}"
        raise OptionError(
            f"device={str(device)!r} is not here: torch sees {kind}:0{last}. "
            f"Write {function}(..., device='{kind}:0')."
        )
    return target


def _quotas() -> Iterator[float]:
    for group in _groups("cpu"):
        quota, _, period = _text(group / "cpu.max").partition(" ")  # "max 100000" is no limit
        if not quota:
            quota = _text(group / "cpu.cfs_quota_us")  # -1 is no limit
            period = _text(group / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            yield max(int(quota), 1) / max(int(period), 1)


def _memory_left() -> Iterator[int]:
    for group in _groups("memory"):
        for limit_name, used_name, cache_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _text(group / limit_name), _text(group / used_name)
            if limit.isdigit() and used.isdigit():
                cache = _fields(group / "memory.stat").get(cache_name, 0)
                yield int(limit) - max(0, int(used) - cache)


def _groups(controller: str) -> Iterator[Path]:
    """Yield the directories of this process's control groups, the limits of all of which hold."""
    mount = _ROOT / "sys/fs/cgroup"
    for line in _text(_ROOT / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            top = mount
        elif controller in controllers.split(","):
            top = mount / controller
        else:
            continue
        # In a container the path may be the host's, which is not there: its own is the top.
        group = top / path.lstrip("/")
        while group != top:
            yield group
            group = group.parent
        yield top


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _fields(path: Path) -> dict[str, int]:
    words = [line.split() for line in _text(path).splitlines()]
    return {w[0]: int(w[1]) for w in words if len(w) > 1 and w[1].isdigit()}
