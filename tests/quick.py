"""The marker ``quick``: every test but those of the functions that ``slow.txt`` names.

``make test ARGS=--note-slow`` runs the tests and writes that list anew. A new test is quick until
then. One that stands for a room that has nothing else quick is marked so where it is written.
"""

from collections import defaultdict
from pathlib import Path

import pytest

SLOW = Path(__file__).with_name("slow.txt")
SLOW_S, ALL_S = 0.1, 1.0  # a test on the average, and all of a function


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that measures."""
    parser.addoption(
        "--note-slow", action="store_true", help="note in tests/slow.txt what takes its time"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Measure where it was asked for; in the process that hears of all tests."""
    if config.getoption("--note-slow") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Durations())


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the quick tests."""
    slow = set(SLOW.read_text(encoding="utf-8").split())
    for item in items:
        if function_of(item.nodeid) not in slow and not item.get_closest_marker("stress"):
            item.add_marker("quick")


def function_of(nodeid: str) -> str:
    """Return a test's name without what tells it from others of its function."""
    return nodeid.partition("[")[0].removeprefix("tests/")


class Durations:
    """Adds up what tests take, and writes the list."""

    def __init__(self) -> None:
        self._of: defaultdict[str, defaultdict[str, float]] = defaultdict(
            lambda: defaultdict(float)
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Hear of a test's setup, call or end."""
        self._of[function_of(report.nodeid)][report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        """Write the functions that were slow, and keep those that were not run."""
        kept = set(SLOW.read_text(encoding="utf-8").split()) - self._of.keys()
        for function, tests in self._of.items():
            total = sum(tests.values())
            if total >= SLOW_S * len(tests) or total >= ALL_S:
                kept.add(function)
        SLOW.write_text("".join(f"{name}\n" for name in sorted(kept)), encoding="utf-8")
