"""What is known of a worker that died or is stuck: exit, signal, memory, stack."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

from headrace.engine.backends.worker import STACK_SIGNAL

_STACK_WAIT_S = 0.3


def how_it_died(process: Any) -> str:
    """Reap a process that has ended and say how, with the memory figures that may explain it."""
    code = how_it_ended(process)
    if code is None:
        how = f"worker pid {process.pid} is gone"
    elif code >= 0:
        how = f"worker pid {process.pid} left with exit code {code}"
    else:
        how = f"worker pid {process.pid} is killed by signal: {_signal_name(-code)}"
        if -code == signal.SIGKILL:
            how += " (by the kernel when memory runs out, or by somebody)"
        elif -code in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT):
            how += " (a crash in compiled code that the dataset calls)"
    return f"{how}; {memory_figures()}"


def how_it_ended(process: Any) -> int | None:
    """Reap a process that has ended, or is about to; return its exit code."""
    process.join()
    code: int | None = process.exitcode
    return code


def _signal_name(number: int) -> str:
    try:
        return f"{signal.strsignal(number)} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def memory_figures() -> str:
    """Return the memory of this machine and this container in one line."""
    mega = 1 << 20
    figures = []
    meminfo = _pairs("/proc/meminfo")
    if "MemAvailable" in meminfo:
        figures.append(
            f"{meminfo['MemAvailable'] // 1024:,} of {meminfo['MemTotal'] // 1024:,} MiB of memory "
            f"are free now"
        )
    limit, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    if limit is not None and used is not None:
        figures.append(f"the container uses {used // mega:,} of its {limit // mega:,} MiB")
    kills = _pairs("/sys/fs/cgroup/memory.events").get("oom_kill", 0)
    if kills:
        figures.append(f"the kernel has killed {kills} of its processes for memory")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    figures.append(f"the largest worker so far had {peak:,} MiB")
    return ", ".join(figures)


def _pairs(path: str) -> dict[str, int]:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return {}
    words = [line.replace(":", "").split() for line in lines]
    return {w[0]: int(w[1]) for w in words if len(w) > 1 and w[1].isdigit()}


def _number(path: str) -> int | None:
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def stack_of(pid: int, stack_file: int) -> str:
    """Return where the Python code of a worker stands, as faulthandler writes it."""
    state = _state(pid)
    if state in ("T", "t"):
        return f"pid {pid} is stopped (SIGSTOP or a debugger); `kill -CONT {pid}` lets it go on."
    if state is None:
        return f"pid {pid} is gone."
    if stack_file < 0 or not _catches(pid, STACK_SIGNAL):
        return f"pid {pid} (state {state}), which is still starting, or leaves no way to ask it."
    start = os.fstat(stack_file).st_size
    try:
        os.kill(pid, STACK_SIGNAL)
    except ProcessLookupError:
        return f"pid {pid} is gone."
    deadline = time.monotonic() + _STACK_WAIT_S
    size = start
    while time.monotonic() < deadline:
        before, size = size, os.fstat(stack_file).st_size
        if size > start and size == before:
            break
        time.sleep(0.005)
    stack = _users_part(os.pread(stack_file, 1 << 16, start).decode(errors="replace"))
    if not stack:
        return f"pid {pid} (state {state}), which does not answer."
    return f"pid {pid} (state {state}) stands here, innermost first:\n{stack}"


def _users_part(stack: str) -> str:
    """Leave out the frames under the fetch: they are the same for every worker."""
    lines = stack.strip().splitlines()
    ends = [n for n, line in enumerate(lines) if line.endswith(" in _make")]
    return "\n".join(lines[: ends[0]] if ends else lines)


def _catches(pid: int, number: int) -> bool:
    """Say whether a process has a handler for a signal, which would end it otherwise."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    caught = [line.split()[1] for line in lines if line.startswith("SigCgt:")]
    return bool(caught) and bool(int(caught[0], 16) >> (number - 1) & 1)


def _state(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None
