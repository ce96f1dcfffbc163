"""Tasks run in worker processes, which write batches to memory that both sides map.

No thread: :meth:`ProcessBackend.get` waits on the sockets and on the processes themselves. Nobody
blocks in writing: what a socket will not take now waits in an outbox.

Shutdown, written down once. Idle workers are told to stop and leave with exit code 0. A worker that
has not left after ``GRACE_S`` is killed with SIGKILL, which nothing can ignore, and is reaped. The
same happens at the end of an epoch, on ``break``, on garbage collection and at the interpreter's
exit. If the user's process is itself killed, the workers notice
(:mod:`headrace.engine.backends.worker`).
"""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import select
import socket
import threading
import time
from collections import deque
from typing import Any

from headrace.engine import wire
from headrace.engine.backends.base import Backend, Died, Finished
from headrace.engine.backends.crew import Worker, explain_start, is_of_files, too_many_files
from headrace.engine.backends.ending import backends, check_open, end_together, forking
from headrace.engine.backends.obituary import how_it_died, how_it_ended, stack_of
from headrace.engine.backends.spare import Spare
from headrace.engine.backends.worker import Setup, interpreter_main, worker_main
from headrace.engine.doubt import close_wholly
from headrace.engine.shared import Home, Imports
from headrace.engine.task import Done, Failed, Task
from headrace.engine.wire_errors import WrappedError
from headrace.errors import WorkerStartError
from headrace.notices import warn_user

_IN, _OUT = select.POLLIN, select.POLLOUT


class ProcessBackend(Backend):
    """Runs tasks in processes of any start method."""

    def __init__(self, setups: list[Setup], context: Any, home: Home) -> None:
        self.workers = len(setups)
        self.processes: list[Any] = []
        self._context = context
        self._home = home
        self._pid = os.getpid()
        self._crew: list[Worker] = []
        self._poll = select.poll()
        self._by_fd: dict[int, tuple[Worker, bool]] = {}
        self._events: deque[Finished | Died] = deque()
        self._closing = self._closed = False
        self._spare: Spare | None = None
        self._setups = setups
        backends.add(self)
        self._start_all()

    # Starting

    def _start_all(self) -> None:
        try:
            shares = self._home.divide(self.workers)
            for setup, heirlooms in zip(self._setups, shares, strict=True):
                self._start(setup, heirlooms)
        except BaseException:
            self.close()
            raise

    def renew(self) -> None:
        """End the workers, with whatever is under way between them and us, and start others."""
        self.close()
        self._crew.clear()
        self.processes.clear()  # in place: others look at it
        self._by_fd.clear()
        self._events.clear()
        self._poll = select.poll()
        self._spare = None
        self._closing = self._closed = False
        self._start_all()

    def _start(self, setup: Setup, heirlooms: list[Any]) -> None:
        method = self._context.get_start_method()
        forks = method == "fork"
        setup.heirlooms = heirlooms if forks else []
        # The kernel tells of the end of the thread that made the process, not of its process; and
        # the server that forks for "forkserver" takes its time to leave, with torch loaded.
        in_main_thread = threading.current_thread() is threading.main_thread()
        setup.kernel_watches = method != "forkserver" and in_main_thread
        worker = None
        try:
            worker = Worker(setup, Imports(self._home, setup.heirlooms))
            setup.stack_file = wire.Descriptor(worker.stack_file)
            worker.process = self._context.Process(
                target=_run_forked if forks else interpreter_main,
                args=(worker.its, setup),
                daemon=True,
            )
            with forking(method):
                worker.process.start()
                self._enlist(worker)
        except BaseException as error:
            if worker is not None:
                worker.discard()
            explain_start(error, setup)
            raise
        finally:
            setup.heirlooms = []
            setup.stack_file = None

    def start_spare(self) -> None:
        """Fork the process that forks replacements, while this one is as it was at the start."""
        if self._context.get_start_method() == "fork" and self._spare is None:
            # Without one, a worker that dies is replaced by a fork of this process.
            with contextlib.suppress(OSError), forking("fork"):
                self._spare = Spare(self._context, self._setups)

    def _enlist(self, worker: Worker) -> None:
        number = worker.setup.worker
        try:
            worker.watch(wire.opened(os.pidfd_open, worker.process.pid))
        except ProcessLookupError:  # it has ended, and its parent, which we are not, has reaped it
            worker.watch(wire.opened(os.dup, worker.process.sentinel))
        if number < len(self._crew):
            self._crew[number] = worker
            self.processes[number] = worker.process
        else:
            self._crew.append(worker)
            self.processes.append(worker.process)
        self._by_fd[worker.mine.fileno()] = (worker, False)
        self._by_fd[worker.pidfd] = (worker, True)
        self._poll.register(worker.mine, _IN)
        self._poll.register(worker.pidfd, _IN)

    def replace(self, worker: int, done: list[Task], state: Any) -> None:
        """Start a dead worker again; an iterable dataset goes on from ``state``, past ``done``."""
        setup = self._crew[worker].setup
        if state is not None:
            setup.dataset_state = state
        if self._spare is not None:
            self._fork_from_spare(self._spare, setup)
        if self._spare is None:
            self._start(setup, [])
        if done:
            self.replay(worker, done)

    def replay(self, worker: int, tasks: list[Task]) -> None:
        """Have a worker make batches that nobody wants, to bring its stream to a place."""
        self._put(self._crew[worker], (wire.REPLAY, [tuple(task) for task in tasks]))

    def _fork_from_spare(self, spare: Spare, setup: Setup) -> None:
        new = None
        try:
            new = Worker(setup, Imports(self._home, []))
            new.process = spare.fork(setup, new.its, new.stack_file)
            self._enlist(new)
        except WorkerStartError:  # it was killed too, or stopped
            assert new is not None
            new.close_files()
            self._spare = None
            spare.stop()
            spare.join()
        except BaseException as error:
            if new is not None:
                new.discard()
            explain_start(error, setup)
            raise

    # Tasks

    def submit(self, worker: int, task: Task) -> None:
        """Send a task, with the keys of the buffers that came back."""
        target = self._crew[worker]
        free, retired = target.imports.to_return()
        target.free += free
        target.retired += retired
        message = (wire.RUN, tuple(task), target.free, target.retired)
        target.free, target.retired = [], []
        target.outstanding += 1
        self._put(target, message)

    def begin_epoch(self, seed: int, states: list[Any] | None = None) -> None:
        """Begin another epoch in workers that persist; what was still under way is dropped."""
        self._events.clear()
        for number, worker in enumerate(self._crew):
            worker.setup.epoch_seed = seed
            worker.setup.dataset_state = states and states[number]  # for who takes its place
            if worker.died is not None:  # the next window decides what becomes of it
                self._events.append(worker.died)
                continue
            self.retract(number)
            worker.stale += worker.outstanding
            worker.outstanding = 0
            self._put(worker, (wire.EPOCH, seed))

    def retract(self, worker: int) -> list[Task]:
        """Take back the tasks that a worker has not read from its socket yet."""
        target = self._crew[worker]
        messages = []
        with contextlib.suppress(BlockingIOError):
            while True:
                messages.append(target.take_back(socket.MSG_DONTWAIT)[0])
        messages += target.outbox
        target.outbox.clear()
        tasks = []
        for message in messages:
            if message[0] != wire.RUN:
                self._put(target, message)
                continue
            _, task, free, retired = message
            target.free += free
            target.retired += retired
            tasks.append(Task(*task))
        target.outstanding -= len(tasks)
        return tasks

    def _put(self, worker: Worker, message: tuple[Any, ...]) -> None:
        if worker.pidfd < 0:
            return  # dead, and the window will hear of it
        worker.outbox.append(message)
        with contextlib.suppress(OSError):  # no descriptor for a large message: get() says so
            self._flush(worker)

    def _flush(self, worker: Worker) -> None:
        try:
            while worker.outbox:
                wire.send(worker.mine, worker.outbox[0], [], socket.MSG_DONTWAIT)
                worker.outbox.popleft()
        except BlockingIOError:
            pass
        except OSError as error:
            self.waiting = True
            raise (too_many_files("to send a task") if is_of_files(error) else error) from None
        finally:
            if worker.wants_out != bool(worker.outbox):
                worker.wants_out = bool(worker.outbox)
                self._poll.modify(worker.mine, _IN | _OUT if worker.wants_out else _IN)

    # Results

    def get(self, timeout_s: float | None) -> Finished | Died | None:
        """Wait on the sockets and on the processes themselves."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._events:
            self.check()
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            self.waiting = True  # what it returns may be lost: it will say it again
            ready = self._poll.poll(None if left is None else left * 1000)
            self.check()
            self.waiting = False
            if not ready:
                return None
            self._handle(ready)
        return self._events.popleft()

    def check(self) -> None:
        """Raise where no worker would answer."""
        check_open(self._pid, self._closing)

    def _handle(self, ready: list[tuple[int, int]]) -> None:
        dead: list[Worker] = []
        for descriptor, event in ready:
            worker, is_process = self._by_fd[descriptor]
            if is_process:
                dead.append(worker)
                continue
            if event & _OUT:
                self._flush(worker)
            if event & ~_OUT:
                self._read(worker)
        for worker in dead:
            self._bury(worker)

    def _read(self, worker: Worker) -> bool:
        """Read one message; say whether there was one."""
        try:
            message, files = worker.receive(socket.MSG_DONTWAIT)
        except (BlockingIOError, EOFError, ConnectionResetError):
            return False
        kind = message[0]
        if worker.lost:
            return True
        if kind == wire.BUFFERS:
            self._import(worker, message[1], files)
        elif kind == wire.NOTICE:
            self.waiting = True  # it may raise, and is all there was to the message
            warn_user(message[1])
        else:
            _, result, forgotten = message
            if isinstance(result, Done):
                result = worker.unpacked(result)
            elif isinstance(result, Failed) and isinstance(result.error, WrappedError):
                result = Failed(result.step, result.error.rebuild())
            worker.imports.forget(forgotten)
            if worker.stale:
                worker.stale -= 1
            else:
                worker.outstanding -= 1
                self._events.append(Finished(worker.setup.worker, result))
        return True

    def _import(self, worker: Worker, made: list[tuple[int, int]], files: list[wire.File]) -> None:
        if len(files) < len(made):  # the kernel had no numbers for the others here
            worker.lost = True  # all that it has made is made again by another
            worker.kill()
            self.waiting = True
            raise too_many_files("for the memory of a batch")
        for (key, size), file in zip(made, files, strict=True):
            worker.imports.add(key, size, file.fileno())
            file.close()

    def _bury(self, worker: Worker) -> None:
        """Read what a dead worker still said, reap it, and report its death."""
        while self._read(worker):
            pass
        how = how_it_died(worker.process)
        worker.imports.bequeath()
        self._dismiss(worker)
        worker.died = Died(worker.setup.worker, worker.process.pid, how)
        self._events.append(worker.died)

    def _dismiss(self, worker: Worker) -> None:
        for descriptor in (worker.mine.fileno(), worker.pidfd):
            if self._by_fd.pop(descriptor, None) is not None:
                self._poll.unregister(descriptor)
        worker.close_files()

    def describe(self, worker: int) -> str:
        """Say where a worker's code stands."""
        target = self._crew[worker]
        return stack_of(target.process.pid, target.stack_file)

    # Ending

    def close(self) -> None:
        """End all workers, within a second, and keep their memory for workers to come."""
        end_together([self])

    def ask_to_leave(self) -> list[int]:
        """Tell the workers to stop; return what to wait for."""
        self._closing = True
        alive = [w for w in self._crew if w.pidfd >= 0]
        for worker in alive:
            worker.tell_to_stop()
        return [w.pidfd for w in alive]

    def kill(self) -> None:
        """Kill every worker that has not left."""
        for worker in self._crew:
            worker.kill()

    def reap(self) -> None:
        """Reap the workers, who have left or were killed."""
        for worker in self._crew:
            if worker.pidfd >= 0:
                how_it_ended(worker.process)
                worker.imports.bequeath()
                self._dismiss(worker)
        if self._spare is not None:
            self._spare.stop()
            self._spare.join()
        self._closed = True

    def is_open(self) -> bool:
        """Say whether there may be workers to end, which only the process that has them can."""
        return not self._closed and os.getpid() == self._pid

    def abandon(self) -> None:
        """In a fork of the user's process: let go of everything without touching the workers."""
        self._closing = self._closed = True
        for worker in self._crew:
            multiprocessing.process._children.discard(worker.process)  # type: ignore[attr-defined]
            worker.close_files()
        if self._spare is not None:
            self._spare.abandon()

    def __del__(self) -> None:
        # At the interpreter's end it was closed by an exit handler, and modules may be gone.
        if not getattr(self, "_closed", True):
            with contextlib.suppress(Exception):
                close_wholly(self.close)


def _run_forked(end: socket.socket, setup: Setup) -> None:
    """Run a forked worker: what it inherited of other workers is let go of."""
    wire.close_inherited(end)
    worker_main(end, setup)
