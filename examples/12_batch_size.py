"""Batch size against speed and accuracy: the same training with four sizes, and the plot."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from headrace import TensorDataset, stratified_split
from headrace.tune import sweep_batch_sizes

torch.manual_seed(0)

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # (1797, 1, 8, 8)
labels = torch.tensor(digits.target)
train, validation = stratified_split(TensorDataset(images, labels), [0.8, 0.2], labels=labels)

model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(256, 10),
)


def make_optimizer(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


# Each size trains its own copy of the model, from the same weights, for the same three epochs.
report = sweep_batch_sizes(
    model,
    nn.CrossEntropyLoss(),
    make_optimizer,
    train,
    validation,
    batch_sizes=(8, 32, 128, 512),
    epochs=3,
)
report.plot("12_batch_size.png")

# The same number of epochs is not the same number of steps: the small size made 64 times as many.
steps = {row.batch_size: -(-len(train) // row.batch_size) * 3 for row in report.rows}
print(f"steps of each size: {steps}")
print(f"chosen: {report.best.batch_size}")
