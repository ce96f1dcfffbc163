"""Processes that are ended with the test."""

from collections.abc import Callable, Iterator

import pytest

from locks.processes import Forked


@pytest.fixture
def fork() -> Iterator[Callable[[Callable[[Forked], object]], Forked]]:
    """Run a function in a process of its own: see `Forked`."""
    started: list[Forked] = []

    def begin(function: Callable[[Forked], object]) -> Forked:
        started.append(Forked(function))
        return started[-1]

    yield begin
    for one in started:
        if one.exit_code is None:
            one.kill()
            one.end()
