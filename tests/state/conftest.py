import pytest

from state.fresh import Fresh


@pytest.fixture(scope="session")
def fresh():
    """Run a function in a fresh process: ``fresh(function, *arguments)``."""
    server = Fresh()
    yield server
    server.close()
