"""Whole programs, from the interpreter's start on: killed, resumed, their checkpoints damaged."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

import pytest

from headrace.errors import StateError
from headrace.train.checkpoint import Checkpoints, damage, load
from train.conftest import TESTS
from train.programs import train_long
from train.test_kill_and_resume import outcome, same

KINDS = ["headrace", "workers", "torch", "torch workers"]


def started(folder, kind, epochs):
    """Start a program in a session of its own; one that hangs says where, and ends."""
    code = (
        "import faulthandler; faulthandler.dump_traceback_later(300, exit=True)\n"
        "from train.programs import train_long\n"
        f"train_long({str(folder)!r}, {kind!r}, {epochs})"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
    )


def kill_somewhere(program, draw):
    """Kill it at any moment, as it starts or within a step; say whether it was still there."""
    if draw.random() < 0.1:
        time.sleep(draw.random() * 3)  # as it starts
    else:
        for _ in range(draw.randint(1, 9)):
            if not program.stdout.readline():
                break
        time.sleep(draw.random() * 0.03)
    program.kill()
    return program.wait(60) == -signal.SIGKILL


def processes_of(session):
    """The processes of a session that are not merely waiting to be reaped."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            pid, _, rest = path.read_text().partition(" ")
            state, _, _, of, *_ = rest.rpartition(")")[2].split()
            if int(of) == session and state not in "ZX":
                found.append(int(pid))
    return found


def assert_nobody_is_left(program):
    """The workers of one that was killed end by themselves."""
    until = time.monotonic() + 60
    while left := processes_of(program.pid):
        assert time.monotonic() < until, f"{left} live on"
        time.sleep(0.02)  # nobody tells when the process of another is gone


def killed_and_resumed(folder, kind, seed, kills, epochs=30):
    draw = random.Random(seed)
    done = 0
    while done < kills:
        program = started(folder, kind, epochs)
        try:
            done += kill_somewhere(program, draw)
            assert program.returncode in (0, -signal.SIGKILL)
            if program.returncode == 0:
                break
            assert_nobody_is_left(program)
        finally:
            program.stdout.close()
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
    last = started(folder, kind, epochs)
    last.communicate()
    assert last.returncode == 0
    return done


@pytest.mark.stress
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_50_kills_leave_no_trace(tmp_path, kind):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    train_long(undisturbed, kind)
    assert killed_and_resumed(killed, kind, kind, 50) == 50
    assert same(outcome(killed, 30), outcome(undisturbed, 30))
    assert sorted(os.listdir(killed)) == sorted(os.listdir(undisturbed))


# ---- damaged checkpoints


def flip(data, draw):
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def cut(data, draw):
    del data[draw.randrange(len(data)) :]


def grow(data, draw):
    place = draw.randrange(len(data) + 1)
    data[place:place] = draw.randbytes(draw.randint(1, 20))


def zero(data, draw):
    """What a power cut leaves of a page."""
    start = draw.randrange(len(data))
    stop = min(len(data), start + 512)
    data[start:stop] = bytes(stop - start)


def swap(data, draw):
    one, other = sorted(draw.sample(range(len(data)), 2))
    data[one], data[other] = data[other], data[one]


def harm(folder, draw):
    """Damage some file of a checkpoint; return whether it may be whole all the same."""
    path = draw.choice(sorted(folder.iterdir()))
    before = path.read_bytes()
    what = draw.choice([flip, cut, grow, zero, swap, None])
    if what is None:
        path.unlink()
        return False
    data = bytearray(before)
    what(data, draw)
    path.write_bytes(data)
    # In the list of checksums a space may move, or the identity of the run change.
    return bytes(data) == before or path.name == "checksums.json"


def names_whole(checkpoints):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = checkpoints.newest()
    assert all("is damaged" in str(warning.message) for warning in caught)
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train_long(folder, "headrace", 1)
    return folder, {name: load(folder / name) for name in Checkpoints(folder, 3).names()}


def try_damages(trained, folder, seed):
    """Damage the newest checkpoints; none but one that is as it was written may be gone on from."""
    whole, written = trained
    draw = random.Random(seed)
    shutil.copytree(whole, folder)
    checkpoints = Checkpoints(folder, 3)
    *older, _ = names = checkpoints.names()
    sure = names[-1]
    for name in reversed(names[1:]):  # the oldest stays as it is
        if name != sure or draw.random() < 0.3:
            break
        if not harm(folder / name, draw) or damage(folder / name) is not None:
            sure = older.pop()
    found = names_whole(checkpoints)
    assert found == sure
    assert same(load(folder / found), written[found])
    for name in names:
        if damage(folder / name) is not None:
            with pytest.raises(StateError, match=f"{name} is damaged"):
                load(folder / name)
    return found


@pytest.mark.filterwarnings("ignore:the checkpoint .* is damaged")
@pytest.mark.parametrize("seed", range(10))
def test_a_damaged_checkpoint_is_never_gone_on_from(trained, tmp_path, seed):
    folder = tmp_path / "run"
    try_damages(trained, folder, seed)
    train_long(folder, "headrace", 1)
    assert same(load(folder / Checkpoints(folder, 3).newest()), list(trained[1].values())[-1])


@pytest.mark.stress
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore:the checkpoint .* is damaged")
def test_3000_damaged_checkpoints_are_never_gone_on_from(trained, tmp_path):
    for seed in range(3000):
        folder = tmp_path / "run"
        try_damages(trained, folder, seed)
        if seed % 20 == 0:
            train_long(folder, "headrace", 1)
            newest = Checkpoints(folder, 3).newest()
            assert same(load(folder / newest), list(trained[1].values())[-1]), seed
        shutil.rmtree(folder)
