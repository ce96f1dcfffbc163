"""When the user's process is killed its workers are gone soon, the spare too."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from workers.failure.processes import is_running, state_of, wait_until, wait_until_gone

STUCK = """
    stuck = Stuck()
    made = []
    def begin():
        loader = headrace.DataLoader({dataset}, 2, num_workers=2, {options})
        made.append(iter(loader))
        wait_until(lambda: stuck.stuck() == 2, "both are stuck")
    {begin}
    say(ready=True)
    time.sleep(600)
"""
IN_THREAD = "thread = threading.Thread(target=begin); thread.start(); thread.join()"
CASES = {
    "stuck": {"begin": "begin()"},
    "stuck, iterable": {"begin": "begin()", "dataset": "Stream(100, stuck)"},
    "stuck, persistent": {"begin": "begin()", "options": "persistent_workers=True"},
    "stuck, begun in a thread that has ended": {"begin": IN_THREAD},
    "stuck in worker_init_fn": {
        "begin": "begin()",
        "dataset": "Numbers(100)",
        "options": "worker_init_fn=lambda w: (be_deaf(), stuck.marks.add(w), time.sleep(600))",
    },
}


@pytest.mark.parametrize("case", CASES)
def test_workers_that_are_deaf_to_all_signals_go_with_their_user(program: Any, case: str) -> None:
    values = {"dataset": "Numbers(100, stuck)", "options": "", **CASES[case]}
    running = program(STUCK.format(**values))
    running.hear()
    family = running.family()
    assert len(family) == 3
    running.signal(signal.SIGKILL)
    wait_until_gone(family)
    assert running.wait() == -signal.SIGKILL


def test_idle_and_busy_workers_go_with_their_user(program: Any) -> None:
    running = program(
        """
        iterator = iter(headrace.DataLoader(Numbers(10**6), 2, num_workers=2))
        next(iterator)
        say(ready=True)
        for batch in iterator:
            pass
        """
    )
    running.hear()
    family = running.family()
    running.signal(signal.SIGKILL)
    wait_until_gone(family)


def test_replacements_go_with_their_user(program: Any) -> None:
    running = program(
        """
        stuck = Stuck(start=20)
        iterator = iter(headrace.DataLoader(Numbers(100, stuck), 2, num_workers=2))
        next(iterator)
        for worker in iterator._workers:
            worker.kill()
        for _ in range(9):
            next(iterator)
        wait_until(lambda: stuck.stuck() == 2, "both are stuck")
        say(ready=True)
        time.sleep(600)
        """
    )
    running.hear()
    family = running.family()
    assert len(family) == 3
    running.signal(signal.SIGKILL)
    wait_until_gone(family)


def test_stopped_processes_go_with_their_user(program: Any) -> None:
    running = program(
        """
        iterator = iter(headrace.DataLoader(Numbers(100), 2, num_workers=2))
        next(iterator), next(iterator)
        say(workers=[w.pid for w in iterator._workers])
        time.sleep(600)
        """
    )
    workers = running.hear()["workers"]
    family = running.family()
    (spare,) = family - set(workers)
    wchan = Path(f"/proc/{spare}/wchan")
    wait_until(lambda: "poll" in wchan.read_text(), "it has begun: it waits for work")
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda pid=pid: state_of(pid) == "T", "it is stopped")
    running.signal(signal.SIGKILL)
    wait_until_gone(family)


def test_workers_outlive_the_thread_in_which_they_were_replaced(program: Any) -> None:
    running = program(
        """
        iterator = iter(headrace.DataLoader(Numbers(100), 2, num_workers=1, worker_restarts=1))
        next(iterator)
        def kill_and_replace():
            for pid in children_of(os.getpid()):
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda: not is_running(pid), "it is gone")
            next(iterator), next(iterator), next(iterator)
        thread = threading.Thread(target=kill_and_replace)
        thread.start()
        thread.join()
        say(got=len(list(iterator)))
        """
    )
    assert running.hear()["got"] == 46
    assert running.wait() == 0


def test_the_end_is_noticed_though_nobody_has_reaped_the_user(program: Any) -> None:
    """A zombie can still be signalled: whoever asks that way believes it alive."""
    running = program(
        """
        read, write = os.pipe()
        def late(worker):
            os.read(read, 1)
        import headrace.engine.backends.worker as engine
        leave = engine.leave_with_user
        def leave_late(*args):  # the kernel is asked when the user is gone already
            os.close(write)
            os.read(read, 1)
            leave(*args)
            be_deaf()
            time.sleep(600)
        engine.leave_with_user = leave_late
        iterator = iter(headrace.DataLoader(Numbers(100), 2, num_workers=1, worker_restarts=0))
        say(ready=True)
        time.sleep(600)
        """
    )
    running.hear()
    family = running.family()
    running.signal(signal.SIGKILL)
    wait_until(lambda: state_of(running.pid) == "Z", "it is a zombie")
    wait_until_gone(family)
    assert not any(is_running(pid) for pid in family)


def test_workers_of_a_forkserver_go_with_their_user(program: Any) -> None:
    running = program(
        """
        from workers.failure.test_parent_killed import Deaf
        if __name__ == "__main__":
            iterator = iter(headrace.DataLoader(
                Deaf(), 1, num_workers=2, multiprocessing_context="forkserver"))
            next(iterator), next(iterator)
            say(workers=[w.pid for w in iterator._workers])
            time.sleep(600)
        """
    )
    workers = running.hear(60)["workers"]
    running.family()
    running.signal(signal.SIGKILL)
    wait_until_gone(workers)
    wait_until_gone(running._family, within_s=20)  # the server itself, with torch loaded


class Deaf:
    """Sleeps from the third sample on; can be pickled."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        if index > 1:
            import time

            from workers.failure.user_code import be_deaf

            be_deaf()
            time.sleep(600)
        return index
