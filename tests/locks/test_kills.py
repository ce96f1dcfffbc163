"""Many processes that come at the same moment and are killed at random: never two in one place."""

import fcntl
import os
import random
import signal
import time

import pytest

from headrace import InUseError
from headrace.locks import take
from processes import Forked

PROCESSES = 4


def visits(path, watch, seed):
    """Come again and again; where two are in one place, say so."""

    def function(process):
        draw = random.Random(seed)
        # A lock of another kind, that of the process, to see who else is there. Its number is
        # below that of the lock's, so that it is gone first when the process is killed.
        watching = os.open(watch, os.O_RDWR)
        process.wait()
        while True:
            try:
                lock = take(
                    path, "the place", "", (lambda _: None) if draw.random() < 0.5 else None
                )
            except InUseError:
                continue
            fcntl.lockf(watching, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where another one is
            if draw.random() < 0.2 and os.fork() == 0:
                time.sleep(0.005)  # a child that outlives the visit
                os._exit(0)
            process.say("was there")
            fcntl.lockf(watching, fcntl.LOCK_UN)
            lock.release()

    return function


def trial(folder, seed):
    """Return what went wrong, and how often a process came in."""
    draw = random.Random(seed)
    path, watch = folder / f"{seed}.lock", folder / f"{seed}.watch"
    watch.touch()
    processes = [Forked(visits(path, watch, f"{seed}-{n}")) for n in range(PROCESSES)]
    for process in processes:
        process.go_on()
    came = 0
    try:
        for process in draw.sample(processes, PROCESSES):
            # Whoever is left comes in, after any kill.
            for _ in range(draw.randint(1, 4)):
                said = process.heard()
                if said != "was there":
                    return said or "it ended", came
                came += 1
            time.sleep(draw.random() * 0.005)  # the moment of the kill is to be any
            process.kill()
    finally:
        for process in processes:
            process.kill()
            code = process.end()
            assert code in (-signal.SIGKILL, 1)
    take(path, "the place", "").release()
    return None, came


@pytest.mark.parametrize("seed", range(3))
def test_never_two_at_a_time(tmp_path, seed):
    problem, came = trial(tmp_path, seed)
    assert problem is None
    assert came >= PROCESSES


@pytest.mark.stress
@pytest.mark.timeout(600)
def test_never_two_at_a_time_in_100_rounds(tmp_path):
    for seed in range(100, 200):
        problem, _ = trial(tmp_path, seed)
        assert problem is None, seed
