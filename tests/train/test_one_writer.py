"""One program writes to a checkpoint folder; a run removes and replaces only what it wrote."""

import json
import os
import random
import re
import select
import shutil
import signal
import socket
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from headrace import InUseError, StateError, TrainingError
from headrace.train import Callback
from headrace.train.checkpoint import LOCK, Checkpoints, damage, load
from train.programs import make_loader, make_trainer, train
from train.test_kill_and_resume import outcome, same


def values(number):
    return {"w": torch.full((4,), float(number))}, {"step": number}


def saved(folder, step, run=None, keep=3, epoch=0):
    checkpoints = Checkpoints(folder, keep)
    checkpoints.run = run or checkpoints.run
    checkpoints.save(step, epoch, *values(step))
    return checkpoints


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---- what a killed program left


def test_a_run_that_was_killed_behind_its_last_save_has_no_more_than_it_keeps(tmp_path):
    train(tmp_path)
    [*_, last] = sorted(path.name for path in tmp_path.iterdir())
    run = json.loads((tmp_path / last / "checksums.json").read_text())["run"]
    before = {path.name for path in tmp_path.iterdir()}
    older = saved(tmp_path / "aside", 1, run).folder / "step-00000001-epoch-000"
    older.rename(tmp_path / older.name)
    (tmp_path / "aside").rmdir()
    with pytest.raises(TrainingError, match="resume='never' would mix two runs"):
        make_trainer(39).fit(make_loader("headrace"), None, 3, tmp_path, resume="never")
    assert {path.name for path in tmp_path.iterdir()} == {older.name, *before}
    train(tmp_path)  # there is nothing left to do
    assert {path.name for path in tmp_path.iterdir()} == before


# ---- what is there of another run


def test_a_step_of_another_run_is_an_error(tmp_path):
    saved(tmp_path, 5, "a")
    before = tree(tmp_path)
    with pytest.raises(StateError, match=r"holds step-00000005-epoch-000, written by another run"):
        saved(tmp_path, 5, "b")
    with pytest.raises(StateError, match="written by another run"):
        saved(tmp_path, 5, "b", epoch=1)  # the same step by another name
    assert tree(tmp_path) == before


def test_nothing_is_written_behind_a_newer_one(tmp_path):
    for step in (980, 990, 1000):
        saved(tmp_path, step, "a")
    before = tree(tmp_path)
    words = r"holds step-00001000.* written by another run, and this one is at step-00000010.*"
    with pytest.raises(StateError, match=words + r"fit\(\.\.\., resume='auto'\)"):
        saved(tmp_path, 10, "b")
    with pytest.raises(StateError, match="another program that went on with this run"):
        saved(tmp_path, 990, "a")
    assert tree(tmp_path) == before


def test_only_the_own_are_counted_and_removed(tmp_path):
    for step in (1, 2, 3):
        saved(tmp_path, step, "a")
    for step in (4, 5, 6, 7):
        saved(tmp_path, step, "b", keep=2)
    names = [int(name[5:13]) for name in Checkpoints(tmp_path, 1).names()]
    assert names == [1, 2, 3, 6, 7]


def test_who_goes_on_is_the_same_run(tmp_path):
    saved(tmp_path, 1, "a", keep=2)
    saved(tmp_path, 2, "a", keep=2)
    later = Checkpoints(tmp_path, 2)
    with later.held():
        assert later.begin() == "step-00000002-epoch-000"
        later.save(3, 0, *values(3))
    assert later.names() == ["step-00000002-epoch-000", "step-00000003-epoch-000"]


@pytest.mark.parametrize("name", ["state.json", "checksums.json"])
def test_a_damaged_one_of_another_run_is_put_aside_not_removed(tmp_path, name):
    saved(tmp_path, 5, "a")
    (tmp_path / "step-00000005-epoch-000" / name).write_text("{")
    saved(tmp_path, 5, "b")
    assert damage(tmp_path / "step-00000005-epoch-000") is None
    (aside,) = tmp_path.glob("damaged-*")
    assert (aside / name).read_text() == "{"


def test_what_another_is_writing_is_not_removed(tmp_path):
    writing, starting = Checkpoints(tmp_path, 3), Checkpoints(tmp_path, 3)
    with writing.held():
        (tmp_path / ".unfinished-1").mkdir()
        starting.clean()
        assert (tmp_path / ".unfinished-1").exists()
    starting.clean()
    assert list(tmp_path.iterdir()) == []


# ---- two programs


def test_the_second_is_refused_and_changes_nothing(start, tmp_path):
    first = start(f"train({str(tmp_path)!r}, guards=False)")
    first.out.readline()
    first.signal(signal.SIGSTOP)
    before = tree(tmp_path)
    second = start(f"failing(train, {str(tmp_path)!r})")
    said = second.out.readline()
    assert second.wait() == 0, second.errors()
    assert re.search(
        rf"InUseError: the checkpoint folder {tmp_path} is being written by process {first.pid} "
        rf"\(.+\) on {re.escape(socket.gethostname())} since [-\d]+ [:\d]+ UTC: nothing was "
        rf"changed\. Wait for its end, or write fit\(\.\.\., checkpoint_dir='{tmp_path}-2'\)",
        said,
    )
    assert tree(tmp_path) == before
    first.signal(signal.SIGCONT)
    assert first.wait() == 0
    assert LOCK not in tree(tmp_path)


def meet(running):
    """Stop the one that trains until another has been refused."""
    [first, *_] = select.select([one.out for one in running], [], [], 60)[0]
    if not first.readline():
        return  # one has ended: refused already, or there was nothing left to do
    holder = next(one for one in running if one.out is first)
    holder.signal(signal.SIGSTOP)
    next(one for one in running if one is not holder).wait()
    holder.signal(signal.SIGCONT)


def together(start, folder, draw, programs, meeting):
    """Start some at the same moment, and kill each at any; return how many were refused."""
    running = [start(f"train({str(folder)!r}, guards=False)") for _ in range(programs)]
    if meeting:  # else they may be killed before they have met
        meet(running)
    for program in draw.sample(running, programs):
        heard = select.select([one.out for one in running], [], [], 60)[0]
        for out in heard:
            out.readline()
        # Not to wait for something: the moment of the kill is to be any.
        time.sleep(draw.random() * 0.1)
        if program.exit_code is None:  # else it was waited for
            program.signal(signal.SIGKILL)
    refused = 0
    for program in running:
        if program.wait() not in (0, -signal.SIGKILL):
            assert "InUseError: the checkpoint folder" in program.errors(), program.errors()
            refused += 1
    return refused


def killed_together(start, folder, seed, rounds):
    draw = random.Random(seed)
    refused = sum(
        together(start, folder, draw, draw.randint(2, 3), meeting=number % 2 == 0)
        for number in range(rounds)
    )
    last = start(f"train({str(folder)!r}, guards=False)")
    assert last.wait() == 0, last.errors()
    return refused


def test_programs_that_come_at_the_same_moment_and_are_killed(start, tmp_path):
    train(tmp_path / "undisturbed")
    killed_together(start, tmp_path / "shared", 1, 3)
    assert same(outcome(tmp_path / "shared"), outcome(tmp_path / "undisturbed"))
    assert len(list((tmp_path / "shared").iterdir())) == 3


@pytest.mark.stress
@pytest.mark.timeout(1800)
def test_programs_that_come_at_the_same_moment_and_are_killed_100_times(start, tmp_path):
    train(tmp_path / "undisturbed")
    refused = 0
    for seed in range(20):
        shared = tmp_path / f"shared-{seed}"
        refused += killed_together(start, shared, seed, 5)
        assert same(outcome(shared), outcome(tmp_path / "undisturbed"))
        assert len(list(shared.iterdir())) == 3
    assert refused >= 20  # in the first round of each folder, for certain


def test_three_at_the_same_moment_train_once(start, tmp_path):
    train(tmp_path / "undisturbed")
    programs = [start(f"train({str(tmp_path / 'shared')!r}, guards=False)") for _ in range(3)]
    codes = [program.wait() for program in programs]
    assert 0 in codes  # and another one too, if it comes when the first has ended
    assert {*codes} <= {0, 1}
    assert same(outcome(tmp_path / "shared"), outcome(tmp_path / "undisturbed"))


def test_every_rank_of_a_second_job_is_refused(torchrun, tmp_path):
    with Checkpoints(tmp_path, 3).held():
        before = tree(tmp_path)
        said = []
        for program in torchrun(f"failing(train_ranks, {str(tmp_path)!r})", 2):
            assert program.wait() == 0, program.errors()
            said.append(program.out.read())  # torch 2.10 has a line of its own before it
        assert tree(tmp_path) == before
    for line in said:
        assert re.search(rf"InUseError: .*is being written by process {os.getpid()} \(", line)


class During(Callback):
    """Does something in mid-training."""

    def __init__(self, act):
        self.act = act

    def on_log(self, trainer, step, values):
        if step == 7:
            self.act()


def fit_with(act, folder):
    trainer = make_trainer(callbacks=[During(act)], scheduler=None)
    trainer.fit(make_loader("seeded"), epochs=1, checkpoint_dir=folder, checkpoint_every_steps=5)


def test_a_second_thread_is_refused(tmp_path):
    texts = []

    def second():
        try:
            fit_with(lambda: None, tmp_path)
        except InUseError as error:
            texts.append(str(error))

    def meanwhile():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    fit_with(meanwhile, tmp_path)
    assert "is being written by this process" in texts[0]


def test_a_folder_that_is_removed_meanwhile_is_made_and_held_again(tmp_path):
    folder = tmp_path / "run"
    fit_with(lambda: shutil.rmtree(folder), folder)
    assert len(Checkpoints(folder, 3).names()) == 2


def test_who_lost_the_folder_to_another_stops_before_it_writes(tmp_path):
    folder, other = tmp_path / "run", Checkpoints(tmp_path / "run", 3)

    def taken_over():  # a network file system has given up the lock
        (folder / LOCK).unlink()
        other._lock = other._take()
        other.save(7, 0, *values(7))

    with pytest.raises(InUseError, match=r"was taken over by this process .* end this one"):
        fit_with(taken_over, folder)
    assert other.names() == ["step-00000005-epoch-000", "step-00000007-epoch-000"]
    other._lock.release()


# ---- TensorBoard


def test_a_tensorboard_folder_has_one_writer(start, tmp_path):
    logs = str(tmp_path)
    first = start(f"train(None, logger={logs!r}, guards=False)")
    first.out.readline()
    first.signal(signal.SIGSTOP)
    second = start(f"failing(train, None, logger={logs!r})")
    said = second.out.readline()
    assert re.search(rf"InUseError: the TensorBoard folder {logs} is .* process {first.pid} ", said)
    assert f"Trainer(..., logger='{logs}-2')" in said
    assert second.wait() == 0
    first.signal(signal.SIGCONT)
    assert first.wait() == 0, first.errors()
    assert [path.name[:6] for path in tmp_path.iterdir()] == ["events"]


def test_checkpoints_and_logs_may_lie_in_one_folder(tmp_path):
    train(tmp_path, logger=tmp_path)
    train(tmp_path, logger=tmp_path)  # it is over: both go on in peace
    assert not list(tmp_path.glob("*.lock"))


# ---- a folder that cannot be written to


@pytest.mark.parametrize("limit_bytes", [250, 600, 1500])
def test_a_full_disk_is_an_error_with_path_and_what_is_whole(fork, tmp_path, limit_bytes):
    big = {"w": torch.zeros(100)}
    saved(tmp_path, 1, "a")

    def full(process):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        state = {"text": "x" * 3000, "t": torch.zeros(400 if limit_bytes == 600 else 1)}
        Checkpoints(tmp_path, 3).save(2, 0, big if limit_bytes == 250 else {}, state)

    process = fork(full)
    said = process.heard()
    path = tmp_path / "step-00000002-epoch-000"
    assert said.startswith("OSError: [Errno 27] File too large; the checkpoint was not written")
    assert "the newest whole one is step-00000001-epoch-000" in said
    assert said.endswith(f"'{path}'")
    assert process.end() == 1
    assert Checkpoints(tmp_path, 3).names() == ["step-00000001-epoch-000"]
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001-epoch-000"]


def test_every_rank_ends_where_rank_0_finds_no_room(torchrun, tmp_path):
    said = []
    for program in torchrun(f"failing(train_ranks_full, {str(tmp_path)!r})", 2):
        said += [line for line in program.out if "Error" in line]
        assert program.wait() == 0, program.errors()
    one, other = said
    assert one.startswith("OSError: [Errno 27] File too large; the checkpoint was not written")
    assert other.startswith("TrainingError: rank 0 cannot write. OSError: [Errno 27] File too")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def open_folder():
    """A folder that other users can see too."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-test-"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_folder_is_an_error_with_its_path(fork, open_folder):
    saved(open_folder, 1, "a")
    for path in open_folder.rglob("*"):
        path.chmod(0o755)  # for every user to read
    open_folder.chmod(0o555)

    def read_only(process):
        with suppress(PermissionError):
            os.setuid(65534)  # root may write anywhere
        Checkpoints(open_folder, 3).save(2, 0, *values(2))

    process = fork(read_only)
    said = process.heard()
    assert said.startswith("PermissionError: [Errno 13] Permission denied; checkpoints are to")
    assert "here; the newest whole one is step-00000001-epoch-000. Make room" in said
    assert said.endswith(f"'{open_folder}'")


def test_a_folder_that_becomes_read_only_names_what_is_whole(fork, open_folder):
    open_folder.chmod(0o777)

    def becomes(process):
        with suppress(PermissionError):
            os.setuid(65534)
        checkpoints = Checkpoints(open_folder, 3)
        with checkpoints.held():
            checkpoints.save(1, 0, *values(1))
            process.say("saved")
            process.wait()
            checkpoints.save(2, 0, *values(2))

    process = fork(becomes)
    assert process.heard() == "saved"
    open_folder.chmod(0o555)
    process.go_on()
    said = process.heard()
    assert "the checkpoint was not written; the newest whole one is step-00000001" in said
    assert said.endswith(f"'{open_folder}/step-00000002-epoch-000'")
    assert load(open_folder / "step-00000001-epoch-000")[1] == {"step": 1}
