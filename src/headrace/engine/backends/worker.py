"""A worker process: seeds itself, then makes the batches it is told to, until it is told to stop.

It leaves when the user's process does, whatever it is doing: the kernel kills it
(``PR_SET_PDEATHSIG``) when it was started from the main thread, a watching thread ends it otherwise
(the signal would come when the starting *thread* ends).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import os
import random
import select
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data._utils import worker as torch_worker

from headrace.engine import cargo, wire
from headrace.engine.backends.ending import flush
from headrace.engine.lease import Memory
from headrace.engine.making.fetch import Fetcher
from headrace.engine.making.recipe import Recipe
from headrace.engine.making.worker_info import set_process_info, worker_info
from headrace.engine.shared import WorkerPool
from headrace.engine.task import Done, Failed, Result, Task
from headrace.engine.wire_errors import wrap_error
from headrace.rng import OwnGenerators, ProcessGenerators, generator_keys

# faulthandler writes the stack on this one; real-time signals are nobody's by convention.
STACK_SIGNAL = signal.SIGRTMIN + 11 if hasattr(signal, "SIGRTMIN") else signal.SIGABRT
_PR_SET_PDEATHSIG = 1


@dataclass
class Setup:
    """What a worker is told once, when it is started."""

    worker: int
    num_workers: int
    recipe: Recipe
    base_seed: int
    epoch_seed: int
    init_fn: Callable[[int], None] | None
    own_rng: bool
    user_pid: int
    kernel_watches: bool
    stack_file: wire.Descriptor | None = None
    dataset_state: Any = None
    heirlooms: list[Memory] = field(default_factory=list)


def worker_main(end: socket.socket, setup: Setup) -> None:
    """Run a worker until its socket says stop, or closes."""
    leave_with_user(setup.user_pid, setup.kernel_watches)
    reset_signals()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _Worker(end, setup).run()


def interpreter_main(end: socket.socket, setup: Setup) -> None:
    """Run a worker in an interpreter of its own, and leave it as a forked one is left.

    To take an interpreter apart that has imported torch takes longer than the end of an epoch may.
    """
    worker_main(end, setup)
    atexit._run_exitfuncs()
    flush()
    os._exit(0)


def leave_with_user(user_pid: int, kernel_watches: bool) -> None:
    """See to it that this process ends with the one that uses it."""
    if kernel_watches:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _await_end(user_pid, 0)  # it may have died before the kernel was asked
    else:
        threading.Thread(target=_await_end, args=(user_pid, None), daemon=True).start()


def _await_end(user_pid: int, timeout_ms: int | None) -> None:
    """Leave when that process has ended; a zombie has, though it can still be signalled."""
    with contextlib.suppress(ProcessLookupError):
        user = os.pidfd_open(user_pid)
        waiting = select.poll()
        waiting.register(user, select.POLLIN)
        ended = waiting.poll(timeout_ms)
        os.close(user)
        if not ended:
            return
    os._exit(1)


def reset_signals() -> None:
    """Undo what a fork inherits: Ctrl-C is for the user's process, which then ends the workers."""
    signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN: programs started here inherit that
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(ValueError, OSError):
        signal.set_wakeup_fd(-1)
    with contextlib.suppress(AttributeError):
        signal.pthread_sigmask(
            signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT, STACK_SIGNAL, signal.SIGCHLD}
        )


class _Worker:
    """The state of one worker process."""

    def __init__(self, end: socket.socket, setup: Setup) -> None:
        self._end = end
        self._setup = setup
        self._receive = wire.Receiver(end)
        self._pool = WorkerPool(setup.heirlooms)
        self._pool.ship = partial(wire.send_buffers, end, self._pool)
        self._generators = ProcessGenerators()
        self._seed = setup.base_seed + setup.worker
        self._failure: Failed | None = None
        self._fetcher: Fetcher | None = None
        if setup.stack_file is not None:
            self._stack = os.fdopen(setup.stack_file.number, "w", closefd=False)
            faulthandler.register(STACK_SIGNAL, self._stack, all_threads=False)

    def run(self) -> None:
        self._prepare()
        while True:
            message, _ = self._receive()
            kind = message[0]
            if kind == wire.RUN:
                _, task, free, retired = message
                self._pool.came_home(free)
                self._pool.keep_out(retired)
                self._answer(self._make(Task(*task)))
            elif kind == wire.REPLAY:
                for task in message[1]:
                    self._make(Task(*task))
            elif kind == wire.EPOCH:
                self._failure = None
                self._begin_epoch(message[1])
            else:
                return
            del message

    def _prepare(self) -> None:
        """Seed, say who we are, run ``worker_init_fn``; what fails there fails the first batch."""
        setup = self._setup
        torch.set_num_threads(1)
        random.seed(self._seed)
        torch.manual_seed(self._seed)
        words = torch_worker._generate_state(setup.base_seed, setup.worker)  # type: ignore[no-untyped-call]
        np.random.seed(words)
        set_process_info(
            worker_info(setup.worker, setup.num_workers, self._seed, setup.recipe.dataset)
        )
        try:
            if setup.init_fn is not None:
                before = generator_keys()
                setup.init_fn(setup.worker)
                if setup.own_rng:
                    self._respect_own_seeds(before)
        except Exception as error:
            self._failure = Failed(-1, error)
            return
        self._begin_epoch(setup.epoch_seed, setup.dataset_state)

    def _respect_own_seeds(self, before: tuple[Any, ...]) -> None:
        """Leave generators alone that ``worker_init_fn`` seeded to something of its own."""
        own = self._generators.leave_to_user(before, self._seed)
        if own and self._setup.worker == 0:
            text = (
                f"worker_init_fn seeded {' and '.join(own)} in the workers. These random numbers "
                f"now depend on the worker, so batches change with num_workers, and an exact rerun "
                f"or resume is not possible. headrace seeds every task by itself: leave the "
                f"seeding out of worker_init_fn."
            )
            wire.send(self._end, (wire.NOTICE, text), [])

    def _begin_epoch(self, seed: int, dataset_state: Any = None) -> None:
        seeding = None
        if self._setup.own_rng and not self._setup.recipe.quiet:
            seeding = OwnGenerators(self._generators, self._seed)
        self._fetcher = Fetcher(self._setup.recipe, self._pool, seeding, self._setup.worker)
        try:
            self._fetcher.start(seed, dataset_state)
        except Exception as error:
            self._failure = Failed(-1, error)

    def _make(self, task: Task) -> Result:
        if self._failure is not None:
            return Failed(task.step, self._failure.error)
        assert self._fetcher is not None
        return self._fetcher(task)

    def _answer(self, result: Result) -> None:
        kept: Any = None
        if isinstance(result, Done):
            try:
                data, buffers, kept = cargo.pack(result.batch, self._pool)
                result = result._replace(batch=(data, buffers))
            except Exception as error:
                result = Failed(result.step, error)
        if isinstance(result, Failed):
            where = f"in DataLoader worker process {self._setup.worker}"
            result = Failed(result.step, wrap_error(result.error, where))  # type: ignore[arg-type]
        wire.send_buffers(self._end, self._pool)
        forgotten, self._pool.forgotten = self._pool.forgotten, []
        wire.send(self._end, (wire.RESULT, result, forgotten), [])
        del kept, result
