"""Forks of this process that say where they are, and wait until they are told to go on."""

import os
import select
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress


class Forked:
    """A function in a process of its own; it is given ``say(text)`` and ``wait()``."""

    def __init__(self, function: Callable[["Forked"], object]) -> None:
        here, out = os.pipe()
        inlet, there = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(here)
            os.close(there)
            self._out, self._in = out, inlet
            code = 1
            try:
                function(self)
                code = 0
            except BaseException as error:
                self.say(f"{type(error).__name__}: {error}".replace("\n", " "))
                with suppress(OSError):
                    traceback.print_exc()
            finally:
                os._exit(code)
        os.close(out)
        os.close(inlet)
        self._in, self._out = here, there
        self._said = os.fdopen(here)
        self.exit_code: int | None = None

    def say(self, text: str) -> None:
        os.write(self._out, f"{text}\n".encode())

    def wait(self) -> None:
        """In the process: until the other side says so, or is gone."""
        os.read(self._in, 1)

    def heard(self) -> str:
        """The next line that it says; empty at its end."""
        assert select.select([self._in], [], [], 60)[0], "it says nothing"
        return self._said.readline().strip()

    def go_on(self) -> None:
        os.write(self._out, b"!")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> int:
        """Wait for its end, and return its exit code."""
        if self.exit_code is None:
            self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self._said.close()
            os.close(self._out)
        return self.exit_code
