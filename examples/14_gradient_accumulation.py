"""Gradient accumulation: the steps of a large batch, with the memory of a small one."""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

from headrace import DataLoader, TensorDataset
from headrace.train import Trainer

digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16  # (1797, 64)
labels = torch.tensor(digits.target)
data = TensorDataset(images, labels)
loss_sum = nn.CrossEntropyLoss(reduction="sum")

torch.manual_seed(0)
start = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def train_on_large_batches(batch_size):
    """One step for each batch: what we would do with enough memory."""
    model = copy.deepcopy(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for x, y in DataLoader(data, batch_size=batch_size):
        loss = loss_sum(model(x), y) / len(y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def train_in_parts(batch_size, accumulate, weigh_by_samples=True):
    """One step for each `accumulate` batches; only one of them is in memory at a time."""
    model = copy.deepcopy(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = DataLoader(data, batch_size=batch_size)
    samples, steps = 0, 0
    for number, (x, y) in enumerate(loader, start=1):
        loss = loss_sum(model(x), y)
        if not weigh_by_samples:
            loss = loss / len(y) / accumulate  # the common mistake, see below
        loss.backward()  # adds to the gradients that are there
        samples += len(y)
        # The last group may have fewer batches, and is a step all the same.
        if number % accumulate == 0 or number == len(loader):
            if weigh_by_samples:
                for parameter in model.parameters():
                    parameter.grad /= samples  # the mean over all samples of the group
            optimizer.step()
            optimizer.zero_grad()
            samples, steps = 0, steps + 1
    return model, steps


@torch.no_grad()
def distance(a, b):
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max(float((p - q).abs().max()) for p, q in pairs)


large = train_on_large_batches(192)
parts, steps = train_in_parts(batch_size=48, accumulate=4)
print(f"{len(data)} samples: {-(-len(data) // 192)} batches of 192, or {steps} groups of 4 x 48")
print(f"largest difference between the weights: {distance(large, parts):.6f}")
assert distance(large, parts) < 1e-5

# A common mistake: the mean of each batch, divided by 4. The last group has two batches only, of
# 48 and of 21 samples: there the step is half as long, and the 21 count as much as the 48.
mistaken, _ = train_in_parts(batch_size=48, accumulate=4, weigh_by_samples=False)
print(f"with mean / 4 instead of samples:       {distance(large, mistaken):.6f}")

# The same in three lines: accumulate=4, and samples are weighed right by themselves.
model = copy.deepcopy(start)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, accumulate=4, progress=False)
trainer.fit(DataLoader(data, batch_size=48), epochs=1)
print(f"with Trainer(..., accumulate=4):        {distance(large, model.cpu()):.6f}")
