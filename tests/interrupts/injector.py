"""Raises an exception at any line of the loader's machinery, in the user's thread."""

import linecache
import opcode
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import headrace

_HOME = Path(headrace.__file__).parent
_FILES = {str(_HOME / name) for name in ("iterator.py", "memory.py", "rng.py")}
_ENGINE = str(_HOME / "engine") + os.sep

Place = tuple[str, int, int]  # file, line (or instruction), and the how-manieth time


class Injector:
    """Counts the lines that a program reaches, or interrupts it at one of them.

    With ``each_instruction`` it is where Python itself looks for an interruption: as a function
    begins, behind each call, and at each jump back.
    """

    def __init__(self, at: Place | None = None, *, each_instruction: bool = False) -> None:
        self.reached: Counter[tuple[str, int]] = Counter()
        self.raised = False
        self.in_del = False  # it raised in a `__del__`, whose caller forgets it
        self._at = at
        self._event = "opcode" if each_instruction else "line"
        self._pid = os.getpid()
        self._known: dict[str, bool] = {}
        self._before: dict[int, str] = {}  # by frame: the instruction that it came from

    def run(self, program: Callable[[], Any]) -> Any:
        """Run a program under watch; what it raises passes through."""
        # Python 3.12 looks here whether instructions are traced, as tracing begins.
        sys._getframe().f_trace_opcodes = self._event == "opcode"
        sys.settrace(self._call)
        try:
            return program()
        finally:
            sys.settrace(None)

    def _may_raise(self, frame: FrameType) -> bool:
        if self._event == "opcode":
            return self._looks(frame)
        # There no interruption is ever taken up: between the last record and the return (it would
        # be one in the user's own line), between the body of a `with` and its end, at a `try`, an
        # instruction that does nothing, and between what a `finally` is for and its first line.
        file, line = frame.f_code.co_filename, frame.f_lineno
        text = linecache.getline(file, line).strip()
        if text in ("return batch", "try:") or text.startswith("with "):
            return False
        before = linecache.getline(file, line - 1).strip()
        if before == "try:":
            before = linecache.getline(file, line - 2).strip()
        return before != "finally:"

    def _looks(self, frame: FrameType) -> bool:
        before = self._before.get(id(frame), "")
        self._before[id(frame)] = opcode.opname[frame.f_code.co_code[frame.f_lasti]]
        return before.startswith("CALL") or before in ("RESUME", "JUMP_BACKWARD")

    def _is_ours(self, file: str) -> bool:
        if file not in self._known:
            self._known[file] = file in _FILES or file.startswith(_ENGINE)
        return self._known[file]

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        if self.raised or os.getpid() != self._pid:
            return None
        if not self._is_ours(frame.f_code.co_filename):
            return None
        frame.f_trace = self._line  # Python 3.13 traces instructions of frames that have one only
        frame.f_trace_opcodes = self._event == "opcode"
        self._before.pop(id(frame), None)
        return self._line

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if self.raised or os.getpid() != self._pid:
            return None
        if event == self._event:
            code = frame.f_code
            number = (
                frame.f_lineno if event == "line" else code.co_firstlineno * 10_000 + frame.f_lasti
            )
            here = (code.co_filename, number)
            if not self._may_raise(frame):
                return self._line
            self.reached[here] += 1
            if self._at == (*here, self.reached[here]):
                self.raised = True
                self.in_del = "__del__" in _functions(frame)
                raise KeyboardInterrupt
        return self._line


def _functions(frame: FrameType | None) -> Iterator[str]:
    while frame is not None:
        yield frame.f_code.co_name
        frame = frame.f_back


def describe(place: Place) -> str:
    """Return a place for people."""
    return f"{Path(place[0]).relative_to(_HOME)}:{place[1]} (time {place[2]})"
