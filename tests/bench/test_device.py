"""The bench that needs a CUDA device says so, in one line."""

import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def test_without_a_device_it_says_so_in_one_line():
    command = [sys.executable, "-m", "headrace.cli", "bench", "device", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    line = "headrace bench device: needs a CUDA device, and torch sees none here"
    assert done.stderr.splitlines() == [line]
