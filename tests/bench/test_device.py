"""The bench that needs a CUDA device says so, in one line."""

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def test_without_a_device_it_says_so_in_one_line(forked_command):
    done = forked_command("bench", "device", "--quick")
    assert done.returncode == 1
    assert done.stdout == ""
    line = "headrace bench device: needs a CUDA device, and torch sees none here"
    assert done.stderr.splitlines() == [line]
