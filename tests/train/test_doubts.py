"""What a training says of numbers, schedules and names that are not what they seem."""

import copy
import warnings

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim import lr_scheduler

from headrace import DataLoader, TensorDataset
from headrace.errors import TrainingError, TrainingWarning
from headrace.train import Trainer

X = torch.linspace(-1, 1, 80).reshape(20, 4)
Y = X[:, :1].clone()
BAD = X.clone()
BAD[7] = float("nan")


def make(model=None, loss_fn=None, schedule=None, **options):
    model = model or nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = schedule and schedule(optimizer)
    chosen = {"device": "cpu", "progress": False, "scheduler": scheduler, **options}
    return Trainer(model, loss_fn or nn.MSELoss(), optimizer, **chosen)


def load(x=X, y=Y, size=5):
    return DataLoader(TensorDataset(x, y), batch_size=size)


def test_a_validation_that_is_not_finite_is_said_and_compared_with_nothing():
    trainer = make(schedule=lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5))
    says = r"loss of an evaluation is nan\. It begins with batch 2\. .* \(dataset index 7\)"
    with (
        pytest.warns(TrainingWarning, match=says),
        pytest.warns(TrainingWarning, match="ReduceLROnPlateau is not stepped"),
    ):
        history = trainer.fit(load(), load(BAD), epochs=4)
    assert trainer.updater.optimizer.param_groups[0]["lr"] == 0.1
    assert all(row["val_loss"] != row["val_loss"] for row in history.epochs)


def test_a_metric_that_is_not_finite_is_said():
    trainer = make(metrics={"share": lambda outputs, _: outputs.mean() * float("nan")})
    with pytest.warns(TrainingWarning, match=r"metric 'share' of an evaluation is nan"):
        assert trainer.evaluate(load())["share"] != 0


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (lambda batch: float("nan"), "cannot weigh nan"),
        (lambda batch: torch.tensor(float("inf")), "cannot weigh inf"),
        (lambda batch: -5, "cannot weigh -5"),
        (lambda batch: None, "weight= returned a NoneType"),
        (lambda batch: batch[1], r"returned a Tensor of shape \(5, 1\)"),
    ],
)
def test_what_no_batch_can_weigh(weight, says):
    with pytest.raises(TrainingError, match=says):
        make(weight=weight).fit(load())


def test_batches_that_weigh_nothing_are_not_learnt_from():
    trainer = make(weight=lambda batch: 0)
    before = copy.deepcopy(trainer.model.state_dict())
    with (
        pytest.warns(TrainingWarning, match="weight= gave 0 for all batches of step 1"),
        pytest.raises(TrainingError, match="the 4 batches of train_loader weigh 0 in all"),
    ):
        trainer.fit(load())
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())


@pytest.mark.parametrize("hole", [slice(0, 5), slice(5, 10)])
@pytest.mark.parametrize("guards", [True, False])
def test_a_micro_batch_of_ignored_targets_counts_nothing_in_its_window(hole, guards):
    y = torch.arange(20) % 3
    y[hole] = -100
    model = nn.Linear(4, 3)
    theirs, loss_fn = copy.deepcopy(model), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1)
    losses = []
    for part in (slice(0, 10), slice(10, 20)):
        optimizer.zero_grad()
        loss = loss_fn(theirs(X[part]), y[part])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    history = make(model, loss_fn, accumulate=2, guards=guards).fit(load(y=y))
    for ours, other in zip(model.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(ours, other, atol=1e-6)
    assert [row["loss"] for row in history.steps] == pytest.approx(losses, abs=1e-6)


SCHEDULES = {
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=20),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 20),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 20),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 20),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [10, 20]),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 20),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 20),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.CosineAnnealingLR(o, 18)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, 0.99), lr_scheduler.CosineAnnealingLR(o, 20)]
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_that_is_longer_than_the_training(name):
    trainer = make(schedule=SCHEDULES[name], accumulate=4)
    with pytest.warns(TrainingWarning, match=rf"^{name} is made for 20 steps.* 2 times"):
        trainer.fit(load(), epochs=2)


def test_a_loader_without_length_is_told_at_the_end():
    class Endless:
        def __iter__(self):
            return iter(load())

    with pytest.warns(TrainingWarning, match="is made for 20 steps.*the training had 4 steps"):
        make(schedule=SCHEDULES["CosineAnnealingLR"]).fit(Endless())


def compiled(part):
    return torch.compile(part, backend="eager")


def nest(wrap):
    return nn.Sequential(wrap(nn.Linear(4, 3)), nn.Linear(3, 1))


@pytest.mark.parametrize(
    "make_model", [lambda: nest(compiled), lambda: compiled(nest(lambda m: m))]
)
def test_a_checkpoint_has_the_models_own_names(tmp_path, make_model):
    make(make_model()).fit(load(), checkpoint_dir=tmp_path)
    [path] = tmp_path.glob("*/model.safetensors")
    assert sorted(load_file(path)) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    make(nest(lambda m: m)).fit(load(), epochs=2, checkpoint_dir=tmp_path)
    make(make_model()).fit(load(), epochs=3, checkpoint_dir=tmp_path)


def test_a_checkpoint_with_the_names_of_compiled_parts_still_loads(tmp_path, monkeypatch):
    with monkeypatch.context() as as_before:
        as_before.setattr("headrace.train.loop.own_names", dict)
        make(compiled(nest(lambda m: m))).fit(load(), checkpoint_dir=tmp_path)
    assert "_orig_mod.0.bias" in load_file(next(tmp_path.glob("*/model.safetensors")))
    make(nest(lambda m: m)).fit(load(), epochs=2, checkpoint_dir=tmp_path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64])
def test_inputs_and_targets_of_another_type(dtype):
    with pytest.raises(RuntimeError, match=r"b\[0\]\.float\(\)"):
        make().fit(load(X.to(dtype)))
    with pytest.raises(RuntimeError, match=r"b\[0\]\.long\(\)"):
        make(nn.Sequential(nn.Embedding(9, 1), nn.Flatten(), nn.Linear(4, 1))).fit(load(X))


def test_indices_beyond_an_embedding():
    model = nn.Sequential(nn.Embedding(9, 1), nn.Flatten(), nn.Linear(4, 1))
    with pytest.raises(IndexError, match=r"from 20 to 20, and the Embedding '0' has 9 rows"):
        make(model).fit(load(torch.full((20, 4), 20)))


def test_metrics_are_shown_as_the_numbers_they_are():
    y = torch.arange(50) % 2
    trainer = make(nn.Linear(4, 2), nn.CrossEntropyLoss(), metrics={"a": lambda o, y: 0.94})
    assert trainer.evaluate(load(torch.randn(50, 4), y))["a"] == pytest.approx(0.94, abs=1e-15)


def test_class_numbers_are_looked_at_before_they_go_to_a_device():
    trainer = make(nn.Linear(4, 3), nn.CrossEntropyLoss())
    trainer.fit(load(y=torch.arange(20) % 3))
    good, bad = torch.arange(5) % 3, torch.tensor([0, 1, 2, 3, -100])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.guards.before_move((X[:5], good), torch.device("cuda"))
        trainer.guards.before_move((X[:5], bad), torch.device("cpu"))
    with pytest.raises(TrainingError, match="targets from 0 to 3, and the model has 3 outputs"):
        trainer.guards.before_move((X[:5], bad), torch.device("cuda"))
