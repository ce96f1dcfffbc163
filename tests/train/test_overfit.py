"""One batch learned by heart, without a trace; an error where that does not work."""

import copy

import pytest
import torch
from torch import nn

from headrace import DataLoader, TensorDataset
from headrace.errors import TrainingError, TrainingWarning
from headrace.train import Trainer

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(X, X.sum(1, keepdim=True))


def make(lr=0.05):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr)
    return Trainer(model, nn.MSELoss(), optimizer, device="cpu", progress=False)


@pytest.mark.parametrize("seed", [None, 3])
def test_it_learns_and_leaves_no_trace(seed):
    loader = DataLoader(DATA, batch_size=8, shuffle=True, seed=seed)
    trainer = make()
    trainer.fit(loader)
    before = copy.deepcopy(trainer.model.state_dict())
    untouched = copy.deepcopy(trainer.updater.optimizer.state_dict())
    state, position = torch.get_rng_state(), loader.state_dict()
    losses = trainer.overfit_one_batch(loader)
    assert len(losses) == 100
    assert losses[-1] < 0.5 * losses[0]
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    now = trainer.updater.optimizer.state_dict()
    assert all(
        torch.equal(now["state"][k]["exp_avg"], untouched["state"][k]["exp_avg"]) for k in range(6)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert seed is None or loader.state_dict() == position
    assert all(p.grad is None for p in trainer.model.parameters())


def test_a_model_that_does_not_learn_is_told():
    with pytest.raises(TrainingError, match=r"10 steps on one batch .* learning rate first"):
        make(lr=0.0).overfit_one_batch(DataLoader(DATA, batch_size=8), steps=10)
    with pytest.raises(TrainingError, match="no batch"):
        make().overfit_one_batch([])


def test_a_model_that_learns_slowly_is_told_so():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    loader = DataLoader(TensorDataset(X, (X.sum(1) > 0).long()), batch_size=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005)
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
    with pytest.warns(TrainingWarning, match=r"larger learning rate than 0\.005, or .*steps=1000"):
        losses = trainer.overfit_one_batch(loader)
    assert 0.5 * losses[0] < losses[-1] < losses[0]


class Remembers(nn.Module):
    """Has a buffer that no checkpoint holds, and puts new tensors in its place."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x, *_):
        self.calls = self.calls + 1
        return self.layer(x) * self.scale


class Loss(Remembers):
    def forward(self, outputs, targets):
        return nn.functional.mse_loss(super().forward(outputs.expand(-1, 4)), targets)


def test_buffers_of_any_kind_and_the_loss_are_put_back():
    model, loss_fn = Remembers(), Loss()
    optimizer = torch.optim.Adam([*model.parameters(), *loss_fn.parameters()], 0.05)
    trainer = Trainer(model, loss_fn, optimizer, device="cpu", progress=False)
    tensors = [model.calls, loss_fn.calls, *model.parameters(), *loss_fn.parameters()]
    before = [tensor.detach().clone() for tensor in tensors]
    trainer.overfit_one_batch(DataLoader(DATA, batch_size=8))
    now = [model.calls, loss_fn.calls, *model.parameters(), *loss_fn.parameters()]
    assert all(a is b for a, b in zip(now, tensors, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(now, before, strict=True))
