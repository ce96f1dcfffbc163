"""Programs that train, each a fork of one process that has imported what they need."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
WARNINGS = ["-W", "error", "-W", "ignore:unclosed <socket:ResourceWarning"]
IMPORTED = (
    "headrace.train",
    "lightning_fabric",
    "torchmetrics",
    "safetensors.torch",
    "train.programs",
)


class Program:
    """A call of a function of ``train.programs`` in a process of its own.

    Args:
        zygote: the process that is forked.
        call: "function(arguments)".
        environ: variables that it sees on top.
    """

    def __init__(self, zygote: socket.socket, call: str, environ: dict[str, str]) -> None:
        self._zygote = zygote
        read, write = os.pipe()
        self.out = os.fdopen(read)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed at the end
        code = f"import os; os.environ.update({environ!r})\nfrom train.programs import *\n{call}"
        with open(os.devnull) as nothing:
            request = json.dumps({"run": code}).encode()
            socket.send_fds(zygote, [request], [nothing.fileno(), write, self._errors.fileno()])
            self.pid = int(zygote.recv(64))
        os.close(write)
        self._pidfd = os.pidfd_open(self.pid)
        self.exit_code: int | None = None

    def signal(self, number: int) -> None:
        signal.pidfd_send_signal(self._pidfd, number)

    def wait(self) -> int:
        """Wait for its end; return its exit code, negative for a signal."""
        if self.exit_code is None:
            assert select.select([self._pidfd], [], [], 60)[0], self.errors()
            self._zygote.send(json.dumps({"reap": self.pid}).encode())
            self.exit_code = int(self._zygote.recv(64))
        return self.exit_code

    def errors(self) -> str:
        self._errors.seek(0)
        return self._errors.read()

    def end(self) -> None:
        if self.exit_code is None:
            self.signal(signal.SIGKILL)
            self.wait()
        self.out.close()
        self._errors.close()
        os.close(self._pidfd)


@pytest.fixture(scope="session")
def zygote() -> Iterator[socket.socket]:
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    script = TESTS / "workers" / "failure" / "zygote.py"
    process = subprocess.Popen(
        [sys.executable, *WARNINGS, str(script), str(its.fileno()), *IMPORTED],
        pass_fds=[its.fileno()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    )
    its.close()
    yield mine
    mine.close()
    process.wait(20)


@pytest.fixture
def start(zygote: socket.socket) -> Iterator[Callable[..., Program]]:
    """Start a program: ``start("function(1, 2)", VARIABLE="value")``."""
    started: list[Program] = []

    def begin(call: str, **environ: str) -> Program:
        started.append(Program(zygote, call, environ))
        return started[-1]

    yield begin
    for one in started:
        one.end()


@pytest.fixture
def torchrun(start: Callable[..., Program]) -> Callable[..., list[Program]]:
    """Start a program as torchrun does, in so many processes."""

    def begin(call: str, size: int) -> list[Program]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        common: dict[str, Any] = {
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "tests",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        return [start(call, **common, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(size)]

    return begin
