"""JAX: batches of NumPy arrays, in a process of its own."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from .conftest import ROOT

PROGRAM = Path(__file__).with_name("batches_in_jax.py")


@pytest.mark.skipif(find_spec("jax") is None, reason="jax is not installed")
@pytest.mark.library("jax", "numpy_collate: without a copy, workers, kept batches stay")
def test_batches_in_jax():
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", PROGRAM],
        capture_output=True, text=True, timeout=110, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all of it holds\n"
