"""Early stopping: when it stops, what it gives back, and that a resume changes neither."""

import math
import re

import pytest
import torch
from torch import nn

from headrace import DataLoader, TensorDataset
from headrace.errors import OptionError, TrainingError
from headrace.train import EMA, Callback, EarlyStopping, Trainer

EPOCHS = 30


class Planned(Callback):
    """Puts planned values in the place of an epoch's own, before the others look at them."""

    def __init__(self, planned, name="val_loss"):
        self.planned, self.name = planned, name
        self.weights = {}

    def on_epoch_end(self, trainer, epoch, values):
        values[self.name] = self.planned[epoch]
        self.weights[epoch] = trainer.model.weight.detach().clone()


class Killed(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, trainer, epoch, values):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def data(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 3, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True))


def trainer_with(*callbacks):
    torch.manual_seed(1)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return Trainer(
        model, nn.MSELoss(), optimizer, device="cpu", progress=False, guards=False,
        callbacks=callbacks,
    )  # fmt: skip


def fit(trainer, folder=None, epochs=EPOCHS):
    loader = DataLoader(data(), 8, shuffle=True, seed=3)
    return trainer.fit(loader, DataLoader(data(1), 8), epochs, folder)


NAN, INF = math.nan, math.inf
CASES = {  # values, options, the epochs that were trained, the best one
    "falls, then not": ([5, 4, 3, 3, 3.5, 4], {"patience": 3}, 6, 2),
    "better again in time": ([5, 4, 4, 3, 3, 3], {"patience": 2}, 6, 3),
    "too little counts not": ([5, 4.9, 4.85, 4.82], {"patience": 3, "min_delta": 0.5}, 4, 0),
    "no number": ([NAN, 4, NAN, INF, 5], {"patience": 3}, 5, 1),
    "never a number": ([NAN, NAN], {"patience": 2}, 2, None),
    "more is better": ([1, 2, 3, 2, 2], {"patience": 2, "mode": "max"}, 5, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_when_it_stops_and_which_weights_come_back(name):
    planned, options, trained, best = CASES[name]
    plan, stopping = Planned(planned), EarlyStopping(**options)
    trainer = trainer_with(plan, stopping)
    fit(trainer)
    assert len(plan.weights) == trained
    wanted = plan.weights[trained - 1 if best is None else best]
    assert torch.equal(trainer.model.weight, wanted)
    assert stopping.best_epoch == (-1 if best is None else best)
    assert stopping.best == (None if best is None else planned[best])


def test_the_last_weights_stay_where_that_is_asked():
    plan = Planned([1, 2, 3])
    trainer = trainer_with(plan, EarlyStopping(patience=2, restore_best=False))
    fit(trainer)
    assert torch.equal(trainer.model.weight, plan.weights[2])


def test_the_epochs_may_end_before_it_stops():
    plan = Planned([3, 1, 2])
    trainer = trainer_with(plan, EarlyStopping(patience=9))
    fit(trainer, epochs=3)
    assert torch.equal(trainer.model.weight, plan.weights[1])


def test_another_fit_begins_anew():
    stopping = EarlyStopping(patience=1)
    trainer = trainer_with(Planned([1, 2]), stopping)
    fit(trainer)
    trainer._callbacks[0].planned = [9, 8, 10]
    history = fit(trainer)
    assert stopping.best == 8
    assert len(history.epochs) == 3


PLANNED = [5, 4, 3, 3.5, 3.2, 3.1, 0]


@pytest.mark.parametrize("killed", [0, 2, 3, 5])
def test_a_run_that_was_killed_ends_where_it_would_have(tmp_path, killed):
    whole = trainer_with(Planned(PLANNED), EarlyStopping(patience=3))
    fit(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(
            trainer_with(Planned(PLANNED), EarlyStopping(patience=3), Killed(killed)),
            tmp_path / "run",
        )
    plan, stopping = Planned(PLANNED), EarlyStopping(patience=3)
    again = trainer_with(plan, stopping)
    fit(again, tmp_path / "run")
    assert torch.equal(again.model.weight, whole.model.weight)
    assert (stopping.best, stopping.best_epoch) == (3, 2)
    assert max(plan.weights, default=5) == 5


def test_a_run_that_stopped_stays_so_and_goes_on_for_more_epochs(tmp_path, capsys):
    first = trainer_with(Planned(PLANNED), EarlyStopping(patience=3))
    fit(first, tmp_path, epochs=10)
    plan = Planned([*PLANNED, 1, 1, 1, 1])
    again = trainer_with(plan, EarlyStopping(patience=3))
    again.progress = True
    fit(again, tmp_path, epochs=10)
    assert not plan.weights
    assert torch.equal(again.model.weight, first.model.weight)
    said = " ".join(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err).split())
    assert "was stopped behind epoch 6 of 10: nothing to train; with epochs=11 or more" in said
    more = trainer_with(plan, stopping := EarlyStopping(patience=3))
    fit(more, tmp_path, epochs=11)
    assert list(plan.weights) == [6, 7, 8, 9]
    assert stopping.best == 0


def test_a_call_of_stop_survives_too(tmp_path):
    class Stops(Planned):
        def on_epoch_end(self, trainer, epoch, values):
            super().on_epoch_end(trainer, epoch, values)
            if epoch == 1:
                trainer.stop()

    fit(trainer_with(Stops([1] * 9)), tmp_path, epochs=9)
    again = Stops([1] * 9)
    fit(trainer_with(again), tmp_path, epochs=9)
    assert not again.weights


def test_a_metric_that_there_is_not_is_said():
    with pytest.raises(TrainingError, match="watches 'val_accuracy', and an epoch has 'loss'"):
        fit(trainer_with(EarlyStopping("val_accuracy")))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patience": 0}, "patience=0 is no number of epochs"),
        ({"patience": 1.5}, r"patience=1\.5"),
        ({"min_delta": -1}, "min_delta=-1 is below 0"),
        ({"mode": "up"}, "mode='up'"),
        ({"metric": "val_quality"}, r"EarlyStopping\('val_quality', mode='max'\)"),
    ],
)
def test_values_that_cannot_be(options, said):
    with pytest.raises(OptionError, match=said):
        EarlyStopping(**options)


@pytest.mark.parametrize(
    ("metric", "sign"), [("loss", -1), ("val_MAE", -1), ("val_accuracy", 1), ("val_macro_f1", 1)]
)
def test_which_way_is_better_is_told_by_the_name(metric, sign):
    assert EarlyStopping(metric)._sign == sign


class Asks(Callback):
    """Asks for the end at a step, and is killed at another."""

    def __init__(self, step=0, killed=0):
        self.step, self.killed, self.epochs = step, killed, []

    def on_step_end(self, trainer, step):
        if step == self.step:
            trainer.stop()
        if step == self.killed:
            raise KeyboardInterrupt

    def on_epoch_end(self, trainer, epoch, values):
        self.epochs.append(epoch)


@pytest.mark.parametrize("killed", [8, 9, 10])
def test_a_call_of_stop_within_an_epoch_survives_a_kill_within_it(tmp_path, killed):
    def run(callback, folder, epochs=6):
        trainer = trainer_with(callback)
        loader = DataLoader(data(), 8, shuffle=True, seed=3)
        trainer.fit(loader, None, epochs, folder, checkpoint_every_steps=1)
        return trainer.model.weight

    whole = run(Asks(7), tmp_path / "whole")  # five steps are an epoch
    with pytest.raises(KeyboardInterrupt):
        run(Asks(7, killed), tmp_path / "run")
    again = Asks()
    assert torch.equal(run(again, tmp_path / "run"), whole)
    assert again.epochs == [1]  # the epoch is finished, and no other one begins
    stays = Asks()
    run(stays, tmp_path / "run")
    assert stays.epochs == []
    more = Asks()
    run(more, tmp_path / "run", epochs=8)
    assert more.epochs == [2, 3, 4, 5, 6, 7]


def test_a_stop_within_an_epoch_gives_way_to_more_epochs(tmp_path):
    for callback, epochs in ((Asks(7, 8), 3), (again := Asks(), 4)):
        loader = DataLoader(data(), 8, shuffle=True, seed=3)
        try:
            trainer_with(callback).fit(loader, None, epochs, tmp_path, checkpoint_every_steps=1)
        except KeyboardInterrupt:
            continue
    assert again.epochs == [1, 2, 3]


@pytest.mark.parametrize(
    ("before", "after", "rest", "best"),
    [
        (
            {"restore_best": False},
            {},
            [3, 4, 4],
            3,
        ),  # there are no weights of the best one: it counts not
        ({}, {"restore_best": False}, [3, 4, 4], 5),  # nobody wants those that there are
        ({}, {"mode": "max"}, [0.5, 0.4, 0.4], 3),
        ({"metric": "loss"}, {}, [3, 4, 4], 3),
    ],
)
def test_other_options_than_in_the_checkpoint(tmp_path, before, after, rest, best):
    planned = [5, 1, 2, *rest]
    fit(trainer_with(Planned(planned), EarlyStopping(**before)), tmp_path, epochs=3)
    plan, stopping = Planned(planned), EarlyStopping(**after)
    trainer = trainer_with(plan, stopping)
    fit(trainer, tmp_path, epochs=6)
    assert torch.equal(trainer.model.weight, plan.weights[best])


@pytest.mark.parametrize("killed", [3, 5])
def test_the_best_average_comes_back_after_a_resume(tmp_path, killed):
    whole = trainer_with(Planned(PLANNED), stopping := EarlyStopping(patience=3), EMA(0.9))
    fit(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(
            trainer_with(Planned(PLANNED), EarlyStopping(patience=3), EMA(0.9), Killed(killed)),
            tmp_path / "run",
        )
    again = trainer_with(plan := Planned(PLANNED), EarlyStopping(patience=3), EMA(0.9))
    fit(again, tmp_path / "run")
    assert stopping.best_epoch == 2
    assert 2 not in plan.weights  # it was trained before the kill
    assert torch.equal(again.model.weight, whole.model.weight)
