"""Processes as the kernel sees them, and bounded waits for what they do."""

import gc
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

# SEMANTICS grants one second, and `headrace bench workers` measures it. On a machine that others
# use a process may wait longer than that for a core: here the end must come, and well before the
# 5 s a worker that torch.utils.data waits.
SOON = 4.0


def wait_until(condition: Callable[[], object], what: str, within_s: float = 20.0) -> float:
    """Wait for a condition; return how long it took."""
    started = time.monotonic()
    while not condition():
        waited = time.monotonic() - started
        assert waited < within_s, f"not within {within_s} s: {what}"
        time.sleep(0.002)
    return time.monotonic() - started


def state_of(pid: int) -> str:
    """The kernel's letter for what a process does; "" when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_running(pid: int) -> bool:
    """A zombie has ended: it only waits to be asked for its exit code."""
    return state_of(pid) not in ("", "Z", "X")


def children_of(pid: int) -> set[int]:
    found: set[int] = set()
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        try:
            found |= {int(word) for word in (thread / "children").read_text().split()}
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def descendants_of(pid: int) -> set[int]:
    found = children_of(pid)
    for child in list(found):
        found |= descendants_of(child)
    return found


def wait_until_gone(pids: Iterable[int], within_s: float = SOON) -> float:
    pids = list(pids)
    return wait_until(
        lambda: not any(is_running(pid) for pid in pids),
        f"processes {pids} end",
        within_s,
    )


def open_descriptors(pid: int | str = "self") -> dict[str, str]:
    """Where each descriptor of a process leads."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[entry.name] = os.readlink(entry)
        except FileNotFoundError:  # the one that lists
            continue
    return found


def shared_segments(pid: int | str = "self") -> int:
    """How many buffers of ours a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text().count("memfd:headrace")


class Footprint:
    """What a process holds that could be left behind."""

    def __init__(self) -> None:
        gc.collect()
        self.children = {pid for pid in children_of(os.getpid()) if is_running(pid)}
        self.zombies = children_of(os.getpid()) - self.children
        self.descriptors = open_descriptors()
        self.segments = shared_segments()

    def assert_no_more_than(self, before: "Footprint") -> None:
        assert self.children <= before.children, "a process is left"
        assert self.zombies <= before.zombies, "a process was not reaped"
        new = {n: to for n, to in self.descriptors.items() if before.descriptors.get(n) != to}
        gone = [to for n, to in before.descriptors.items() if n not in self.descriptors]
        assert len(self.descriptors) <= len(before.descriptors), f"left open: {new}, closed {gone}"
        assert self.segments <= before.segments, "shared memory is left"
