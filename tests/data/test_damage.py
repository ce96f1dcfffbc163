"""Damaged files of every kind that is read give headrace's errors, with the file; no bare ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data.damage import KINDS

PROGRAM = Path(__file__).with_name("damage.py")


def wrong(seed, count, *kinds):
    done = subprocess.run(
        [sys.executable, PROGRAM, str(seed), str(count), *kinds],
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.strip().rpartition("\n")[2]
    assert done.returncode == 0, f"the process ended at {last}: {done.stderr}"
    return json.loads(done.stdout)


def test_a_damaged_file_is_named():
    assert wrong(1, 60, *KINDS) == []


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_damaged_files_are_named(kind):
    assert wrong(10_000, 3_000, kind) == []
