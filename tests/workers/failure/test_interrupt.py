"""Ctrl-C: the program gets its KeyboardInterrupt, and nothing is left soon."""

from typing import Any

import pytest

from workers.failure.processes import wait_until, wait_until_gone

WORK = {
    "slow": "lambda i: time.sleep(0.05)",
    "stuck": "Stuck(start=8)",
}


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("persistent", [False, True])
def test_ctrl_c_in_the_loop_ends_everything(program: Any, work: str, persistent: bool) -> None:
    running = program(
        f"""
        loader = headrace.DataLoader(Numbers(1000, {WORK[work]}), 2, num_workers=2,
                                     persistent_workers={persistent})
        for step, batch in enumerate(loader):
            if step == 3:
                say(ready=True)
        """
    )
    running.hear()
    family = running.family()
    assert len(family) == 3
    running.interrupt()
    wait_until_gone(family)
    running.wait()
    assert running.exit_code != 0
    assert running.errors().count("Traceback") == 1  # the program's; the workers say nothing
    assert "KeyboardInterrupt" in running.errors()


def test_a_program_that_catches_ctrl_c_goes_on_with_another_epoch(program: Any) -> None:
    running = program(
        """
        loader = headrace.DataLoader(Numbers(40, lambda i: time.sleep(0.02)), 2, num_workers=2)
        try:
            for step, batch in enumerate(loader):
                say(step=step)
        except KeyboardInterrupt:
            say(got=len(indices_of(loader)))
        """
    )
    while running.hear()["step"] < 2:
        pass
    running.interrupt()
    while "got" not in (said := running.hear()):
        pass
    assert said["got"] == 20
    assert running.wait() == 0
    assert not running.errors()


def test_a_handler_of_the_programs_own_does_not_disturb_the_workers(program: Any) -> None:
    running = program(
        """
        signal.signal(signal.SIGINT, lambda *_: say(heard=True))
        loader = headrace.DataLoader(Numbers(60, lambda i: time.sleep(0.02)), 2, num_workers=2,
                                     worker_restarts=0)
        iterator = iter(loader)
        got = indices_of([next(iterator)])
        say(ready=True)
        say(got=got + indices_of(iterator))
        """
    )
    running.hear()
    running.interrupt()
    assert running.hear() == {"heard": True}
    assert running.hear()["got"] == [[i, i + 1] for i in range(0, 60, 2)]
    assert running.wait() == 0


def test_a_second_ctrl_c_while_the_workers_are_ended_leaves_nothing(program: Any) -> None:
    running = program(
        """
        stuck = Stuck(start=8)
        loader = headrace.DataLoader(Numbers(1000, stuck), 2, num_workers=2)
        iterator = iter(loader)
        for _ in range(4):
            next(iterator)
        wait_until(lambda: stuck.stuck() == 2, "both are stuck")
        try:
            say(ready=True)  # within: Ctrl-C may come before it returns
            next(iterator)
        except KeyboardInterrupt:
            try:
                say(caught=True)
                iterator._shutdown_workers()
            except KeyboardInterrupt:
                say(again=True)
        """
    )
    running.hear()
    family = running.family()
    running.interrupt()
    assert running.hear() == {"caught": True}
    running.interrupt()
    said = running.hear()
    assert said == {"again": True}
    wait_until_gone(family)


def test_ctrl_c_while_the_workers_start_leaves_nothing(program: Any) -> None:
    for delay_ms in (1, 5, 15, 30, 60):
        running = program(
            f"""
            say(ready=True)
            threading.Timer({delay_ms} / 1000, os.killpg, (0, signal.SIGINT)).start()
            for batch in headrace.DataLoader(Numbers(1000, Stuck()), 2, num_workers=4):
                pass
            """
        )
        running.hear()
        wait_until(lambda running=running: running.family() or True, "it has begun")
        running.wait()
        wait_until_gone(running._family)
        assert running.exit_code != 0
