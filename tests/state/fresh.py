"""Calls that run in a process of their own: a fork of one that has imported headrace, no more."""

import contextlib
import os
import pickle
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

TESTS = Path(__file__).resolve().parents[1]


class Fresh:
    """Runs functions of importable modules, each call in a new process."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "state.fresh"],
            cwd=TESTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        _write(self._server.stdin, pickle.dumps((function, arguments)))
        worked, answer = pickle.loads(_read(self._server.stdout))
        if not worked:
            raise AssertionError(f"in a fresh process:\n{answer}")
        return answer

    def close(self) -> None:
        _write(self._server.stdin, pickle.dumps((None, ())))
        self._server.communicate()


def _write(pipe: BinaryIO, message: bytes) -> None:
    pipe.write(struct.pack("q", len(message)) + message)
    pipe.flush()


def _read(pipe: BinaryIO) -> bytes:
    header = pipe.read(8)
    if len(header) < 8:
        raise EOFError("the other side has left")
    return pipe.read(struct.unpack("q", header)[0])


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed is no answer
    while True:
        try:
            function, arguments = pickle.loads(_read(sys.stdin.buffer))
        except EOFError:
            return
        if function is None:
            return
        if pid := os.fork():
            os.waitpid(pid, 0)
            continue
        try:
            answer = (True, function(*arguments))
        except BaseException:
            answer = (False, traceback.format_exc())
        with contextlib.suppress(BrokenPipeError):
            _write(answers, pickle.dumps(answer))
        os._exit(0)


if __name__ == "__main__":
    import state.loaders  # noqa: F401 - so that no call has to

    _serve()
