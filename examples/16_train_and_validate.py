"""Train and validation split: the validation loss tells when the model stops to learn."""

import copy

import torch
from sklearn.datasets import load_wine
from torch import nn

from headrace import DataLoader, TensorDataset, stratified_split

torch.manual_seed(0)

# 178 wines: 13 chemical measurements each, and which of three growers made it.
wine = load_wine()
features = torch.tensor(wine.data, dtype=torch.float32)
labels = torch.tensor(wine.target)
data = TensorDataset(features, labels)

# 60 % to learn from, 20 % to decide with, 20 % for the final answer, growers in proportion.
train, validation, test = stratified_split(data, [0.6, 0.2, 0.2], labels=labels)
print(f"{len(train)} wines to train on, {len(validation)} to validate, {len(test)} to test")

# Measurements of different size are brought to one, by figures from the training part only.
known = features[train.indices]
mean, spread = known.mean(0), known.std(0)

train_loader = DataLoader(train, batch_size=16, shuffle=True)
validation_loader = DataLoader(validation, batch_size=64)  # no shuffle: the order says nothing

model = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 3))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)


def train_epoch():
    """Go once through the training part; return the mean loss of a sample."""
    model.train()  # dropout on
    total = 0.0
    for x, y in train_loader:
        loss = nn.functional.cross_entropy(model((x - mean) / spread), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(y)
    return total / len(train)


@torch.no_grad()  # no gradients: less memory, more speed
def evaluate(loader):
    """Return the mean loss of a sample and the accuracy; the model does not change."""
    model.eval()  # dropout off
    total, right = 0.0, 0
    for x, y in loader:
        scores = model((x - mean) / spread)
        total += nn.functional.cross_entropy(scores, y, reduction="sum").item()
        right += int((scores.argmax(1) == y).sum())
    return total / len(loader.dataset), right / len(loader.dataset)


best_loss, best_epoch, best_weights = float("inf"), 0, None
for epoch in range(1, 31):
    train_loss = train_epoch()
    loss, accuracy = evaluate(validation_loader)
    if loss < best_loss:
        best_loss, best_epoch = loss, epoch
        best_weights = copy.deepcopy(model.state_dict())
    if epoch in (1, 2, 5) or epoch % 10 == 0:
        print(
            f"epoch {epoch:2}: train loss {train_loss:.4f}, "
            f"validation loss {loss:.4f}, accuracy {accuracy:.3f}"
        )
    if epoch - best_epoch >= 10:
        break  # ten epochs without anything better: it will not come

# Keep the weights that did best on the validation part; ask the test part once, at the end.
model.load_state_dict(best_weights)
loss, accuracy = evaluate(DataLoader(test, batch_size=64))
print(f"best: epoch {best_epoch}; on the test wines: loss {loss:.4f}, accuracy {accuracy:.3f}")
