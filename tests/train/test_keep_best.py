"""The best checkpoints: which are kept, what is never removed, and that a kill changes neither."""

import json
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from headrace import DataLoader, TensorDataset
from headrace.errors import OptionError, TrainingError
from headrace.train import Callback, Trainer
from headrace.train.best import Best
from headrace.train.checkpoint import Checkpoints, load

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(X, X.sum(1, keepdim=True))
LOSSES = [5.0, 3.0, 4.0, 1.0, math.nan, 2.0, 2.0, 6.0]
EPOCHS = len(LOSSES)


class Planned(Callback):
    """Puts planned values in the place of an epoch's own; may end the program like a kill."""

    def __init__(self, values, name="val_loss", killed=None):
        self.values, self.name, self.killed = values, name, killed

    def on_epoch_end(self, trainer, epoch, values):
        values[self.name] = self.values[epoch]

    def on_epoch_start(self, trainer, epoch):
        if epoch == self.killed:
            raise KeyboardInterrupt


def fit(folder, killed=None, planned=LOSSES, name="val_loss", epochs=None, **options):
    torch.manual_seed(1)
    model = nn.Linear(3, 1)
    trainer = Trainer(
        model, nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.01), device="cpu",
        progress=False, guards=False, callbacks=[Planned(planned, name, killed)],
    )  # fmt: skip
    loader = DataLoader(DATA, 8, shuffle=True, seed=3)
    return trainer.fit(loader, None, epochs or len(planned), folder, **options)


def epochs_in(folder):
    return [int(name[-3:]) - 1 for name in Checkpoints(folder, 1).names()]


def best_in(folder):
    return int(os.readlink(folder / "best")[-3:]) - 1


@pytest.mark.parametrize(
    ("options", "epochs", "best"),
    [
        ({"keep": 1, "keep_best": 1}, [3, 7], 3),
        ({"keep": 1, "keep_best": 2}, [3, 5, 7], 3),  # of two that are equal the earlier
        ({"keep": 2, "keep_best": 3}, [3, 5, 6, 7], 3),
        ({"keep": 1, "keep_best": 99}, [0, 1, 2, 3, 5, 6, 7], 3),
        ({"keep": 1, "keep_best": 2, "best_mode": "max"}, [0, 7], 7),
        ({"keep": 1, "keep_best": 1, "checkpoint_every_steps": 1000}, [3, 7], 3),
        ({"keep": 1, "keep_best": 1, "checkpoint_every_steps": 2}, [3, 7], 3),
    ],
)
def test_the_best_are_kept_beside_the_newest(tmp_path, options, epochs, best):
    fit(tmp_path, **options)
    assert epochs_in(tmp_path) == epochs
    assert best_in(tmp_path) == best
    model, state = load(tmp_path / "best")
    assert state["position"]["epoch"] == best + 1
    assert model.keys() == {"weight", "bias"}


@pytest.mark.parametrize("killed", range(1, EPOCHS))
@pytest.mark.parametrize("every", [None, 3])
def test_a_run_that_was_killed_keeps_the_same(tmp_path, killed, every):
    options = {"keep": 1, "keep_best": 2, "checkpoint_every_steps": every}
    fit(tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", killed, **options)
    fit(tmp_path / "parts", **options)
    whole, parts = (Checkpoints(tmp_path / name, 1).names() for name in ("whole", "parts"))
    assert whole == parts
    assert best_in(tmp_path / "whole") == best_in(tmp_path / "parts")
    for name in whole:
        ours, theirs = (load(tmp_path / kind / name)[0] for kind in ("whole", "parts"))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_kill_at_any_renaming_keeps_the_same(tmp_path, monkeypatch):
    options = {"keep": 1, "keep_best": 2, "planned": LOSSES[:5]}
    fit(tmp_path / "whole", **options)
    whole, replace, at = Checkpoints(tmp_path / "whole", 1).names(), os.replace, 0
    while True:
        left, folder = [at], tmp_path / f"parts-{at}"

        def killed(source, target, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(os, "replace", killed)
        try:
            fit(folder, **options)
            break
        except KeyboardInterrupt:
            monkeypatch.undo()
        fit(folder, **options)
        assert Checkpoints(folder, 1).names() == whole
        assert best_in(folder) == best_in(tmp_path / "whole")
        assert not list(folder.glob(".unfinished-*"))
        at += 1
    assert at > 10


def test_ranks_agree_on_the_best(torchrun, tmp_path):
    programs = torchrun(f"train_ranks({str(tmp_path)!r}, keep=1, keep_best=1, best_by='loss')", 2)
    assert [one.wait() for one in programs] == [0, 0], programs[0].errors()
    assert epochs_in(tmp_path)[-1] == 3
    assert best_in(tmp_path) in epochs_in(tmp_path)


@given(
    values=st.lists(st.floats() | st.sampled_from([1.0, 2.0]), max_size=8),
    count=st.integers(1, 9),
    sign=st.sampled_from([1, -1]),
)
@settings(max_examples=60, deadline=None)
def test_the_best_of_all_is_that_of_one_after_the_other(values, count, sign):
    best = Best(count, "f1", sign)
    every = {f"{at}": {"f1": value} for at, value in enumerate(values)}
    kept = {}
    for name, found in every.items():
        if name in best.of({**kept, name: found}):
            kept[name] = found
            kept = {old: kept[old] for old in kept if old in best.of(kept)}
    assert list(best.of(kept)) == best.of(every)
    finite = [value for value in values if math.isfinite(value)]
    wanted = sorted(finite, reverse=sign == 1)[:count]
    assert [every[name]["f1"] for name in best.of(every)] == wanted


@pytest.mark.parametrize("theirs", ["a file", "a link", "a directory"])
def test_nothing_of_others_is_removed(tmp_path, theirs):
    other = tmp_path / "other"
    fit(other, planned=[9.0], name="val_loss")
    [name] = Checkpoints(other, 1).names()
    folder = tmp_path / "mine"
    fit(folder, planned=[3.0], keep=1, keep_best=1)
    # Another run's, older than all of ours, and a file and a link of somebody's.
    os.rename(other / name, folder / "step-00000001-epoch-000")
    (folder / "notes.txt").write_text("mine")
    (folder / "best").unlink()
    (folder / "mine").mkdir()
    {
        "a file": lambda: (folder / "best").write_text("mine"),
        "a link": lambda: (folder / "best").symlink_to("mine"),
        "a directory": (folder / "best").mkdir,
    }[theirs]()
    fit(folder, planned=[3.0, 1.0, 2.0], keep=1, keep_best=1)
    assert epochs_in(folder) == [-1, 1, 2]
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "best").is_symlink() == (theirs == "a link")
    assert (folder / "best").resolve().name == ("mine" if theirs == "a link" else "best")
    assert (folder / "best").is_file() == (theirs == "a file")


def test_a_link_never_leads_nowhere(tmp_path):
    fit(tmp_path, planned=[1.0, 2.0, 3.0], keep=1, keep_best=1)
    assert best_in(tmp_path) == 0
    fit(tmp_path, planned=[1.0, 2.0, 3.0, 4.0], keep=1)  # the best are not asked for any more
    assert epochs_in(tmp_path) == [3]
    assert not os.path.lexists(tmp_path / "best")
    (tmp_path / ".unfinished-0-best").symlink_to("step-00000005-epoch-001")  # a kill's
    fit(tmp_path, planned=[1.0, 2.0, 3.0, 4.0, 2.0], keep=1, keep_best=1)
    assert not os.path.lexists(tmp_path / ".unfinished-0-best")
    assert best_in(tmp_path) == 4


def test_values_of_any_type_are_compared_as_numbers_or_not_at_all(tmp_path):
    odd = [torch.tensor(3.0), np.float32(2), "1.5", None, [1], {"a": 1}, True, 4]
    fit(tmp_path, keep=1, keep_best=2, planned=odd)
    assert epochs_in(tmp_path) == [2, 6, 7]
    [notes] = tmp_path.glob("*-epoch-003/checksums.json")
    found = json.loads(notes.read_text())
    notes.write_text(json.dumps({**found, "values": {"val_loss": ["no number"]}}))
    fit(tmp_path, keep=1, keep_best=2, planned=[*odd, 0.5])
    assert epochs_in(tmp_path) == [6, 8]


def test_another_metric_ranks_what_is_there(tmp_path):
    fit(tmp_path, planned=[0.5, 0.9, 0.7], name="val_accuracy", keep_best=1, best_by="val_accuracy")
    assert best_in(tmp_path) == 1
    values = [0.5, 0.9, 0.7, 0.6]
    fit(tmp_path, planned=values, name="val_accuracy", keep_best=1, best_by="loss")
    assert best_in(tmp_path) == 3  # the training loss falls


def test_values_that_are_all_no_number_keep_the_newest(tmp_path):
    fit(tmp_path, planned=[math.nan, math.inf], keep=1, keep_best=2)
    assert epochs_in(tmp_path) == [1]
    assert not os.path.lexists(tmp_path / "best")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"keep_best": -1}, OptionError, "no number of checkpoints"),
        ({"keep_best": True}, OptionError, "no number of checkpoints"),
        ({"keep_best": "val_loss"}, OptionError, "best_by='val_loss' for the metric"),
        ({"keep_best": 1, "best_by": "score"}, OptionError, "best_by='score', best_mode='max'"),
        ({"keep_best": 1, "best_by": None}, OptionError, "no name of a metric"),
        ({"keep_best": 1, "best_mode": "up"}, OptionError, "best_mode='min', 'max'"),
        ({"keep_best": 1, "folder": None}, OptionError, "checkpoint_dir='run', keep_best=1"),
        ({"keep_best": 1, "best_by": "val_accuracy"}, TrainingError, "an epoch has 'loss', 'val_"),
    ],
)
def test_what_cannot_be_is_told(tmp_path, options, error, words):
    options = {"folder": tmp_path, **options}
    with pytest.raises(error, match=words):
        fit(options.pop("folder"), **options)
