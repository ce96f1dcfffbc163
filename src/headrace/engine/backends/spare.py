"""A process forked at the start of an epoch, which forks replacements for workers that die.

By the time a worker dies the user's process may have threads (a training step makes some), and a
fork of such a process can inherit a lock that nobody will release. The spare has none, and holds
the dataset as it was at the start.
"""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import select
import signal
import socket
import sys
import traceback
from typing import Any

from headrace.engine import wire
from headrace.engine.worker import Setup, flush, leave_with_user, reset_signals, worker_main
from headrace.errors import WorkerStartError

_FORK, _STOP, _STARTED, _EXITED = "fork", "stop", "started", "exited"


class Adopted:
    """A worker that the spare has forked, with what people use of a ``multiprocessing.Process``."""

    def __init__(self, spare: Spare, worker: int, pid: int) -> None:
        self._spare = spare
        self.name = f"headrace-worker-{worker}"
        self.pid = pid
        self.daemon = True
        self.exitcode: int | None = None
        self.sentinel = os.pidfd_open(pid)

    @property
    def ident(self) -> int:
        """Return the process id."""
        return self.pid

    def is_alive(self) -> bool:
        """Say whether the process runs."""
        return not select.select([self.sentinel], [], [], 0)[0]

    def join(self, timeout: float | None = None) -> None:
        """Wait for the process to end."""
        if select.select([self.sentinel], [], [], timeout)[0] and self.exitcode is None:
            self.exitcode = self._spare.exit_code(self.pid)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.sentinel, number)

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.sentinel)


class Spare:
    """The user's end of the spare process."""

    def __init__(self, context: Any, setups: list[Setup]) -> None:
        self._mine, its = wire.pair()
        self._receive = wire.Receiver(self._mine)
        self._exit_codes: dict[int, int] = {}
        self._process = context.Process(target=_spare_main, args=(its, setups), daemon=True)
        self._process.start()
        its.close()

    def fork(self, setup: Setup, its: socket.socket, stack_file: int) -> Adopted:
        """Have a worker forked, with ``its`` end of a socket."""
        seeds = (setup.worker, setup.epoch_seed, setup.dataset_state)
        try:
            wire.send(self._mine, (_FORK, *seeds), [its.fileno(), stack_file])
            pid = self._wait_for(_STARTED, None)
        except (OSError, EOFError) as error:
            raise WorkerStartError(
                f"worker {setup.worker} died, and the process that would have forked another one "
                f"is gone too ({error}). Was everything killed by name? Call iter(loader) again."
            ) from error
        return Adopted(self, setup.worker, pid)

    def exit_code(self, pid: int) -> int | None:
        """Return the exit code of a forked worker that has ended; the spare has reaped it."""
        try:
            return self._wait_for(_EXITED, pid)
        except (OSError, EOFError):
            return None

    def _wait_for(self, kind: str, pid: int | None) -> int:
        while True:
            if kind == _EXITED and pid in self._exit_codes:
                return self._exit_codes.pop(pid)
            message, _ = self._receive()
            if message[0] == _EXITED:
                self._exit_codes[message[1]] = message[2]
            elif kind == _STARTED:
                return int(message[1])

    def stop(self) -> None:
        """Tell the spare to leave."""
        with contextlib.suppress(OSError):
            wire.send(self._mine, (_STOP,), [])

    def join(self) -> None:
        """Wait for it; it never runs user code, so it answers at once."""
        self._process.join(0.3)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._mine.close()

    def abandon(self) -> None:
        """In a fork of the user's process: let go."""
        multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]
        self._mine.close()


def _spare_main(end: socket.socket, setups: list[Setup]) -> None:
    wire.close_inherited(end)
    leave_with_user(setups[0].user_pid, setups[0].kernel_watches)
    reset_signals()
    with contextlib.suppress(EOFError, ConnectionResetError, BrokenPipeError):
        _serve(end, setups)


def _serve(end: socket.socket, setups: list[Setup]) -> None:
    receive = wire.Receiver(end)
    children: dict[int, int] = {}  # pidfd -> pid
    while True:
        ready = select.select([end.fileno(), *children], [], [])[0]
        for pidfd in set(ready) & set(children):
            pid = children.pop(pidfd)
            os.close(pidfd)
            status = os.waitpid(pid, 0)[1]
            wire.send(end, (_EXITED, pid, os.waitstatus_to_exitcode(status)), [])
        if end.fileno() not in ready:
            continue
        message, descriptors = receive()
        if message[0] == _STOP:
            for pidfd in children:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            return
        pid = os.fork()
        if pid == 0:
            end.close()
            setup = setups[message[1]]
            setup.epoch_seed, setup.dataset_state = message[2:]
            _become_worker(setup, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        children[os.pidfd_open(pid)] = pid
        wire.send(end, (_STARTED, pid), [])


def _become_worker(setup: Setup, descriptors: list[int]) -> None:
    code = 1
    try:
        setup.stack_file = wire.Descriptor(descriptors[1])
        setup.user_pid = os.getppid()  # the spare leaves with the user's process
        worker_main(socket.socket(fileno=descriptors[0]), setup)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        flush()
        os._exit(code)
