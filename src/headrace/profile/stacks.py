"""Where threads are while they make a batch: their stacks, looked at a hundred times a second.

Stacks that go through no seam (see :mod:`headrace.profile.seams`) are not ours to look at. How much
of the time between two looks a thread has used a core says its clock, so that waiting for a file
is told from work.
"""

from __future__ import annotations

import ast
import linecache
import sys
import threading
import time
from dataclasses import dataclass
from itertools import islice
from types import CodeType, FrameType
from typing import Any

from headrace.profile.log import Log

INTERVAL_S = 0.01
# How long it waits for a thread that runs Python to let it look. With Python's 5 ms it would look
# where threads sleep, as they let it in there at once.
_SWITCH_S = 0.0003
_DEPTH = 40
_FLUSH_EVERY_S = 0.5


class Sampler:
    """Looks at the stacks of this process's threads until it is stopped."""

    def __init__(self, log: Log, seams: dict[CodeType, str], usage: Any = None) -> None:
        self._log = log
        self._seams = seams
        self._usage = usage
        self._stop = threading.Event()
        self._cpu: dict[int, tuple[float, float]] = {}
        self._counts: dict[tuple[str, ...], list[float]] = {}
        self._shown: dict[tuple[CodeType, int], str] = {}
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(min(self._switch_s, _SWITCH_S))
        self._thread = threading.Thread(target=self._run, name="headrace-profile", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, and write down what was seen."""
        self._stop.set()
        sys.setswitchinterval(self._switch_s)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(1)

    def _run(self) -> None:
        own, last = threading.get_ident(), time.perf_counter()
        next_flush = last + 0.1
        while not self._stop.wait(INTERVAL_S):
            now = time.perf_counter()
            for ident, frame in sys._current_frames().items():
                if ident != own:
                    self._look(ident, frame, now, now - last)
            last = now
            if now >= next_flush:
                self._flush()
                next_flush = now + _FLUSH_EVERY_S
        self._flush()

    def _look(self, ident: int, frame: FrameType, now: float, passed: float) -> None:
        stack, seam = self._stack(frame)
        if seam is None:
            self._cpu.pop(ident, None)
            return
        cpu = _cpu_clock(ident)
        before = self._cpu.get(ident)
        self._cpu[ident] = cpu, now
        if before is not None:
            passed = now - before[1]
        ran = min(max(cpu - before[0], 0.0), passed) if before is not None else passed
        count = self._counts.setdefault((self._log.loader or "", seam, *stack), [0, 0.0, 0.0])
        count[0] += 1
        count[1] += passed
        count[2] += ran

    def _stack(self, frame: FrameType | None) -> tuple[list[str], str | None]:
        """Return a stack from its innermost seam inwards, and the seam's name."""
        frames: list[str] = []
        while frame is not None:
            code = frame.f_code
            seam = self._seams.get(code)
            if seam is not None:
                return frames[: -_DEPTH - 1 : -1], seam
            key = code, frame.f_lasti
            shown = self._shown.get(key)
            if shown is None:
                shown = self._shown[key] = Frame.of(frame).written()
            frames.append(shown)
            frame = frame.f_back
        return frames, None

    def _flush(self) -> None:
        counts, self._counts = self._counts, {}
        rows = self._log.rows("stacks")
        for (loader, seam, *stack), (number, wall_s, cpu_s) in counts.items():
            rows.append([loader, seam, stack, number, round(wall_s, 5), round(cpu_s, 5)])
        if self._usage is not None:
            self._usage(time.thread_time())
        self._log.flush()


@dataclass(frozen=True)
class Frame:
    """Where a function is, and what it calls there ("Image.open"), where that can be told."""

    file: str
    line: int
    function: str
    calls: str

    @classmethod
    def of(cls, frame: FrameType) -> Frame:
        """Return it for a frame that runs."""
        code, line = frame.f_code, frame.f_lineno or 0
        try:
            calls = _callee(code, frame.f_lasti)
        except Exception:  # no source, or not as it was: the line is enough
            calls = ""
        return cls(code.co_filename, line, code.co_name, calls)

    def written(self) -> str:
        """Return it as text, for :meth:`read`."""
        return "\t".join((self.file, str(self.line), self.function, self.calls))

    @classmethod
    def read(cls, text: str) -> Frame:
        """Return what was written."""
        file, line, function, calls = text.split("\t")
        return cls(file, int(line), function, calls)


def _callee(code: CodeType, instruction: int) -> str:
    """Return the name of what an instruction calls, from the source of its expression."""
    position = next(islice(code.co_positions(), instruction // 2, None))
    first, last, begin, end = position
    if first is None or last is None or begin is None or end is None:
        return ""
    text = [linecache.getline(code.co_filename, line) for line in range(first, last + 1)]
    whole = [line.encode() for line in text]  # columns are of bytes
    whole[-1] = whole[-1][:end]
    whole[0] = whole[0][begin:]
    node = ast.parse(b"".join(whole).strip(), mode="eval").body
    return _dotted(node.func) if isinstance(node, ast.Call) else ""


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return ""


def _cpu_clock(ident: int) -> float:
    """Return the seconds that a thread has used of a core."""
    try:
        return time.clock_gettime(time.pthread_getcpuclockid(ident))
    except (AttributeError, OSError):  # another system; or the thread has just ended
        return 0.0
