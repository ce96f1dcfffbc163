"""SIGTERM as a request to save and leave, for as long as a ``with`` block lasts."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

EXIT_CODE = 128 + signal.SIGTERM  # what a shell reports of a program that the signal ended


class Sigterm:
    """Notes that SIGTERM came; the handler that was there before is put back at the end.

    Only the main thread may set a handler: in any other one nothing is noted.

    Args:
        active: False to leave the signal alone.
    """

    def __init__(self, active: bool) -> None:
        self.came = False
        self._active = active and threading.current_thread() is threading.main_thread()
        self._pid = os.getpid()
        self._before: Any = signal.SIG_DFL

    def __enter__(self) -> Self:
        if self._active:
            self._before = signal.signal(signal.SIGTERM, self._note) or signal.SIG_DFL
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._active:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a worker that was forked meanwhile: it ends as before
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.came = True
