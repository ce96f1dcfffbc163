"""A rare class: 12 images of an 8 among 150 of a 3, and three ways to learn it all the same."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from headrace import (
    ClassBalancedSampler,
    DataLoader,
    StratifiedBatchSampler,
    TensorDataset,
)

torch.manual_seed(0)

# Real handwritten digits of 8 x 8 pixels. Class 0 is the digit 3, class 1 the digit 8.
digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16
threes, eights = (images[torch.tensor(digits.target == digit)] for digit in (3, 8))
threes, eights = (group[torch.randperm(len(group))] for group in (threes, eights))

# To train on: many 3, few 8. To test with: what is left of both.
train = TensorDataset(torch.cat([threes[:150], eights[:12]]), torch.tensor([0] * 150 + [1] * 12))
labels = train.tensors[1]
tests = (threes[150:], eights[12:])


def train_and_test(make_loader, loss_function):
    """Train a small model; return the shares of 3 and of 8 that it recognises."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    loader = make_loader()
    for _ in range(15):
        for x, y in loader:
            loss = loss_function(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return [float((model(x).argmax(1) == c).float().mean()) for c, x in enumerate(tests)]


def counts(make_loader):
    """Return how many of the rare class the first batches hold, and how many an epoch does."""
    torch.manual_seed(0)
    rare = [int(y.sum()) for _, y in make_loader()]
    return rare[:8], sum(rare)


plain = nn.CrossEntropyLoss()
# The rare class weighs more in the loss, by how much rarer it is.
weighted = nn.CrossEntropyLoss(weight=len(labels) / (2 * labels.bincount()))


def shuffled():
    return DataLoader(train, batch_size=16, shuffle=True)


def stratified():
    return DataLoader(train, batch_sampler=StratifiedBatchSampler(labels, batch_size=16))


def balanced():
    return DataLoader(train, batch_size=16, sampler=ClassBalancedSampler(labels))


print("how                              8s in batches              an epoch   finds 3   finds 8")
for name, make_loader, loss_function in (
    ("shuffled", shuffled, plain),
    ("stratified", stratified, plain),
    ("shuffled, weights in the loss", shuffled, weighted),
    ("stratified, weights in the loss", stratified, weighted),
    ("balanced", balanced, plain),
):
    first, total = counts(make_loader)
    found_3, found_8 = train_and_test(make_loader, loss_function)
    print(f"{name:32} {first!s:26} {total:8} {found_3:9.1%} {found_8:9.1%}")
