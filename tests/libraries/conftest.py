"""Other libraries, as their users write them; torch's loader is the oracle.

A test is skipped where its library is not installed; ``make test-libraries`` makes an environment
that has them all, runs every file and writes the table of docs/works-with.md from what it saw.
"""

import gc
import json
import os
import random
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

import headrace
from headrace import loader as face

ROOT = Path(__file__).resolve().parents[2]
TABLE = "HEADRACE_WORKS_WITH"  # a file to write what was seen to, one JSON line a test


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "library(distribution, what, remark=''): a row of docs/works-with.md"
    )
    config.addinivalue_line("markers", "thorough: in `make test-libraries` only")
    # The libraries' own, about themselves and each other.
    for warning in ("DeprecationWarning", "FutureWarning", "PendingDeprecationWarning"):
        config.addinivalue_line("filterwarnings", f"ignore::{warning}")


def pytest_collection_modifyitems(items):
    if TABLE in os.environ:
        return
    for item in items:
        if item.get_closest_marker("thorough") is not None:
            item.add_marker(pytest.mark.skip(reason="make test-libraries"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    mark = item.get_closest_marker("library")
    place = os.environ.get(TABLE)
    if mark is not None and place and report.when == "call":
        distribution, what = mark.args
        row = {
            "library": distribution,
            "version": metadata.version(distribution),
            "what": what,
            "remark": mark.kwargs.get("remark", ""),
            "outcome": report.outcome,
        }
        with open(place, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return report


@pytest.fixture(autouse=True)
def _torch_is_back_and_no_worker_is_left():
    before = set(psutil.Process().children(recursive=True))  # other tests' helpers
    yield
    headrace.uninstall()
    assert torch.utils.data.DataLoader is face.STOCK
    gc.collect()
    now = set(psutil.Process().children(recursive=True))
    left = [process for process in now - before if _is_worker(process)]
    assert left == []


def _is_worker(process):
    try:
        words = " ".join(process.cmdline())
        return process.status() != psutil.STATUS_ZOMBIE and not any(
            helper in words for helper in ("resource_tracker", "forkserver", "ray", "loky")
        )
    except psutil.NoSuchProcess:
        return False


def seed_all(seed=0):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def plain(value):
    """Batches as something that can be compared."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict) or hasattr(value, "items"):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def with_both(program, **options):
    """Run a program with torch's loader and with ours in its place; return both results."""
    seed_all()
    theirs = program()
    with headrace.installed(**options):
        seed_all()
        ours = program()
    return theirs, ours


def assert_same(program, **options):
    """A program gives the same with torch's loader and with ours in its place."""
    theirs, ours = with_both(program, **options)
    assert plain(ours) == plain(theirs)
    return ours
