"""Metrics of evaluations: what a batch counts, and what "accuracy" means."""

import pytest
import torch
from torch import nn

from headrace.errors import TrainingError
from headrace.train import Trainer


def make(model, loss_fn, **options):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    return Trainer(model, loss_fn, optimizer, device="cpu", progress=False, guards=False, **options)


def test_metrics_do_not_count_by_the_class_weights_of_the_loss():
    torch.manual_seed(0)
    loss_fn = nn.CrossEntropyLoss(torch.tensor([1.0, 50.0, 1.0]), ignore_index=2)
    model = nn.Linear(4, 3)
    inputs = torch.randn(48, 4)
    targets = torch.randint(0, 3, (48,)).sort().values  # batches of different classes
    targets[::5] = 2
    batches = [(inputs[n : n + 16], targets[n : n + 16]) for n in (0, 16, 32)]

    def accuracy(outputs, targets):
        counted = targets != 2
        right = (outputs.argmax(1) == targets) & counted
        return right.sum() / counted.sum().clamp(min=1)

    found = make(model, loss_fn, metrics={"own": "accuracy", "by_hand": accuracy}).evaluate(batches)
    right = accuracy(model(inputs), targets).item()
    assert found["own"] == pytest.approx(right)
    assert found["by_hand"] == pytest.approx(right)
    assert found["loss"] == pytest.approx(loss_fn(model(inputs), targets).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("loss_fn", "outputs", "targets", "accuracy"),
    [
        (nn.CrossEntropyLoss(), [[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], [1, 0, 0], 2 / 3),
        (lambda o, t: o.sum(), [[[9.0, 0.0], [0.0, 9.0]]], [[0, 0]], 1 / 2),
        (nn.BCEWithLogitsLoss(), [[0.4], [-0.1], [0.2]], [[1.0], [0.0], [0.0]], 2 / 3),
        (nn.BCELoss(), [0.4, 0.9], [0.0, 1.0], 1.0),
        (nn.functional.binary_cross_entropy, [0.4, 0.9], [1.0, 1.0], 1 / 2),
    ],
)
def test_accuracy_is_the_share_of_right_classes(loss_fn, outputs, targets, accuracy):
    trainer = make(nn.Identity(), loss_fn, metrics="accuracy")
    samples = torch.tensor(outputs), torch.tensor(targets)
    batches = [[part[:1] for part in samples], [part[1:] for part in samples]][: len(outputs)]
    for _ in range(2):  # it begins anew
        assert trainer.evaluate(batches)["accuracy"] == pytest.approx(accuracy)


def test_an_accuracy_that_nobody_could_tell():
    trainer = make(nn.Identity(), nn.MSELoss(), metrics="accuracy")
    batch = torch.randn(5, 1), torch.randn(5, 1)
    with pytest.raises(TrainingError, match=r"of shape \(5, 1\), .* lambda outputs, targets"):
        trainer.evaluate([batch])

    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    trainer = make(Pair(), lambda outputs, targets: outputs[0].mean(), metrics=["accuracy"])
    with pytest.raises(TrainingError, match="the outputs are of tuple"):
        trainer.evaluate([batch])


class OnDevice:
    """A weight of a batch that is a tensor, as for targets on a device."""

    def __call__(self, batch):
        return (batch[1] != -100).sum()


@pytest.mark.parametrize("options", [{}, {"weight": OnDevice()}])
def test_a_batch_whose_targets_are_all_ignored_counts_nothing(options):
    torch.manual_seed(0)
    inputs, targets = torch.randn(12, 3), torch.randint(0, 3, (12,))
    targets[4:8] = -100
    batches = [(inputs[n : n + 4], targets[n : n + 4]) for n in (0, 4, 8)]
    model = nn.Linear(3, 3)
    found = make(model, nn.CrossEntropyLoss(), metrics="accuracy", **options).evaluate(batches)
    wanted = nn.functional.cross_entropy(model(inputs), targets).item()
    assert found["loss"] == pytest.approx(wanted, rel=1e-6)
    right = (model(inputs).argmax(1) == targets)[targets != -100].float().mean().item()
    assert found["accuracy"] == pytest.approx(right)
