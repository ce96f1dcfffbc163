"""``headrace bench libraries``: unmodified programs, torch's batches; what is missing is said."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from .conftest import ROOT

NEEDS = ("lightning", "transformers", "torch_geometric", "timm")


@pytest.mark.thorough
@pytest.mark.timeout(400)
def test_each_program_runs_with_both_or_is_said_to_be_missing():
    """The bench compares all values of all batches itself, and fails where they differ."""
    command = [sys.executable, "-m", "headrace.cli", "bench", "libraries", "--quick", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=380, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [report] = json.loads(done.stdout)["reports"]
    missing = [module for module in NEEDS if find_spec(module) is None]
    *programs, states = report["rows"]
    assert len(programs) == 1 + len(NEEDS) - len(missing)
    assert "state_dict()" in states["work"]
    left_out = "\n".join(line for line in report["meaning"] if line.startswith("left out"))
    assert all(module in left_out for module in missing)
    for row in programs:
        assert [system["name"] for system in row["systems"]] == ["headrace", "torch"]
        assert "equal in all values" in row["note"]
