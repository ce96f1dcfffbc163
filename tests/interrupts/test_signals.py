"""Real SIGINTs at moments that nobody chose: the same must hold as at chosen lines."""

import os
import random
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from interrupts.trial import reference, run
from interrupts.ways import Way

WAYS = ["processes-persistent", "processes", "threads-persistent", "gather-thread", "inline"]
LONGEST_S = 0.08  # about as long as an epoch takes


def interrupted_after(delay_s: float) -> Callable[[Callable[[], Any]], None]:
    """Return what runs a program and sends this process a SIGINT in the middle of it."""

    def under(program: Callable[[], Any]) -> None:
        over = threading.Event()

        def send() -> None:
            if not over.wait(delay_s):
                os.kill(os.getpid(), signal.SIGINT)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            program()
        finally:
            over.set()
            sender.join()

    return under


def faults_of_rounds(name: str, rounds: int) -> list[str]:
    chance = random.Random(name)
    with Way(name) as way:
        want = reference(way)
        said = []
        for number in range(rounds):
            under = interrupted_after(chance.uniform(0, LONGEST_S))
            faults = run(way, want, under, go_on=number % 3 != 2)
            said += [f"round {number}: {fault}" for fault in faults]
    return said


@pytest.mark.parametrize("name", WAYS)
def test_a_real_ctrl_c_leaves_the_next_epoch_exact(name: str) -> None:
    assert faults_of_rounds(name, 2) == []


@pytest.mark.stress
@pytest.mark.parametrize("name", WAYS)
def test_sixty_real_ctrl_cs(name: str) -> None:
    assert faults_of_rounds(name, 60) == []
