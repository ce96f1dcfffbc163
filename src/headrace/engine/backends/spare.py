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
from collections.abc import Iterable
from typing import Any

from headrace.engine import wire
from headrace.engine.backends.ending import flush
from headrace.engine.backends.worker import Setup, leave_with_user, reset_signals, worker_main
from headrace.errors import WorkerStartError

_FORK, _STOP, _STARTED, _EXITED = "fork", "stop", "started", "exited"
_ANSWER_S = 0.3  # it runs no user code: one that takes longer is stopped, or gone


class Adopted:
    """A worker that the spare has forked, with what people use of a ``multiprocessing.Process``."""

    def __init__(self, spare: Spare, worker: int, pid: int, pidfd: wire.File) -> None:
        self._spare = spare
        self.name = f"headrace-worker-{worker}"
        self.pid = pid
        self.daemon = True
        self._pidfd = pidfd
        self.sentinel = pidfd.fileno()
        self._exit_code: int | None = None

    @property
    def ident(self) -> int:
        """Return the process id."""
        return self.pid

    @property
    def exitcode(self) -> int | None:
        """Return the exit code; None while the process runs, and where nobody knows it any more."""
        if self._exit_code is None and not self.is_alive():
            self._exit_code = self._spare.exit_code(self.pid)
        return self._exit_code

    def is_alive(self) -> bool:
        """Say whether the process runs."""
        return not _wait([self.sentinel], 0)

    def join(self, timeout: float | None = None) -> None:
        """Wait for the process to end."""
        _wait([self.sentinel], timeout)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.sentinel, number)


class Spare:
    """The user's end of the spare process."""

    def __init__(self, context: Any, setups: list[Setup]) -> None:
        self._mine, its = wire.pair()
        self._receive = wire.Receiver(self._mine)
        self._exit_codes: dict[int, int] = {}
        self._silent = False
        self._process = context.Process(target=_spare_main, args=(its, setups), daemon=True)
        try:
            self._process.start()
        except BaseException:
            self._mine.close()
            raise
        finally:
            its.close()

    def fork(self, setup: Setup, its: socket.socket, stack_file: int) -> Adopted:
        """Have a worker forked, with ``its`` end of a socket."""
        seeds = (setup.worker, setup.epoch_seed, setup.dataset_state)
        try:
            self._send((_FORK, *seeds), [its.fileno(), stack_file])
            pid, files = self._wait_for(_STARTED, None)
        except (OSError, EOFError) as error:
            raise WorkerStartError(
                f"worker {setup.worker} died, and the process that would have forked another one "
                f"is gone too ({error}). Was everything killed by name? Call iter(loader) again."
            ) from error
        return Adopted(self, setup.worker, pid, files[0])

    def _send(self, message: tuple[Any, ...], descriptors: list[int]) -> None:
        # Never blocks, nor is it the end of a program that gave SIGPIPE its default meaning back.
        wire.send(self._mine, message, descriptors, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def exit_code(self, pid: int) -> int | None:
        """Return the exit code of a forked worker that has ended; the spare has reaped it."""
        try:
            return self._wait_for(_EXITED, pid)[0]
        except (OSError, EOFError):
            return None

    def _wait_for(self, kind: str, pid: int | None) -> tuple[int, list[wire.File]]:
        while True:
            if kind == _EXITED and pid in self._exit_codes:
                return self._exit_codes.pop(pid), []
            if self._silent or not _wait([self._mine.fileno()], _ANSWER_S):
                self._silent = True
                raise TimeoutError("it does not answer")
            message, files = self._receive()
            if message[0] == _EXITED:
                self._exit_codes[message[1]] = message[2]
            elif kind == _STARTED:  # else of a worker that was asked for and given up
                return int(message[1]), files

    def stop(self) -> None:
        """Tell the spare to leave."""
        with contextlib.suppress(OSError):
            self._send((_STOP,), [])

    def join(self) -> None:
        """Wait for it; it never runs user code, so it answers at once."""
        self._process.join(_ANSWER_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._silent = True
        self._mine.close()

    def abandon(self) -> None:
        """In a fork of the user's process: let go."""
        multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]
        self._silent = True
        self._mine.close()


def _wait(descriptors: Iterable[int], timeout_s: float | None) -> set[int]:
    """Return which descriptors are ready; ``select`` knows none above 1023."""
    waiting = select.poll()
    for descriptor in descriptors:
        waiting.register(descriptor, select.POLLIN)
    return {fd for fd, _ in waiting.poll(None if timeout_s is None else timeout_s * 1000)}


def _spare_main(end: socket.socket, setups: list[Setup]) -> None:
    wire.close_inherited(end)
    # No thread watches the user's process here, whichever of its threads made this one: a process
    # that forks must have no threads. It waits for that process as it waits for its children.
    if setups[0].kernel_watches:
        leave_with_user(setups[0].user_pid, True)
    with contextlib.suppress(ProcessLookupError):
        user = os.pidfd_open(setups[0].user_pid)
        reset_signals()
        with contextlib.suppress(EOFError, ConnectionResetError, BrokenPipeError):
            _serve(end, user, setups)


def _serve(end: socket.socket, user: int, setups: list[Setup]) -> None:
    receive = wire.Receiver(end)
    children: dict[int, int] = {}  # pidfd -> pid
    while True:
        ready = _wait([end.fileno(), user, *children], None)
        for pidfd in ready & set(children):
            pid = children.pop(pidfd)
            os.close(pidfd)
            status = os.waitpid(pid, 0)[1]
            wire.send(end, (_EXITED, pid, os.waitstatus_to_exitcode(status)), [])
        if user in ready:
            os._exit(1)  # the kernel kills the children
        if end.fileno() not in ready:
            continue
        message, files = receive()
        if message[0] == _STOP:
            for pidfd in children:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            return
        spare_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            end.close()
            for descriptor in (user, *children):
                os.close(descriptor)
            setup = setups[message[1]]
            setup.epoch_seed, setup.dataset_state = message[2:]
            setup.user_pid, setup.kernel_watches = spare_pid, True  # it leaves with the user
            _become_worker(setup, files)
        files.clear()
        pidfd = os.pidfd_open(pid)
        children[pidfd] = pid
        wire.send(end, (_STARTED, pid), [pidfd])  # a number may be another's by the time it is read


def _become_worker(setup: Setup, files: list[wire.File]) -> None:
    code = 1
    try:
        setup.stack_file = wire.Descriptor(files[1].fileno())
        worker_main(socket.socket(fileno=os.dup(files[0].fileno())), setup)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        flush()
        os._exit(code)
