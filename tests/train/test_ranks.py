"""Two and four processes learn what one does: losses, weights, metrics; each sample once."""

import json
import signal

import pytest
import torch

from headrace.train.checkpoint import Checkpoints, load


def results(folder, programs, read=True):
    for one in programs:
        assert one.wait() == 0, one.errors()
    if not read:
        return None
    size = len(programs)
    return [json.loads((folder / f"{size}-{rank}.json").read_text()) for rank in range(size)]


def close(ours, theirs):
    """Compare nested lists and dicts of numbers to 1e-5."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        return all(close(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(close, ours, theirs))
    return abs(ours - theirs) <= 1e-5 * max(1.0, abs(theirs))


# The last global batch: of 61 samples dealt out unevenly; of 62 only two of four ranks get one,
# of 57 one of two.
@pytest.mark.parametrize(
    ("n", "batch_size", "accumulate", "sizes", "decay"),
    [(61, 8, 1, (2, 4), None), (62, 4, 3, (4,), None), (57, 2, 1, (2,), 0.9)],
)
def test_many_processes_learn_what_one_does(
    start, torchrun, tmp_path, n, batch_size, accumulate, sizes, decay
):
    options = f"accumulate={accumulate}, decay={decay}"
    call = f"learn({str(tmp_path)!r}, {n}, {batch_size}, {options})"
    [alone] = results(tmp_path, [start(call)])
    for size in sizes:
        for ours in results(tmp_path, torchrun(call, size)):
            assert len(ours["steps"]) == len(alone["steps"])
            assert close(ours, alone)


@pytest.mark.parametrize(
    ("loader", "text"),
    [
        ("DataLoader(Numbers(), batch_size=4)", "all of the data"),
        ("torch.utils.data.DataLoader(Numbers(), batch_size=4)", "all of the data"),
        ("DataLoader(Numbers(), batch_size=4, shard=(0, 3))", "one of 3 parts"),
    ],
)
def test_a_loader_that_is_not_divided_is_refused(torchrun, loader, text):
    programs = torchrun(f"failing(make_trainer().fit, {loader})", 2)
    for one in programs:
        assert one.wait() == 0, one.errors()
        said = one.out.read()
        assert "TrainingError: train_loader gives each of the 2 ranks" in said
        assert text in said
        assert "shard='auto'" in said


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("validation", "val_loader is ['none', 'given'] on ranks 0 to 1"),
        ("epochs", "epochs is [1, 2] on ranks 0 to 1"),
        ("divided", "train_loader gives each of the 2 ranks all of the data"),
    ],
)
def test_a_rank_that_wants_something_else_fails_on_all(torchrun, what, text):
    for one in torchrun(f"fit_differing({what!r})", 2):
        assert one.wait() == 0, one.errors()
        said = one.out.read()
        assert "TrainingError: " in said
        assert text in said


def test_killed_ranks_go_on_where_they_were(torchrun, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    results(None, torchrun(f"train_ranks({str(whole)!r})", 2), read=False)
    programs = torchrun(f"train_ranks({str(killed)!r})", 2)
    for _ in range(5):
        programs[0].out.readline()
    for one in programs:
        one.signal(signal.SIGKILL)
    for one in programs:
        one.wait()
    results(None, torchrun(f"train_ranks({str(killed)!r})", 2), read=False)
    ours, theirs = (load(f / Checkpoints(f, 3).newest()) for f in (killed, whole))
    assert all(torch.equal(ours[0][name], theirs[0][name]) for name in theirs[0])
    assert ours[1]["history"] == theirs[1]["history"]


def test_sigterm_to_one_rank_saves_and_leaves_on_all(torchrun, tmp_path):
    programs = torchrun(f"train_ranks({str(tmp_path)!r}, sigterm_at=3)", 2)
    assert [one.wait() for one in programs] == [143, 143]
    assert Checkpoints(tmp_path, 3).newest() in (
        "step-00000003-epoch-000",
        "step-00000004-epoch-000",
    )


def test_a_stop_that_one_rank_asked_for_survives_on_all(torchrun, tmp_path):
    programs = torchrun(f"train_ranks({str(tmp_path)!r}, sigterm_at=10, stop_at=9)", 2)
    assert [one.wait() for one in programs] == [143, 143]
    for _ in range(2):  # the epoch of seven steps is finished; then there is nothing to train
        results(None, torchrun(f"train_ranks({str(tmp_path)!r})", 2), read=False)
        assert Checkpoints(tmp_path, 3).newest() == "step-00000014-epoch-002"


def test_the_group_and_its_threads_end_before_python_does(torchrun, tmp_path):
    programs = torchrun(f"trainer = threads_at_exit({str(tmp_path)!r})", 2)
    for one in programs:
        assert one.wait() == 0, one.errors()
        assert one.out.read().splitlines()[-2:] == ["True", "[]"]


def test_two_processes_look_for_a_learning_rate_as_one_does(start, torchrun, tmp_path):
    call = f"look_for_a_rate({str(tmp_path)!r}, 60, 8)"
    [alone] = results(tmp_path, [start(call)])
    for ours in results(tmp_path, torchrun(call, 2)):
        assert len(ours) == len(alone) < 30  # both end early
        assert close(ours, alone)
