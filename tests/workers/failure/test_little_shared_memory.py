"""Containers give /dev/shm 64 MiB or less: batches between processes do not come through it."""

import shutil
import subprocess
import sys

import pytest

PROGRAM = """
import os, torch, headrace
class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        return torch.full((64, 1024), float(index))

assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize <= 65536
for backend in ["process", "thread"]:
    loader = headrace.DataLoader(Images(), 8, num_workers=2, backend=backend)
    kept = list(loader)  # 16 MiB: 256 times what /dev/shm has
    assert [b[:, 0, 0].tolist() for b in kept] == [
        [float(i) for i in range(s, s + 8)] for s in range(0, 64, 8)
    ]
print("whole")
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_a_tiny_dev_shm_is_enough() -> None:
    """In a mount namespace of its own, where /dev/shm has 64 KiB."""
    mount = "mount -t tmpfs -o size=64k none /dev/shm || exit 77; "
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount + 'exec "$0" -c "$1"', sys.executable, PROGRAM],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this user may not mount: run it as root")
    assert done.stdout == "whole\n", done.stderr
