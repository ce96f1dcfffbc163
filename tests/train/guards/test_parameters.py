"""The optimizer against the model, and parameters that nothing reaches."""

import copy

import pytest
import torch
from torch import nn

from headrace.errors import TrainingError, TrainingWarning
from headrace.train.guards import Guards


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


class Batches:
    """A loader of which nothing is known."""


def before(model, optimizer, loss_fn=None):
    guards = Guards(model, loss_fn, optimizer)
    guards.before_fit(Batches())
    return guards


def steps(model, optimizer, losses, guards=None):
    """Train on losses (functions of the model) as the loop does."""
    guards = guards or before(model, optimizer)
    for number, loss_of in enumerate(losses, 1):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        guards.after_backward(loss, step=number, group=[None])
        optimizer.step()
    guards.after_epoch(Batches(), 1.0)


def test_an_optimizer_of_another_model():
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(TrainingError, match=r"AdamW\) holds none of the model's 4 trainable"):
        before(copy.deepcopy(model), optimizer)


def test_a_layer_replaced_after_the_optimizer_was_made():
    model = mlp()
    optimizer = sgd(model.parameters())
    model[2] = nn.Linear(8, 5)
    with pytest.warns(
        TrainingWarning, match=r"2 of 4 .* in no optimizer .* '2\.weight', '2\.bias'"
    ):
        before(model, optimizer)


def test_many_names_are_cut_short():
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(5)])
    with pytest.warns(TrainingWarning, match=r"'2\.bias' and 4 more\. Write torch\.optim\.SGD\("):
        before(model, sgd([model[0].weight]))


def test_a_loss_with_parameters_that_nobody_learns():
    loss_fn = nn.CrossEntropyLoss()
    loss_fn.temperature = nn.Parameter(torch.ones(()))
    model = mlp()
    with pytest.warns(TrainingWarning, match=r"'loss_fn\.temperature'"):
        before(model, sgd(model.parameters()), loss_fn)
    before(model, sgd([*model.parameters(), *loss_fn.parameters()]), loss_fn)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


def test_right_optimizers_hear_nothing():
    frozen = mlp()
    frozen[0].requires_grad_(False)
    before(frozen, sgd(frozen.parameters()))
    before(frozen, sgd(p for p in frozen.parameters() if p.requires_grad))
    model = mlp()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 1e-3}]
    before(model, sgd(groups))
    tied = Tied()
    before(tied, sgd(tied.parameters()))
    lazy = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    optimizer = sgd(lazy.parameters())
    before(lazy, optimizer)
    steps(lazy, optimizer, [lambda m: m(torch.rand(4, 6)).sum()])
    before(nn.Flatten(), sgd([nn.Parameter(torch.ones(1))]))  # nothing to learn in the model
    before(None, sgd(model.parameters()))


def test_two_optimizers_for_one_model():
    gan = nn.ModuleDict({"generator": mlp(), "discriminator": mlp()})
    one, other = sgd(gan["generator"].parameters()), sgd(gan["discriminator"].parameters())
    guards = before(gan, one)
    steps(gan, one, [lambda m: m["generator"](torch.rand(2, 4)).sum()], guards)
    assert other.param_groups  # alive until here


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x, head="a"):
        return getattr(self, head)(self.body(x))


def test_parameters_that_never_get_a_gradient():
    model = TwoHeads()
    x = torch.rand(2, 4)
    with pytest.warns(TrainingWarning, match=r"first 3 steps: 'b\.weight', 'b\.bias'\. The loss"):
        steps(model, sgd(model.parameters()), [lambda m: m(x).sum()] * 3)


def test_it_is_said_after_ten_steps_and_once():
    model = TwoHeads()
    optimizer = sgd(model.parameters())
    x = torch.rand(2, 4)
    guards = before(model, optimizer)
    with pytest.warns(TrainingWarning, match="first 10 steps") as caught:
        steps(model, optimizer, [lambda m: m(x).sum()] * 12, guards)
    assert len(caught) == 1
    steps(model, optimizer, [lambda m: m(x).sum()] * 12, guards)


def test_a_loss_behind_detach():
    model = mlp()
    with pytest.warns(TrainingWarning, match=r"in the first step: '0\.weight'.*detach\(\)"):
        steps(
            model,
            sgd(model.parameters()),
            [lambda m: m[2](m[1](m[0](torch.rand(2, 4))).detach()).sum()],
        )


def test_parameters_used_in_turns_or_frozen_hear_nothing():
    x = torch.rand(2, 4)
    model = TwoHeads()
    losses = [lambda m: m(x).sum()] * 5 + [lambda m: m(x, "b").sum()]
    steps(model, sgd(model.parameters()), losses)
    model = TwoHeads()
    model.b.requires_grad_(False)
    steps(model, sgd(model.parameters()), losses[:3])
    tied = Tied()
    steps(tied, sgd(tied.parameters()), [lambda m: m(torch.tensor([1, 2])).sum()] * 3)
    sparse = nn.Embedding(5, 3, sparse=True)
    steps(sparse, sgd(sparse.parameters()), [lambda m: m(torch.tensor([1, 1])).sum()] * 3)


def test_a_gradient_that_is_not_finite():
    model = nn.Linear(2, 1)
    with pytest.raises(TrainingError, match=r"not finite at step 2.* in 'weight', 'bias'\..*sqrt"):
        steps(
            model,
            sgd(model.parameters()),
            [lambda m: m(torch.ones(1, 2)).sum(), lambda m: (m(torch.ones(1, 2)) * 0).sqrt().sum()],
        )


def test_scaled_gradients_may_overflow():
    model = nn.Linear(2, 1)
    optimizer = sgd(model.parameters())
    guards = Guards(model, None, optimizer, scaled=True)
    guards.before_fit(Batches())
    steps(model, optimizer, [lambda m: (m(torch.ones(1, 2)) * 0).sqrt().sum()], guards)
    guards.check_gradients(float("inf"), step=3)


def test_a_norm_that_is_not_finite():
    model = mlp()
    guards = before(model, sgd(model.parameters()))
    guards.check_gradients(3.0, step=1)
    with pytest.raises(TrainingError, match="not finite at step 1,200"):
        guards.check_gradients(float("nan"), step=1200)
