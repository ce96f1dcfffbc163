"""Programs that end with workers under way end cleanly and soon, however they end."""

import gc
import os
import signal
import subprocess
import sys
import warnings
from typing import Any

import pytest

import headrace
from headrace.engine.backends import process, spare
from workers.failure.conftest import TESTS, WARNINGS
from workers.failure.processes import wait_until_gone
from workers.failure.user_code import Numbers

BEGIN = """
    stuck = Stuck(start=8)
    loader = headrace.DataLoader(Numbers(1000, stuck), 2, num_workers=2, persistent_workers={})
    iterator = iter(loader)
    for _ in range(4):
        batch = next(iterator)
    wait_until(lambda: stuck.stuck() == 2, "both are stuck")
    say(ready=True)
    sys.stdin.buffer.raw.read(1)
"""
ENDS = {
    "end of the program": ("", 0),
    "sys.exit": ("sys.exit(5)", 5),
    "os._exit": ("os._exit(6)", 6),
    "an exception": ("raise ValueError('in the loop')", 1),
    "an exception in the loop": ("for batch in loader: 1 / 0", 1),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", -signal.SIGTERM),
    "abort": ("os.abort()", -signal.SIGABRT),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("persistent", [False, True])
def test_a_program_ends_with_stuck_workers_in_a_global(
    program: Any, end: str, persistent: bool
) -> None:
    code, exit_code = ENDS[end]
    if end == "an exception in the loop":
        code = "for batch in [1]: 1 / 0"
    running = program(BEGIN.format(persistent) + "    " + code)
    running.hear()
    wait_until_gone(running.family())
    assert running.wait() == exit_code
    if exit_code in (0, 5, 6):
        assert not running.errors()


def test_several_loaders_share_the_second(program: Any) -> None:
    running = program(
        """
        stuck = Stuck()
        iterators = [
            iter(headrace.DataLoader(Numbers(100, stuck), 2, num_workers=1)) for _ in range(4)
        ]
        wait_until(lambda: stuck.stuck() == 4, "all are stuck")
        say(ready=True)
        """
    )
    running.hear()
    wait_until_gone(running.family())
    assert running.wait() == 0
    assert not running.errors()


def test_a_thread_that_iterates_does_not_hold_up_the_exit(program: Any) -> None:
    running = program(
        """
        loader = headrace.DataLoader(Numbers(10), 2, num_workers=2)
        def forever():
            while True:
                for batch in loader:
                    if batch[0, 0] == 4:
                        say(turn=True)
        threading.Thread(target=forever, daemon=True).start()
        while not said: time.sleep(0.001)
        """.replace("def forever", "said = []\n        def forever").replace(
            "say(turn=True)", "said.append(1)"
        )
    )
    family = running.family()
    assert running.wait() == 0
    wait_until_gone(family | running._family)
    assert not running.errors()


def test_an_exit_handler_of_the_program_may_still_use_a_loader(program: Any) -> None:
    running = program(
        """
        import atexit
        loader = headrace.DataLoader(Numbers(10), 2, num_workers=2)
        iterator = iter(loader)
        next(iterator)
        atexit.register(lambda: say(got=len(list(iterator))))
        """
    )
    assert running.hear() == {"got": 4}
    assert running.wait() == 0
    assert not running.errors()


def test_a_fresh_interpreter_with_everything_in_globals_exits_cleanly() -> None:
    code = (
        "import headrace, torch\n"
        "from workers.failure.user_code import Numbers\n"
        "loader = headrace.DataLoader(Numbers(100), 2, num_workers=2, persistent_workers=True)\n"
        "for batch in loader: break\n"
        "iterator = iter(headrace.DataLoader(Numbers(100), 2, num_workers=2))\n"
        "next(iterator)\n"
        "print('done')\n"
    )
    ended = subprocess.run(
        [sys.executable, *WARNINGS, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


def test_what_is_deleted_when_modules_are_gone_says_nothing(monkeypatch: Any) -> None:
    iterator = iter(headrace.DataLoader(Numbers(10), 2, num_workers=2, backend="process"))
    list(iterator)
    iterator._shutdown_workers()
    for module in (process, spare):
        for name in ("contextlib", "os"):
            monkeypatch.setattr(module, name, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pytest warns of exceptions that Python ignores
        del iterator
        gc.collect()
