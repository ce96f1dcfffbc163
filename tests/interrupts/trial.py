"""One interruption, and everything that must hold after it."""

import contextlib
import gc
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from headrace import memory, rng
from headrace.errors import StateError
from interrupts.ways import SAMPLES, Way

LIMIT_S = 30
FORGOTTEN = "the program did not hear of it"


class Hang(BaseException):
    """It has waited for too long."""


@contextlib.contextmanager
def no_hang(limit_s: int = LIMIT_S) -> Any:
    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit_s)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Trial:
    """The first epoch of a loader, which is interrupted somewhere, and what comes after."""

    def __init__(self, way: Way, want: list[Any], *, go_on: bool) -> None:
        self.way = way
        self.want = want  # (indices, random numbers) of the first epoch, batch by batch
        self.go_on = go_on
        self.faults: list[str] = []
        self.loader = way.loader()
        self.iterator: Any = None
        self.seen: list[Any] = []
        self.held: list[Any] = []

    def first_epoch(self) -> None:
        """Iterate once; what is interrupted."""
        if self.iterator is None:
            self.iterator = iter(self.loader)
        while True:
            try:
                batch = next(self.iterator)
            except StopIteration:
                break
            self.take(batch)
            del batch
        self.loader.state_dict()

    def take(self, batch: Any) -> None:
        """Look at a batch, and keep one of three."""
        _, indices, drawn = batch
        self.seen.append((indices.tolist(), drawn.tolist()))
        if len(self.seen) % 3 == 0:
            self.held.append(batch)
            if len(self.held) > 4:
                del self.held[0]
        self._look(batch)

    def _look(self, batch: Any) -> None:
        big, indices, _ = batch
        if not bool((big == indices[:, None]).all()):
            self.faults.append("wrong bytes")

    def after(self) -> list[str]:
        """Check all that must hold; return the faults."""
        self._check_generators()
        self._check_state()
        if self.go_on and self.iterator is not None:
            self._go_on()
        for number in range(2):
            self._another_epoch(f"epoch {number + 2}")
        for batch in self.held:
            self._look(batch)
        return sorted(set(self.faults))

    def _check_generators(self) -> None:
        if memory.current.lender is not None:
            self.faults.append("memory is lent outside a task")
            memory.lend_from(None)
        if rng.here.seed is not None:
            self.faults.append("a task's generators outside a task")
            rng.here.seed = None
        if keys() != KEYS[0]:
            self.faults.append("the program's generators were not put back")

    def _check_state(self) -> None:
        try:
            state = self.loader.state_dict()
        except StateError:
            return
        if state["status"] == "fresh":
            done = 0
        elif state["status"] == "finished":
            done = len(self.want)
        else:
            done = state["steps"] + len(state["ahead"])
        handed = len(self.seen)
        if done != handed:
            self.faults.append(f"a state of {done} steps, where {handed} were handed out")

    def _go_on(self) -> None:
        try:
            self.first_epoch()
        except RuntimeError as error:
            text = str(error)
            if "interrupted" not in text and "have been ended" not in text and "died" not in text:
                self.faults.append(f"going on: {error!r}")
            return
        except StateError as error:
            self.faults.append(f"going on to the end, and no state: {error}")
        seen, want = self.seen, self.want
        if not self.way.ordered:
            seen, want = sorted(seen), sorted(want)
        if seen != want:
            self.faults.append(f"going on: {len(seen)} of {len(want)} batches, or others")

    def _another_epoch(self, name: str) -> None:
        self.seen, got = [], []
        for batch in self.loader:
            self.take(batch)
            got += batch[1].tolist()
            del batch
        if (got if self.way.ordered else sorted(got)) != list(range(SAMPLES)):
            self.faults.append(f"{name}: {len(got)} samples, {len(set(got))} different")


KEYS: list[Any] = [None]


def keys() -> Any:
    """Return where the program's generators stand."""
    numpy_state = np.random.get_state()[1].tobytes()
    return torch.get_rng_state().numpy().tobytes(), numpy_state, random.getstate()


def of_signals() -> Any:
    """Return what handles signals here, which are masked, and whether others can write to a log."""
    free = []

    def look() -> None:
        logging.getLogger("headrace.tests")  # takes the lock that every fork takes
        free.append(True)

    other = threading.Thread(target=look, daemon=True)
    other.start()
    other.join(5)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    return handlers, signal.pthread_sigmask(signal.SIG_BLOCK, ()), bool(free)


def what_there_is() -> tuple[int, int, list[str]]:
    """Return the descriptors, children and threads of this process."""
    gc.collect()
    children = len(multiprocessing.active_children())
    ours = [t for t in threading.enumerate() if t.name.startswith("headrace")]
    for thread in ours:
        thread.join(2)  # a gathering thread is told to leave, and not waited for
    others = [thread.name for thread in ours if thread.is_alive()]
    return len(os.listdir("/proc/self/fd")), children, others


def reference(way: Way) -> list[Any]:
    """Return the first epoch as it is without an interruption."""
    trial = Trial(way, [], go_on=False)
    trial.first_epoch()
    assert not trial.faults
    return trial.seen


def run(way: Way, want: list[Any], under: Callable[[Any], Any], *, go_on: bool) -> list[str]:
    """Run one trial; ``under`` runs its first epoch and interrupts it. Return the faults."""
    before = what_there_is()
    KEYS[0] = keys()
    signals = of_signals()
    swallowed: list[Any] = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda u: swallowed.append(type(u.exc_value))
    faults: list[str] = []
    trial = Trial(way, want, go_on=go_on)
    try:
        with no_hang():
            with contextlib.suppress(KeyboardInterrupt):
                under(trial.first_epoch)
            faults = trial.after()
    except Hang:
        faults = [*trial.faults, "hang"]
    except Exception as error:
        faults = [*trial.faults, f"{type(error).__name__}: {str(error)[:120]}"]
    finally:
        sys.unraisablehook = hook
        if trial.loader._iterator is not None:
            trial.loader._iterator._shutdown_workers()
        del trial
    swallowed = [kind for kind in swallowed if not issubclass(kind, Warning)]
    if swallowed:
        faults.append(f"{FORGOTTEN}: {swallowed}")
    if of_signals() != signals:
        faults.append("signals, or the lock of logs, are not as they were")
    after = what_there_is()
    if after[0] > before[0]:
        faults.append(f"{after[0] - before[0]} descriptors left")
    if after[1:] != before[1:]:
        faults.append(f"left: {after[1:]}")
    return faults
