"""A training script that is killed at any moment ends as one that ran through."""

import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from state import train


def start(folder, workers):
    command = [sys.executable, "-u", train.__file__, str(folder), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result(folder):
    assert (folder / "finished").exists()
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    return saved["losses"], saved["model"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    process = start(folder, 0)
    process.communicate(timeout=60)
    assert process.returncode == 0
    return result(folder)


def kill_somewhere(process, draw):
    """Kill it some steps on, and then at any moment of a step; say whether it was still there."""
    steps = draw.randint(1, 8)
    lines = 0
    while lines < steps and process.stdout.readline():
        lines += 1
    # Not to wait for something: the moment of the kill is to be any.
    time.sleep(draw.random() * 0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def killed_and_resumed(folder, seed, times):
    draw = random.Random(seed)
    kills = 0
    for _ in range(20 * times):
        process = start(folder, draw.randrange(3))
        if kills < times:
            kills += kill_somewhere(process, draw)
        else:
            process.communicate(timeout=60)
            assert process.returncode == 0
        if (folder / "finished").exists():
            break
    return kills, result(folder)


def assert_as(undisturbed, ours):
    losses, weights = ours
    assert losses == undisturbed[0]
    assert all(torch.equal(weights[name], undisturbed[1][name]) for name in weights)


def test_three_kills_leave_no_trace(undisturbed, tmp_path):
    kills, ours = killed_and_resumed(tmp_path, seed=1, times=3)
    assert kills == 3
    assert len(ours[0]) == 48
    assert_as(undisturbed, ours)


@pytest.mark.stress
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(2, 9))
def test_many_kills_leave_no_trace(undisturbed, tmp_path, seed):
    kills, ours = killed_and_resumed(tmp_path, seed, times=3)
    assert kills > 0
    assert_as(undisturbed, ours)
