"""One worker process as the user's process sees it, and why it could not be started."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import signal
import socket
from collections import deque
from multiprocessing.reduction import ForkingPickler
from typing import Any

from headrace.engine import cargo, wire
from headrace.engine.backends.base import Died
from headrace.engine.backends.worker import Setup
from headrace.engine.shared import Imports
from headrace.engine.task import Done, Failed
from headrace.errors import WorkerStartError
from headrace.notices import warn_user


class Worker:
    """One worker process as the user's process sees it."""

    def __init__(self, setup: Setup, imports: Imports) -> None:
        self.setup = setup
        self.imports = imports
        self._files = [wire.opened(os.memfd_create, "headrace-stack", os.MFD_CLOEXEC)]
        self.stack_file = self._files[0].fileno()
        self.mine, self.its = wire.pair()
        self.receive = wire.Receiver(self.mine)
        # The worker's end is kept open here too: a task that it has not read can be taken back.
        self.take_back = wire.Receiver(self.its)
        self.outbox: deque[tuple[Any, ...]] = deque()
        self.outstanding = 0
        self.stale = 0
        self.free: list[int] = []
        self.retired: list[int] = []
        self.wants_out = False
        self.process: Any = None
        self.pidfd = -1
        self.died: Died | None = None
        self.lost = False  # killed, because not all that it sent could be received

    def close_files(self) -> None:
        """Close this side's descriptors of a worker that is gone, or is not ours."""
        for end in (self.mine, self.its):
            end.close()
        self.stack_file = self.pidfd = -1  # first: an exit may close what a thread is closing
        self._files.clear()

    def watch(self, file: wire.File) -> None:
        """Take what tells of the process's end."""
        self._files.append(file)
        self.pidfd = file.fileno()

    def tell_to_stop(self) -> None:
        """Ask it to leave; what it has not begun, it need not begin."""
        with contextlib.suppress(OSError, EOFError):
            while True:
                self.take_back(socket.MSG_DONTWAIT)
        self.outbox.clear()
        with contextlib.suppress(OSError):
            wire.send(self.mine, (wire.STOP,), [], socket.MSG_DONTWAIT)
        with contextlib.suppress(OSError):
            self.mine.shutdown(socket.SHUT_RD)  # one that waits for room to answer leaves too

    def unpacked(self, done: Done) -> Done | Failed:
        """Put a batch together again from what it has sent."""
        try:
            return done._replace(batch=cargo.unpack(done.batch, self.imports))
        except Exception as error:  # a batch class that cannot be put together again here
            return Failed(done.step, error)

    def kill(self) -> None:
        """End it with the one signal that nothing can ignore."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def discard(self) -> None:
        """End a worker whose start did not come to its end."""
        if self.process is not None and self.process.pid is not None:
            self.process.kill()
            self.process.join()
        self.close_files()


def too_many_files(what: str) -> OSError:
    """Return the error for descriptors that have run out, with the way to have more."""
    return OSError(
        errno.EMFILE,
        f"too many open files: no descriptor is left {what}. Raise the limit with `ulimit -n 4096`,"
        f" or close files",
    )


def explain_start(error: BaseException, setup: Setup) -> None:
    """Say which attribute of the loader could not be pickled for a worker."""
    if not isinstance(error, (pickle.PicklingError, AttributeError, TypeError)):
        if isinstance(error, OSError):
            raise WorkerStartError(
                f"worker {setup.worker} of {setup.num_workers} could not be started: {error}. "
                f"Use fewer workers, or raise the limit: `ulimit -n` for open files, `ulimit -u` "
                f"for processes."
            ) from error
        return
    name, value = _unpicklable(setup)
    text = (
        f"Got pickle error when attempting to start a worker Process: {name} ({value!r}) cannot be "
        f"pickled. With the start methods 'spawn' and 'forkserver' everything that a worker uses "
        f"must be importable by name: write it at the top level of a module, or use "
        f"multiprocessing_context='fork'."
    )
    warn_user(text)
    error.add_note(text)


def _unpicklable(setup: Setup) -> tuple[str, Any]:
    parts = {
        "dataset": setup.recipe.dataset,
        "collate_fn": setup.recipe.collate,
        "worker_init_fn": setup.init_fn,
    }
    for name, value in parts.items():
        try:
            ForkingPickler.dumps(value)
        except Exception:
            return name, value
    return "an argument", None


def is_of_files(error: OSError) -> bool:
    """Say whether an error means that descriptors have run out."""
    return error.errno in (errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS)
