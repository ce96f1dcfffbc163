"""One call at a time writes to a file, whatever becomes of it; and the rest of a full disk."""

import os
import random
import re
import resource
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace import InUseError, map_batches
from headrace.apply import resume

X = np.zeros((4000, 8), np.float32)
SUFFIXES = [".npy", ".safetensors", ".arrow"]


def writes(out, value, seconds=0.001, data=X):
    """A call whose rows say whose they are; it says of each batch that it comes."""

    def function(process):
        def fill(batch):
            if process is not None:
                process.say("batch")
            time.sleep(seconds)
            return torch.full((len(batch), 4), float(value))

        map_batches(fill, data, 40, out=out)

    return function


def read(path):
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(path)["output"]
    import pyarrow.ipc

    return np.array(pyarrow.ipc.open_file(path).read_all()["output"].to_pylist())


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_second_is_refused_and_changes_nothing(fork, tmp_path, monkeypatch, suffix):
    out = tmp_path / f"x{suffix}"
    first = fork(writes(out, 1))
    assert first.heard() == "batch"
    os.kill(first.pid, 19)
    before = contents(tmp_path)
    with pytest.raises(InUseError) as caught:
        writes(out, 2)(None)
    assert re.search(
        rf"^{out} is being written by process {first.pid} \(.+\) on "
        rf"{re.escape(socket.gethostname())} since [-\d]+ [:\d]+ UTC: nothing was changed\. "
        rf"Wait for its end, or write out='{tmp_path}/x-2{suffix}'\.$",
        str(caught.value),
    )
    # By another way to the same directory, too.
    (tmp_path.parent / f"link{suffix}").symlink_to(tmp_path)
    with pytest.raises(InUseError):
        writes(tmp_path.parent / f"link{suffix}" / out.name, 2)(None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InUseError):
        writes(out.name, 2)(None)
    assert contents(tmp_path) == before
    os.kill(first.pid, 18)
    assert first.end() == 0
    assert (read(out) == 1).all()
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def together(folder, seed):
    """Let three calls come at the same moment and be killed at any; the last one goes on."""
    from processes import Forked

    draw = random.Random(seed)
    out = folder / f"{seed}{draw.choice(SUFFIXES)}"
    programs = [Forked(writes(out, 1)) for _ in range(3)]
    try:
        for program in draw.sample(programs, 3):
            for _ in range(draw.randint(1, 20)):
                said = program.heard()
                if said != "batch":
                    assert not said or said.startswith(f"InUseError: {out} is being written"), said
                    break
            program.kill()
    finally:
        for program in programs:
            program.kill()
            program.end()
    writes(out, 1, seconds=0)(None)
    found = read(out)
    assert found.shape == (4000, 4)
    assert (found == 1).all()


@pytest.fixture
def always_noted(monkeypatch):
    monkeypatch.setattr(resume, "COMMIT_EVERY_S", 0)


@pytest.mark.usefixtures("always_noted")
def test_calls_that_come_at_the_same_moment_and_are_killed(tmp_path):
    for seed in range(3):
        together(tmp_path, seed)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.stress
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("always_noted")
def test_calls_that_come_at_the_same_moment_and_are_killed_100_times(tmp_path):
    for seed in range(100, 200):
        together(tmp_path, seed)
    assert len(list(tmp_path.iterdir())) == 100


def test_a_call_within_a_call_is_refused(tmp_path):
    out = tmp_path / "x.npy"

    def function(batch):
        map_batches(lambda b: b, X, out=out)

    with pytest.raises(InUseError, match="is being written by this process"):
        map_batches(function, X, out=out)
    assert list(tmp_path.iterdir()) == []


def test_other_files_of_one_directory_are_free(tmp_path):
    def function(batch):
        map_batches(lambda b: b, X, out=tmp_path / "y.npy")
        return batch

    map_batches(function, X, out=tmp_path / "x.npy")
    assert len(list(tmp_path.iterdir())) == 2


# ---- where it cannot be written


@pytest.mark.usefixtures("always_noted")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_says_how_many_rows_are_kept(fork, tmp_path, suffix):
    out = tmp_path / f"x{suffix}"

    def full(process):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        writes(out, 1, seconds=0)(None)

    said = fork(full).heard()
    found = re.search(
        r"^OSError: \[Errno 27\] File too large; ([\d,]+) rows are kept\. Make room, and call "
        rf"again: it goes on behind them: '{out}\.part'$",
        said,
    )
    assert found, said
    kept = int(found[1].replace(",", ""))
    assert 900 < kept < 1250  # of 16 bytes
    done = []
    map_batches(lambda b: done.append(len(b)) or torch.ones(len(b), 4), X, 40, out=out)
    assert sum(done) == 4000 - kept
    assert (read(out) == 1).all()


def test_a_read_only_directory_is_named(fork):
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o555)

        def read_only(process):
            with suppress(PermissionError):
                os.setuid(65534)  # root may write anywhere
            writes(Path(name) / "x.npy", 1)(None)

        said = fork(read_only).heard()
        assert said == (
            "PermissionError: [Errno 13] Permission denied; this is where the results are to be "
            f"written: '{name}/x.npy'"
        )


def test_an_error_of_the_function_is_left_as_it_is(tmp_path):
    def function(batch):
        return open(tmp_path / "not there")

    with pytest.raises(FileNotFoundError) as caught:
        map_batches(function, X, out=tmp_path / "x.npy")
    assert caught.value.filename == str(tmp_path / "not there")
    assert caught.value.strerror == "No such file or directory"
