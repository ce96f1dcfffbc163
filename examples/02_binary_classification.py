"""Two classes, 1,000 samples of 10 random features, binary cross-entropy, five epochs."""

import torch
from torch import nn

from headrace import DataLoader, TensorDataset

torch.manual_seed(0)

# 1,000 samples with 10 features each. The class follows from the features by a rule that the
# model does not know, and a little noise, so that there is something to learn.
features = torch.randn(1000, 10)
rule = torch.randn(10)
labels = (features @ rule + 0.5 * torch.randn(1000) > 0).float()  # 0. or 1., shape (1000,)

# The samples are in random order already, so the last 200 are as good as any for the test.
train = TensorDataset(features[:800], labels[:800])
test = TensorDataset(features[800:], labels[800:])
train_loader = DataLoader(train, batch_size=32, shuffle=True)
test_loader = DataLoader(test, batch_size=200)

# One output for each sample: above 0 means class 1. Such a raw score is called a logit.
model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1))
loss_function = nn.BCEWithLogitsLoss()  # binary cross-entropy; it applies the sigmoid itself
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

for epoch in range(1, 6):
    model.train()
    loss_sum = 0.0
    for x, y in train_loader:  # x: (32, 10), y: (32,)
        # (32, 1) -> (32,): the loss would compare (32, 1) with (32,) in a wrong way.
        logits = model(x).squeeze(1)
        loss = loss_function(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(y)  # weighted by samples: a last batch may be smaller

    model.eval()
    correct = 0
    with torch.no_grad():
        for x, y in test_loader:
            predicted = (model(x).squeeze(1) > 0).float()
            correct += int((predicted == y).sum())
    print(
        f"epoch {epoch}: train loss {loss_sum / len(train):.4f}, "
        f"test accuracy {correct / len(test):.3f}"
    )
