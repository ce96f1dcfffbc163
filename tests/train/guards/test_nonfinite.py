"""Where a loss that is not finite comes from: step, key path, rows, dataset indices, layer."""

import numpy as np
import pytest
import torch
from torch import nn

from headrace import DataLoader, TensorDataset
from headrace.errors import TrainingError, TrainingWarning
from headrace.train import Trainer
from headrace.train.guards import Guards

NAN = float("nan")


def check(model, batch, indices=None, loss=NAN, **options):
    guards = Guards(model, None, None, **options)
    with pytest.raises(TrainingError) as caught:
        guards.check_loss(loss, step=1200, group=[batch], indices=indices and [indices])
    return str(caught.value)


def test_a_finite_loss_is_let_be():
    Guards(None, None, None).check_loss(1e30, step=1, group=None)


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
def test_data_by_key_path_row_and_dataset_index(value):
    x = torch.rand(6, 3)
    x[[2, 4], 1] = value
    text = check(None, {"a": {"x": x}, "y": torch.ones(6).long()}, list(range(100, 106)), value)
    assert f"the loss is {value} at step 1,200" in text
    assert f"holds {'nan' if value != value else 'inf'}: batch['a']['x']" in text
    assert "rows 2, 4 of the batch (dataset indices 102, 104)" in text


def test_many_rows_are_cut_short():
    text = check(None, (torch.ones(3), torch.full((9, 2), NAN)))
    assert "batch[1], rows 0, 1, 2, 3, 4 and 4 more of the batch. Leave" in text


def test_indices_that_do_not_fit_are_not_shown():
    assert "dataset" not in check(None, torch.full((3,), NAN), [7]).partition("Leave")[0]


def test_the_first_layer_that_makes_it():
    class Log(nn.Module):
        def forward(self, x):
            return torch.log(x - 2)

    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Sigmoid(), Log()), nn.Linear(4, 1))
    text = check(model, torch.rand(5, 3))
    assert "the first layer that makes it is '1.1' (Log)" in text
    assert not any(module._forward_hooks for module in model.modules())


def test_the_search_leaves_buffers_and_random_states_as_they_were():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch, random = torch.rand(5, 3), torch.get_rng_state()
    check(model, batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_weights_that_are_not_finite():
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.bias.fill_(float("inf"))
    assert "the weights are not ('bias'): the step before made them so" in check(
        model, torch.rand(2, 3)
    )


def test_the_loss_function_itself():
    assert "the loss function makes it" in check(nn.Linear(3, 1), torch.rand(2, 3))


def test_outputs_that_grow_without_bounds():
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.fill_(1e25)
    assert "the training diverges" in check(model, torch.rand(2, 3), loss=float("inf"))


def test_a_batch_that_only_the_loop_knows_how_to_give():
    model = nn.Bilinear(2, 2, 1)
    text = check(model, [torch.rand(3, 2), torch.rand(3, 2)], forward=lambda b: model(*b))
    assert "the loss function makes it" in text


def test_after_the_optimizer_has_stepped_no_layer_is_guessed():
    guards = Guards(nn.Linear(3, 1), None, None)
    with pytest.raises(TrainingError, match=r"log_every=1\) to find it"):
        guards.check_loss(NAN, step=1, group=[torch.rand(2, 3)], updated=True)


def test_with_scaled_gradients_it_is_a_warning_once():
    guards = Guards(nn.Linear(3, 1), None, None, scaled=True)
    with pytest.warns(TrainingWarning, match="the loss is nan"):
        guards.check_loss(NAN, step=1, group=[torch.rand(2, 3)])
    guards.check_loss(NAN, step=2, group=[torch.rand(2, 3)])


# ---- through the Trainer


def fit(model, x, **options):
    data = TensorDataset(x, torch.zeros(len(x), dtype=torch.int64))
    loader = DataLoader(data, batch_size=8, shuffle=True, seed=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Trainer(model, nn.CrossEntropyLoss(), optimizer, progress=False, **options).fit(loader)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_trainer_names_the_sample(accumulate):
    x = torch.rand(256, 4)
    x[77, 2] = NAN
    with pytest.raises(TrainingError) as caught:
        fit(nn.Linear(4, 2), x, accumulate=accumulate)
    order = [i for b in DataLoader(np.arange(256), 8, True, seed=3) for i in b.tolist()]
    step = order.index(77) // (8 * accumulate) + 1
    assert f"at step {step}. The data holds nan: batch[0], row" in str(caught.value)
    assert "(dataset index 77)" in str(caught.value)


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"log_every": 1}])
def test_the_trainer_finds_the_layer_late_in_the_training(options):
    class Late(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x if self.calls < 20 else torch.log(x * 0 - 1)

    with pytest.raises(TrainingError, match=r"at step 20\. .* is '1' \(Late\)"):
        fit(nn.Sequential(nn.Linear(4, 3), Late(), nn.Linear(3, 2)), torch.rand(256, 4), **options)


def test_the_smoke_test_is_guarded_too():
    model, other = nn.Linear(4, 2), nn.Linear(4, 2)
    data = TensorDataset(torch.full((8, 4), NAN), torch.zeros(8).long())
    for learnt, says in [(model, r"dataset indices 0, 1, 2, 3, 4 and 3 more"), (other, "none of")]:
        optimizer = torch.optim.SGD(learnt.parameters(), 0.1)
        trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, progress=False)
        with pytest.raises(TrainingError, match=says):
            trainer.overfit_one_batch(DataLoader(data, batch_size=8))


def test_a_class_number_that_comes_late():
    data = TensorDataset(torch.rand(80, 4), torch.tensor([0] * 79 + [5]))
    model = nn.Linear(4, 2)
    trainer = Trainer(
        model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1), progress=False
    )
    with pytest.raises(TrainingError, match="targets from 0 to 5, and the model has 2 outputs"):
        trainer.fit(DataLoader(data, batch_size=8))


def test_errors_of_a_loss_that_are_no_mistake_of_classes_stay_as_they_are():
    calls = []

    def loss_fn(outputs, targets):
        calls.append(1)
        if len(calls) > 5:
            raise ValueError("mine")
        return outputs.mean()

    model = nn.Linear(4, 2)
    trainer = Trainer(model, loss_fn, torch.optim.SGD(model.parameters(), 0.1), progress=False)
    data = TensorDataset(torch.rand(80, 4), torch.zeros(80))
    with pytest.raises(ValueError, match=r"^mine$"):
        trainer.fit(DataLoader(data, batch_size=8))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_whose_targets_are_all_ignored(accumulate):
    x, y = torch.randn(24, 3), torch.zeros(24).long()
    y[: 8 * accumulate] = 7
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss_fn = nn.CrossEntropyLoss(ignore_index=7)
    trainer = Trainer(model, loss_fn, optimizer, device="cpu", accumulate=accumulate)
    with pytest.raises(TrainingError, match="All targets of the step are 7 and so left out"):
        trainer.fit(DataLoader(TensorDataset(x, y), batch_size=8))
