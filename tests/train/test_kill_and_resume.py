"""A training that is killed at any moment ends as one that ran through, to the bit."""

import random
import signal
import time

import numpy as np
import pytest
import torch

from headrace.train.checkpoint import Checkpoints, load
from train.programs import train


def outcome(folder, epochs=3):
    """Return the weights and all that was logged, from the last checkpoint."""
    model, state = load(folder / Checkpoints(folder, 3).newest())
    assert state["position"]["epoch"] == epochs
    return model, state["optimizer"]["state"], state["history"]


def same(ours, theirs):
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, np.ndarray):
        return np.array_equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


def kill_somewhere(program, draw):
    """Kill it some steps on, and then at any moment of a step."""
    for _ in range(draw.randint(1, 6)):
        if not program.out.readline():
            break
    # Not to wait for something: the moment of the kill is to be any.
    time.sleep(draw.random() * 0.03)
    program.signal(signal.SIGKILL)
    return program.wait() == -signal.SIGKILL


@pytest.mark.parametrize("kind", ["headrace", "workers", "torch", "list"])
def test_kills_leave_no_trace(start, tmp_path, kind):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    train(undisturbed, kind)
    draw = random.Random(kind)
    kills = 0
    for _ in range(4):
        kills += kill_somewhere(start(f"train({str(killed)!r}, {kind!r})"), draw)
    last = start(f"train({str(killed)!r}, {kind!r})")
    assert last.wait() == 0, last.errors()
    assert kills > 0
    assert same(outcome(killed), outcome(undisturbed))


def test_sigterm_saves_and_leaves(start, tmp_path):
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    train(undisturbed, accumulate=1)
    program = start(f"train({str(stopped)!r}, accumulate=1, sigterm_at=4, progress=True)")
    assert program.wait() == 143
    assert "SIGTERM: saved at step" in program.errors()
    assert "Traceback" not in program.errors()
    assert Checkpoints(stopped, 3).newest() in (
        "step-00000004-epoch-000",
        "step-00000005-epoch-000",
    )
    train(stopped, accumulate=1)
    assert same(outcome(stopped), outcome(undisturbed))


def test_the_handler_of_sigterm_is_put_back(tmp_path):
    for folder in (None, tmp_path):
        before = signal.getsignal(signal.SIGTERM)
        train(folder)
        assert signal.getsignal(signal.SIGTERM) is before
