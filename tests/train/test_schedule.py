"""The learning rate's schedule: the training's own, as long as it, and the same after resuming."""

import warnings

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from headrace.errors import OptionError, StateError, TrainingWarning
from headrace.train import Trainer

BATCHES = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(6)]


def make(make_scheduler, **options):
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    chosen = {"device": "cpu", "progress": False, "scheduler": make_scheduler(optimizer), **options}
    return Trainer(model, nn.MSELoss(), optimizer, **chosen), optimizer


@pytest.mark.parametrize(
    ("make_scheduler", "words"),
    [
        (lambda o: lr_scheduler.StepLR, "the class StepLR, not one of"),
        (lambda o: 0.1, r"scheduler is 0\.1, not one of"),
        (
            lambda o: lr_scheduler.StepLR(torch.optim.SGD(o.param_groups[0]["params"]), 3),
            r"another optimizer.*StepLR\(optimizer",
        ),
        (lambda o: lr_scheduler.ReduceLROnPlateau(o, mode="max"), "mode='max'.*given the loss"),
    ],
)
def test_what_cannot_be_the_schedule(make_scheduler, words):
    with pytest.raises(OptionError, match=words):
        make(make_scheduler)


@pytest.mark.parametrize(
    ("make_scheduler", "words"),
    [
        (lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=5), r"every='epoch'\), or T_max=30"),
        (lambda o: lr_scheduler.StepLR(o, 3), "would be 1e-10 of what it was"),
        (lambda o: lr_scheduler.ExponentialLR(o, 0.5), "ExponentialLR is stepped after each step"),
        (lambda o: lr_scheduler.MultiStepLR(o, [1, 2], 1e-4), "would be 1e-08 of what it was"),
    ],
)
def test_a_schedule_of_epochs_that_is_stepped_with_each_batch(make_scheduler, words):
    trainer, _ = make(make_scheduler)
    with pytest.warns(TrainingWarning, match=words):
        trainer.fit(BATCHES, epochs=5)
    trainer, _ = make(make_scheduler, schedule_every="epoch")
    trainer.fit(BATCHES, epochs=5)  # a warning would be an error


def test_a_schedule_that_ends_before_the_training():
    trainer, _ = make(lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=8), accumulate=3)
    trainer.fit(BATCHES, epochs=4)
    trainer, _ = make(lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=7), accumulate=3)
    with (
        pytest.warns(TrainingWarning, match=r"8 times.*total_steps=8"),
        pytest.raises(ValueError, match="Tried to step 8 times"),
    ):
        trainer.fit(BATCHES, epochs=4)


@pytest.mark.parametrize(
    "make_scheduler",
    [
        lambda o: None,
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=30),
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=10),  # up and down on purpose
        lambda o: lr_scheduler.StepLR(o, 10),
        lambda o: lr_scheduler.ExponentialLR(o, 0.99),
        lambda o: lr_scheduler.MultiStepLR(o, [12, 24]),
        lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 1)),
        lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=30),
        lr_scheduler.ReduceLROnPlateau,
    ],
)
def test_a_schedule_that_fits(make_scheduler):
    trainer, _ = make(make_scheduler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.fit(BATCHES, epochs=5)


@pytest.mark.parametrize(
    ("first", "then", "words"),
    [
        (
            lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=6),
            lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=12),
            r"with total_steps=6, .* has total_steps=12",
        ),
        (
            lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
            lambda o: lr_scheduler.CosineAnnealingLR(o, 12),
            "T_max=6",
        ),
        (
            lambda o: lr_scheduler.StepLR(o, 3),
            lambda o: lr_scheduler.CosineAnnealingLR(o, 12),
            "with StepLR scheduler, .* has CosineAnnealingLR scheduler",
        ),
        (lambda o: lr_scheduler.StepLR(o, 3), lambda o: None, "has no scheduler"),
    ],
)
def test_a_schedule_under_way_cannot_become_another(tmp_path, first, then, words):
    make(first)[0].fit(BATCHES, epochs=1, checkpoint_dir=tmp_path)
    with pytest.raises(StateError, match=words):
        make(then)[0].fit(BATCHES, epochs=2, checkpoint_dir=tmp_path)
