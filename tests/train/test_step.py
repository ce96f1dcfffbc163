"""The loop as functions: the same as one written by hand, to the bit."""

from functools import partial

import pytest
import torch
import torch.utils.data
from torch import nn

from headrace import DataLoader, TensorDataset
from headrace.errors import OptionError, TrainingError
from headrace.train import train_epoch, train_step

X = torch.randn(23, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randn(23, 1, generator=torch.Generator().manual_seed(1))


def parts():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 1))
    return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_an_epoch_is_that_of_the_loop_by_hand(clip_norm):
    model, optimizer = parts()
    step = partial(
        train_step, model=model, loss_fn=nn.MSELoss(), optimizer=optimizer, clip_norm=clip_norm
    )
    mean = train_epoch(DataLoader(TensorDataset(X, Y), batch_size=8), step)
    theirs, optimizer = parts()
    total = 0.0
    for x, y in torch.utils.data.DataLoader(TensorDataset(X, Y), batch_size=8):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(theirs(x), y)
        loss.backward()
        if clip_norm:
            nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm)
        optimizer.step()
        total += loss.item() * len(x)
    assert mean == pytest.approx(total / 23, rel=1e-12)  # the last batch counts for its seven
    for a, b in zip(model.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 1)

    def forward(self, a, b):
        return self.layer(a - b)


@pytest.mark.parametrize(
    "batch",
    [
        (X, X, Y),
        [(X, X), Y],
        {"a": X, "b": X, "target": Y},
        {"inputs": (X, X), "labels": Y},
        {"x": {"b": X, "a": X}, "y": Y, "id": ["not used"]},
    ],
)
def test_a_batch_is_anything_with_inputs_and_targets(batch):
    model = TwoInputs()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss = train_step(batch, model, nn.MSELoss(), optimizer)
    assert loss.ndim == 0
    assert not loss.requires_grad


@pytest.mark.parametrize("batch", [X, [X], {"a": X}, {"label": Y, "y": Y, "x": X}])
def test_a_batch_without_targets_says_what_to_write(batch):
    model, optimizer = parts()
    with pytest.raises(TrainingError, match=r"Let the dataset return \(input, target\)"):
        train_step(batch, model, nn.MSELoss(), optimizer)


def test_a_step_is_any_function_of_the_batch():
    losses = iter([1.0, torch.tensor(4.0)])
    assert train_epoch([X[:4], X[:12]], lambda _: next(losses)) == (1 * 4 + 4 * 12) / 16
    assert train_epoch([("a", 2)], lambda _: 1.0, weight=lambda batch: batch[1]) == 1.0
    with pytest.raises(TrainingError, match="no batch"):
        train_epoch([], lambda _: 1.0)
    with pytest.raises(TrainingError, match="weight=lambda batch"):
        train_epoch([("a", 2)], lambda _: 1.0)


def test_a_step_that_returns_nothing_is_told():
    with pytest.raises(TrainingError, match="Let it end with: return loss"):
        train_epoch([(torch.ones(2), torch.ones(2))], lambda batch: None)


def test_a_step_puts_the_model_into_training_mode():
    model, optimizer = parts()
    train_step((X, Y), model.eval(), nn.MSELoss(), optimizer)
    assert model.training


def test_a_device_that_is_none_is_an_error_of_ours():
    with pytest.raises(OptionError, match=r"is no device: .* Write train_epoch\("):
        train_epoch([], print, device="gpu")
