"""What all tests share: quick collections, a quiet fork, forked functions and commands."""

import gc
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from forks import Zygote, command_line
from processes import Forked

pytest_plugins = ["quick"]


def pytest_configure() -> None:
    """Programs under test take Ctrl-C, also where the tests run in a shell's background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests may take as long as a busy machine needs."""
    for item in items:
        if item.get_closest_marker("stress") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3600))


def pytest_collection_finish() -> None:
    """Collections during a test need not walk all that was imported."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """What is frozen at the end counts as leaked to some libraries, which say so."""
    gc.unfreeze()


if sys.version_info >= (3, 12):  # the fork of Python 3.11, in later versions too
    _fork = os.fork

    def _quiet_fork() -> int:
        """Fork without Python's warning of threads, of which a test runner always has some."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return _fork()

    os.fork = _quiet_fork


@pytest.fixture
def fork() -> Iterator[Callable[[Callable[[Forked], object]], Forked]]:
    """Run a function in a process of its own, which ends with the test: see `Forked`."""
    started: list[Forked] = []

    def begin(function: Callable[[Forked], object]) -> Forked:
        started.append(Forked(function))
        return started[-1]

    yield begin
    for one in started:
        if one.exit_code is None:
            one.kill()
            one.end()


@pytest.fixture(scope="session")
def _command_zygote() -> Iterator[Zygote]:
    zygote = Zygote("headrace.cli.app", "matplotlib.figure", "sklearn.datasets")
    yield zygote
    zygote.close()


@pytest.fixture
def forked_command(_command_zygote: Zygote, tmp_path: Path) -> Callable[..., CompletedProcess[str]]:
    """Run ``headrace`` with arguments, in a process of its own and an empty directory.

    Where the process must be a new interpreter, start one: it takes seconds.
    """
    return lambda *arguments: _command_zygote.run(command_line(*map(str, arguments)), tmp_path)
