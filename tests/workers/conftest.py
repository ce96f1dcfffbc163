"""What the tests of worker processes share."""

import pytest


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give workers all the time they want to leave: how they leave is tested, not how quickly."""
    monkeypatch.setattr("headrace.engine.backends.ending.GRACE_S", 20.0)
