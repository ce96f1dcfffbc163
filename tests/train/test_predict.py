"""Outputs of all batches, in order, on the CPU."""

import pytest
import torch
import torch.utils.data
from torch import nn

from headrace import DataLoader, TensorDataset
from headrace.errors import TrainingError, TrainingWarning
from headrace.train import Trainer

X = torch.randn(23, 4, generator=torch.Generator().manual_seed(0))


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        out = self.drop(self.layer(x))
        return {"out": out, "pair": (out.sum(1), len(x)), "none": None}


def make(model):
    return Trainer(
        model, nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.1), device="cpu", progress=False
    )


def test_outputs_stand_in_input_order():
    model = Several()
    outputs = make(model).predict(DataLoader(TensorDataset(X), batch_size=5))
    wanted = model.eval()(X)["out"]
    assert torch.allclose(outputs["out"], wanted)
    assert outputs["pair"][0].shape == (23,)
    assert outputs["pair"][1] == [5, 5, 5, 5, 3]
    assert outputs["none"] == [None] * 5
    assert not outputs["out"].requires_grad


@pytest.mark.parametrize("batch", [X, [X], (X, X[:, 0]), {"x": X, "y": X}, {"input": X, "z": 1}])
def test_batches_may_have_targets_or_not(batch):
    model = nn.Linear(4, 2)
    assert torch.equal(make(model).predict([batch]), model(X))


def test_the_mode_is_put_back_and_random_numbers_are_left_alone():
    model = Several()
    before = torch.get_rng_state()
    make(model).predict([X])
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_outputs_that_do_not_fit_together():
    trainer = make(nn.Linear(4, 2))
    batches = [torch.randn(2, 3, 4), torch.randn(2, 5, 4)]
    with pytest.raises(TrainingError, match=r"\(3, 2\) and \(5, 2\).*join=False"):
        trainer.predict(batches)
    assert [o.shape for o in trainer.predict(batches, join=False)] == [(2, 3, 2), (2, 5, 2)]
    with pytest.raises(TrainingError, match="no batch"):
        trainer.predict([])


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True},
        {"sampler": torch.utils.data.WeightedRandomSampler([1.0] * 23, 23)},
    ],
)
def test_an_order_that_nobody_knows_is_told(options):
    trainer = make(nn.Linear(4, 1))
    with pytest.warns(TrainingWarning, match=r"which sample .*shuffle=False"):
        trainer.predict(DataLoader(TensorDataset(X), batch_size=8, **options))
