"""Stopped behind any step, a training goes on to the same bit: each kind of loader, each place."""

import random
from functools import partial

import numpy as np
import pytest
import torch

from headrace import DataLoader
from headrace.train import Callback
from train.programs import Numbers, make_loader, make_trainer, numbers_of


class Stop(Callback):
    def __init__(self, at):
        self.at = at

    def on_log(self, trainer, step, values):
        if step == self.at:
            raise KeyboardInterrupt

    def on_epoch_end(self, trainer, epoch, values):
        if self.at == "validated":
            raise KeyboardInterrupt


VALIDATIONS = {
    "unseeded": partial(DataLoader, seed=None),
    "seeded": partial(DataLoader, seed=1),
    "shuffled": partial(DataLoader, seed=1, shuffle=True),
    "torch": torch.utils.data.DataLoader,
}


def run(folder, kind, stop=0, validation="unseeded"):
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    trainer = make_trainer(14, accumulate=2, callbacks=[Stop(stop)])
    validation = VALIDATIONS[validation](Numbers(7), batch_size=3)
    try:
        history = trainer.fit(
            make_loader(kind), validation, 2, folder, checkpoint_every_steps=1, keep=1
        )
    except KeyboardInterrupt:
        return None
    return numbers_of(history), [p.tolist() for p in trainer.model.parameters()]


@pytest.mark.parametrize("kind", ["headrace", "seeded", "torch", "list"])
def test_any_step_may_be_the_last(tmp_path, kind):
    whole = run(tmp_path / "whole", kind)
    # An epoch has 7 steps of 2, 2, ... 1 batches: within it, at its end, at the next one's start.
    for stop in (2, 5, 7, "validated", 8, 9, 14):
        folder = tmp_path / str(stop)
        assert run(folder, kind, stop) is None
        torch.manual_seed(99)
        assert run(folder, kind) == whole


@pytest.mark.parametrize("validation", sorted(set(VALIDATIONS) - {"unseeded"}))
@pytest.mark.parametrize("kind", ["headrace", "seeded"])
@pytest.mark.filterwarnings("ignore:the validation loader shuffles")
def test_a_validation_leaves_the_random_numbers_of_the_model_alone(tmp_path, kind, validation):
    """The model has a dropout: what a validation changed shows in the epoch behind it."""
    whole = run(tmp_path / "whole", kind, validation=validation)
    for stop in (5, 7, "validated", 9):
        folder = tmp_path / str(stop)
        assert run(folder, kind, stop, validation) is None
        torch.manual_seed(99)
        assert run(folder, kind, validation=validation) == whole
