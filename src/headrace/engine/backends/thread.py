"""Tasks run in threads of the user's process: one dataset, shared, and nothing to copy.

Worth it where a sample's time passes outside the interpreter's lock (files, networks, decoders), or
on an interpreter without one. Threads share the process's random generators too, so nothing is
seeded around user code: a task's own generators are ``headrace.task_rng()``.

A thread cannot be killed. One that is stuck in user code is named in a warning when its loader
ends, and ends with the process.
"""

from __future__ import annotations

import copy
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, NoReturn

import torch

from headrace.engine.backends.base import Backend, Finished
from headrace.engine.backends.ending import GRACE_S, backends, check_open, end_together, flush
from headrace.engine.doubt import close_wholly
from headrace.engine.making.fetch import Fetcher
from headrace.engine.making.worker_info import look_at_threads, set_thread_info, worker_info
from headrace.engine.task import Failed, Result, Task
from headrace.notices import warn_user
from headrace.rng import ProcessGenerators


class ThreadSetup(NamedTuple):
    """What a worker thread is told once; ``begin`` makes its fetcher at the start of an epoch.

    ``divided`` says that the dataset is this thread's part of an iterable one, so that code which
    divides by ``get_worker_info()`` too must find itself alone. ``keys`` are those of the process's
    generators before any ``worker_init_fn``, for the one thread that tells of seeds.
    """

    worker: int
    num_workers: int
    seed: int
    dataset: Any
    init_fn: Callable[[int], None] | None
    begin: Callable[[int, Any], Fetcher]
    divided: bool = False
    keys: tuple[Any, ...] | None = None


class _Run(NamedTuple):
    epoch: int
    task: Task


class _Replay(NamedTuple):
    tasks: list[Task]


class _Epoch(NamedTuple):
    seed: int
    dataset_state: Any


class _Stop(NamedTuple):
    pass


class _Answer(NamedTuple):
    epoch: int
    finished: Finished


_ENGINE = os.path.dirname(os.path.dirname(__file__))  # frames in here say nothing to a user

_Message = _Run | _Replay | _Epoch | _Stop


class ThreadBackend(Backend):
    """Runs tasks in threads. They hold their queues and the dataset, never this object."""

    def __init__(self, setups: list[ThreadSetup], epoch_seed: int, states: list[Any]) -> None:
        self.workers = len(setups)
        self.threads: list[threading.Thread] = []
        self._asked: list[SimpleQueue[_Message]] = [SimpleQueue() for _ in setups]
        self._answers = _Answers()
        self._seed = epoch_seed
        self._pid = os.getpid()
        self._epoch = 0
        self._closing = self._closed = False
        self._deadline = 0.0
        look_at_threads()
        torch_threads = torch.get_num_threads()
        for setup, asked, state in zip(setups, self._asked, states, strict=True):
            asked.put(_Epoch(epoch_seed, state))
            self.threads.append(
                threading.Thread(
                    target=_run,
                    args=(setup, asked, self._answers, torch_threads),
                    name=f"headrace-worker-{setup.worker}",
                    daemon=True,
                )
            )
        backends.add(self)
        try:
            for thread in self.threads:
                thread.start()
        except BaseException:
            self.close()
            raise

    def submit(self, worker: int, task: Task) -> None:
        """Put a task on a thread's queue."""
        self._asked[worker].put(_Run(self._epoch, task))

    def get(self, timeout_s: float | None) -> Finished | None:
        """Wait for the next answer."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self.check()
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            self.waiting = True
            there = self._answers.wait(left)
            self.waiting = False
            if not there:
                return None
            answer = self._answers.take()
            if answer is not None and answer.epoch == self._epoch:
                return answer.finished

    def check(self) -> None:
        """Raise where no thread would answer."""
        check_open(self._pid, self._closing)

    def begin_epoch(self, seed: int, states: list[Any] | None = None) -> None:  # noqa: ARG002
        """Begin another epoch in threads that persist; what is still under way is dropped."""
        self._seed = seed
        self._epoch += 1
        for worker, asked in enumerate(self._asked):
            self.retract(worker)
            asked.put(_Epoch(seed, None))

    def renew(self) -> None:
        """Go on in the same threads, as at the beginning of the epoch: all under way is dropped."""
        self.begin_epoch(self._seed)

    def replay(self, worker: int, tasks: list[Task]) -> None:
        """Have a thread make batches that nobody wants, to bring its stream to a place."""
        self._asked[worker].put(_Replay(tasks))

    def retract(self, worker: int) -> list[Task]:
        """Take back the tasks that a thread has not begun."""
        asked, kept, tasks = self._asked[worker], [], []
        while True:
            try:
                message = asked.get_nowait()
            except Empty:
                break
            if isinstance(message, _Run):
                tasks.append(message.task)
            else:
                kept.append(message)
        for message in kept:
            asked.put(message)
        return tasks

    def describe(self, worker: int) -> str:
        """Say where a thread's code stands."""
        thread = self.threads[worker]
        return f"thread {thread.name}, which stands at\n{_stack(thread)}"

    # Ending: Ctrl-C, break, garbage collection and the interpreter's exit all come to close().

    def close(self) -> None:
        """End the threads, within a second."""
        end_together([self])

    def is_open(self) -> bool:
        """Say whether there may be threads to end: a fork of the process has none."""
        return not self._closed and os.getpid() == self._pid

    def ask_to_leave(self) -> list[int]:
        """Tell the threads to stop; there is no descriptor to wait for."""
        self._closing = True
        self._deadline = time.monotonic() + GRACE_S
        for worker, asked in enumerate(self._asked):
            self.retract(worker)
            asked.put(_Stop())
        self._answers.put(None)  # for another thread that waits: nobody will answer
        return []

    def kill(self) -> None:
        """Tell them again, in case whoever told them was interrupted; a thread cannot be killed."""
        self._deadline = self._deadline or time.monotonic() + GRACE_S
        for asked in self._asked:
            asked.put(_Stop())

    def reap(self) -> None:
        """Wait for the threads; one that is stuck is left behind, and named."""
        self._closed = True
        for thread in self.threads:
            if thread is threading.current_thread() or thread.ident is None:
                continue  # garbage collected in a worker; or never started
            thread.join(max(0.0, self._deadline - time.monotonic()))
            if thread.is_alive():
                warn_user(
                    f"{thread.name} did not end within {GRACE_S:g} s. A thread cannot be killed: "
                    f"it leaves when its sample is done, or with the process; "
                    f"backend='process' can end it. It stands at\n{_stack(thread)}",
                    RuntimeWarning,
                )

    def abandon(self) -> None:
        """In a fork of the user's process there are no threads."""
        self._closing = self._closed = True

    def __del__(self) -> None:
        if hasattr(self, "_closed") and self.is_open():
            close_wholly(self.close)


class _Answers:
    """A queue that is waited for and taken from in two steps: an interrupted wait loses nothing."""

    def __init__(self) -> None:
        self._made: deque[_Answer | None] = deque()
        self._bell = threading.Lock()  # held, unless something may have come
        self._bell.acquire()

    def put(self, answer: _Answer | None) -> None:
        self._made.append(answer)
        with suppress(RuntimeError):  # it rings already
            self._bell.release()

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for an answer; say whether there is one."""
        while not self._made:
            if not self._bell.acquire(timeout=-1 if timeout_s is None else timeout_s):
                return bool(self._made)
        return True

    def take(self) -> _Answer | None:
        return self._made.popleft()


def _run(
    setup: ThreadSetup,
    asked: SimpleQueue[_Message],
    made: _Answers,
    torch_threads: int,
) -> None:
    """Make the batches that are asked for, until told to stop."""
    _use_one_core(torch_threads)

    def say_who(number: int, of: int) -> None:
        set_thread_info(worker_info(number, of, setup.seed, setup.dataset, "thread"))

    say_who(setup.worker, setup.num_workers)
    worker = _Worker(setup)
    if setup.divided:
        say_who(0, 1)
    while not isinstance(message := asked.get(), _Stop):
        if isinstance(message, _Run):
            made.put(_Answer(message.epoch, Finished(setup.worker, worker.make(message.task))))
        elif isinstance(message, _Replay):
            for task in message.tasks:
                worker.make(task)
        else:
            worker.begin_epoch(message)
        del message


class _Worker:
    """The state of one worker thread."""

    def __init__(self, setup: ThreadSetup) -> None:
        self._setup = setup
        self._init_failure: BaseException | None = None
        self._failure: BaseException | None = None
        self._fetcher: Fetcher | None = None
        self._pid = os.getpid()
        try:
            if setup.init_fn is not None:
                setup.init_fn(setup.worker)
            if setup.keys is not None:
                _warn_of_seeds(setup.keys)
        except BaseException as error:
            self._init_failure = error

    def begin_epoch(self, message: _Epoch) -> None:
        self._failure = self._init_failure
        if self._failure is not None:
            return
        try:
            self._fetcher = self._setup.begin(*message)
        except BaseException as error:
            self._failure = error

    def make(self, task: Task) -> Result:
        try:
            if self._failure is not None:
                # A copy: what is raised in the loop leads to the loop's iterator, and kept here
                # would keep it.
                return self._noted(Failed(task.step, _copied(self._failure)))
            assert self._fetcher is not None
            return self._noted(self._fetcher(task))
        except BaseException as error:  # sys.exit() in user code ends the program, not the thread
            return self._noted(Failed(task.step, error))

    def _noted(self, result: Result) -> Result:
        if os.getpid() != self._pid:
            _end_fork(result)
        if isinstance(result, Failed):
            note = f"headrace: in DataLoader worker thread {self._setup.worker}"
            if note not in getattr(result.error, "__notes__", ()):
                result.error.add_note(note)
        return result


def _end_fork(result: Result) -> NoReturn:
    """End a process that user code forked in a thread, where nobody would ask for more.

    Python would abort it if it returned from here, with torch loaded.
    """
    code: Any = 0
    if isinstance(result, Failed):
        code = result.error.code if isinstance(result.error, SystemExit) else 1
        if not isinstance(result.error, SystemExit):
            traceback.print_exception(result.error)
    flush()
    os._exit(code if isinstance(code, int) else code is not None)


def _warn_of_seeds(before: tuple[Any, ...]) -> None:
    """Tell whose ``worker_init_fn`` seeds what the threads share with the rest of the program."""
    seeded = ProcessGenerators().leave_to_user(before, -1)
    if seeded:
        warn_user(
            f"worker_init_fn seeded {' and '.join(seeded)} in threads, which share that with the "
            f"whole program: your model's random numbers begin anew in every epoch. Leave the "
            f"seeding out, and draw from headrace.task_rng() in the dataset; or write "
            f"backend='process'."
        )


def _copied(error: BaseException) -> BaseException:
    try:
        twin = copy.copy(error)
    except Exception:  # its class wants other arguments
        twin = RuntimeError(f"{type(error).__name__}: {error}")
    return twin.with_traceback(error.__traceback__)


def _use_one_core(torch_threads: int) -> None:
    """Let torch compute in this thread alone, as in a worker process.

    The call sets two things: this thread's number, and the number that threads to come begin with.
    The second is put back by a thread that is gone at once.
    """
    torch.set_num_threads(1)
    restore = threading.Thread(target=torch.set_num_threads, args=(torch_threads,))
    restore.start()
    restore.join()


def _stack(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None:
        return "  (it has ended)"
    stack = traceback.extract_stack(frame)
    of_ours = [n for n, f in enumerate(stack) if f.filename.startswith(_ENGINE)]
    users = stack[of_ours[-1] + 1 :] if of_ours else stack
    return "".join(traceback.format_list((users or stack)[-8:])).rstrip()
