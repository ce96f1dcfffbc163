"""What all tests share: the quiet fork of Python 3.11, in later versions too; forked functions."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator

import pytest

from processes import Forked

if sys.version_info >= (3, 12):
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
