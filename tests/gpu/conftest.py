"""Tests that need a CUDA device are skipped by name without one."""

from collections.abc import Iterator

import pytest
import torch

from headrace.oom import release_memory


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _memory_is_given_back() -> Iterator[None]:
    """One test's cache is not the next one's, which may allocate beside torch: streams do."""
    yield
    if torch.cuda.is_available():
        release_memory("cuda")
