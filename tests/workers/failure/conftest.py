"""Every test here leaves nothing behind: no process, no descriptor, no shared memory."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from workers.failure.processes import Footprint, descendants_of, is_running

TESTS = Path(__file__).parents[2]
WARNINGS = ["-W", "error", "-W", "ignore:This DataLoader will create:UserWarning"]
_IMPORTS = """
import gc, json, os, signal, sys, threading, time
import torch
import headrace
from workers.failure import user_code
from workers.failure.processes import *
from workers.failure.user_code import *

def say(**what):
    # not print(): a signal's handler may say something while another say() writes
    os.write(1, (json.dumps(what) + os.linesep).encode())
"""


class Program:
    """A program of a user, in a process (and a process group) of its own."""

    def __init__(self, zygote: socket.socket, code: str) -> None:
        self._zygote = zygote
        self._out, out = os.pipe()
        self._stream = os.fdopen(self._out)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed at the end
        with open(os.devnull) as nothing:
            request = json.dumps({"run": _IMPORTS + textwrap.dedent(code)}).encode()
            streams = [nothing.fileno(), out, self._errors.fileno()]
            socket.send_fds(zygote, [request], streams)
            self.pid = int(zygote.recv(64))
        os.close(out)
        self._pidfd = os.pidfd_open(self.pid)
        self._family = {self.pid}
        self.exit_code: int | None = None

    def hear(self, within_s: float = 20.0) -> dict[str, Any]:
        """Return what the program says next."""
        ready = select.select([self._stream], [], [], within_s)[0]
        line = self._stream.readline() if ready else ""
        assert line, f"the program says nothing; stderr: {self.errors()}"
        said: dict[str, Any] = json.loads(line)
        return said

    def family(self) -> set[int]:
        """The processes that it has started, at this moment."""
        found = descendants_of(self.pid)
        self._family |= found
        return found

    def signal(self, number: int) -> None:
        signal.pidfd_send_signal(self._pidfd, number)

    def interrupt(self) -> None:
        """What a terminal does at Ctrl-C."""
        os.killpg(self.pid, signal.SIGINT)

    def wait(self, within_s: float = 20.0) -> int:
        """Wait for its end; return its exit code."""
        if self.exit_code is None:
            ended = select.select([self._pidfd], [], [], within_s)[0]
            assert ended, f"the program did not end within {within_s} s; stderr: {self.errors()}"
            self._zygote.send(json.dumps({"reap": self.pid}).encode())
            self.exit_code = int(self._zygote.recv(64))
        return self.exit_code

    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode()

    def end(self) -> None:
        self.family()
        for pid in self._family:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
        self.wait()
        self._stream.close()
        self._errors.close()
        os.close(self._pidfd)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # torch's own warning, which comes on any machine with few cores
    few_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(few_cores)


@pytest.fixture(scope="session")
def zygote() -> Iterator[socket.socket]:
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, *WARNINGS, str(Path(__file__).with_name("zygote.py"))]
    process = subprocess.Popen(
        [*command, str(its.fileno())],
        pass_fds=[its.fileno()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    )
    its.close()
    yield mine
    mine.close()
    process.wait(20)


@pytest.fixture
def program(zygote: socket.socket) -> Iterator[Callable[[str], Program]]:
    """Run a program of a user: a string, with ``user_code`` and ``say`` at hand."""
    started = []

    def start(code: str) -> Program:
        started.append(Program(zygote, code))
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = Footprint()
    yield
    Footprint().assert_no_more_than(before)
