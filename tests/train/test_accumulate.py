"""Accumulated gradients are those of one big batch: ragged batches, short groups, tokens."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from headrace.train import Trainer
from train.programs import numbers_of


class Gradients(torch.optim.SGD):
    """Notes the gradients of each step, and changes nothing."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.0)
        self.seen = []

    def step(self, closure=None):
        parameters = self.param_groups[0]["params"]
        self.seen.append(torch.cat([p.grad.flatten() for p in parameters]).clone())
        return super().step(closure)


def run(batches, loss_fn, accumulate, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    optimizer = Gradients(model.parameters())
    trainer = Trainer(
        model,
        loss_fn,
        optimizer,
        device="cpu",
        accumulate=accumulate,
        progress=False,
        guards=False,
        log_every=3,
        **options,
    )
    history = trainer.fit(batches, epochs=1)
    return optimizer.seen, numbers_of(history)


def classes(sizes, ignored=-100):
    generator = torch.Generator().manual_seed(sum(sizes))
    x = torch.randn(sum(sizes), 3, generator=generator, dtype=torch.float64)
    y = torch.randint(4, (sum(sizes),), generator=generator)
    y[1::3] = ignored  # every third one, never the first of all
    return x, y


LOSSES = [
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(reduction="sum"),
    nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5, 3.0]).double(), ignore_index=3),
    nn.functional.cross_entropy,
]


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    accumulate=st.integers(1, 5),
    loss_fn=st.sampled_from(LOSSES),
)
def test_a_group_has_the_gradient_of_one_big_batch(sizes, accumulate, loss_fn):
    x, y = classes(sizes)
    ignored = getattr(loss_fn, "ignore_index", -100)
    y[y == -100] = ignored
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    batches = [(a, b) for a, b in batches if (b != ignored).any()]
    assume(batches)
    groups = [batches[k : k + accumulate] for k in range(0, len(batches), accumulate)]
    big = [tuple(map(torch.cat, zip(*group, strict=True))) for group in groups]
    seen, numbers = run(batches, loss_fn, accumulate)
    wanted, wanted_numbers = run(big, loss_fn, 1)
    assert len(seen) == len(wanted) == len(groups)
    for ours, theirs in zip(seen, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    assert numbers["steps"] == pytest.approx(wanted_numbers["steps"], rel=1e-9)
    loss, wanted_loss = numbers["epochs"][0]["loss"], wanted_numbers["epochs"][0]["loss"]
    assert loss == pytest.approx(wanted_loss, rel=1e-9)


def masked_mean(outputs, targets):
    values, mask = targets
    return ((outputs - values).square() * mask[..., None]).sum() / mask.sum() / 4


def test_padded_batches_weigh_their_tokens():
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randn(n, 3, generator=generator).double() for n in (5, 1, 7, 2, 2)]

    def padded(some):
        x = nn.utils.rnn.pad_sequence(some, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones(len(s)) for s in some], batch_first=True)
        return x, (torch.ones(*x.shape[:2], 4).double(), mask)

    options = {"weight": lambda batch: batch[1][1].sum().item()}
    ours, numbers = run([padded(sequences[:2]), padded(sequences[2:])], masked_mean, 2, **options)
    theirs, wanted = run([padded(sequences)], masked_mean, 1, **options)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-9)
    assert numbers["steps"] == pytest.approx(wanted["steps"])


def test_the_epochs_loss_is_the_mean_over_samples():
    x, y = classes([4, 4, 1])
    batches = list(zip(x.split(4), y.clamp(min=0).split(4), strict=True))
    _, numbers = run(batches, nn.CrossEntropyLoss(), 1)
    weighted = sum(n * loss for n, loss in zip((4, 4, 1), numbers["steps"], strict=True)) / 9
    assert numbers["epochs"][0]["loss"] == pytest.approx(weighted, rel=1e-12)


def test_weights_that_lie_on_the_device_give_the_same():
    x, y = classes([3, 2])
    batches = list(zip(x.split([3, 2]), y.split([3, 2]), strict=True))
    counted = {"weight": lambda batch: (batch[1] != -100).sum()}  # a tensor, as from a GPU
    ours, numbers = run(batches, nn.CrossEntropyLoss(), 2, **counted)
    theirs, wanted = run(batches, nn.CrossEntropyLoss(), 2)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-9)
    assert numbers["epochs"][0]["loss"] == pytest.approx(wanted["epochs"][0]["loss"], rel=1e-6)
