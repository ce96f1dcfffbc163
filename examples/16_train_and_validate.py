"""Train and validation split: the validation loss tells when the model stops to learn."""

import copy

import torch
from sklearn.datasets import load_wine
from torch import nn

from headrace import DataLoader, TensorDataset, stratified_split
from headrace.train import Callback, Trainer

torch.manual_seed(0)

# 178 wines: 13 chemical measurements each, and which of three growers made it.
wine = load_wine()
features = torch.tensor(wine.data, dtype=torch.float32)
labels = torch.tensor(wine.target)
data = TensorDataset(features, labels)

# 60 % to learn from, 20 % to decide with, 20 % for the final answer, growers in proportion.
train, validation, test = stratified_split(data, [0.6, 0.2, 0.2], labels=labels)
print(f"{len(train)} wines to train on, {len(validation)} to validate, {len(test)} to test")

# Measurements of different size are brought to one, by figures from the training part only. In
# place: the three parts are views of these features.
known = features[train.indices]
features.sub_(known.mean(0)).div_(known.std(0))

train_loader = DataLoader(train, batch_size=16, shuffle=True)
validation_loader = DataLoader(validation, batch_size=64)  # no shuffle: the order says nothing
test_loader = DataLoader(test, batch_size=64)


def start():
    """Return the same untrained model and its optimizer each time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 3))
    return model, torch.optim.Adam(model.parameters(), lr=0.01)


def train_epoch():
    """Go once through the training part; return the mean loss of a sample."""
    model.train()  # dropout on
    total = 0.0
    for x, y in train_loader:
        loss = nn.functional.cross_entropy(model(x), y)
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
        scores = model(x)
        total += nn.functional.cross_entropy(scores, y, reduction="sum").item()
        right += int((scores.argmax(1) == y).sum())
    return total / len(loader.dataset), right / len(loader.dataset)


model, optimizer = start()
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
loss, accuracy = evaluate(test_loader)
print(f"best: epoch {best_epoch}; on the test wines: loss {loss:.4f}, accuracy {accuracy:.3f}")


# The same with the trainer. Modes, gradients and means are its business; when to stop is ours.
class KeepTheBest(Callback):
    """Remembers the weights with the smallest validation loss; stops ten epochs later."""

    loss, epoch, weights = float("inf"), 0, None

    def on_epoch_end(self, trainer, epoch, values):
        """Look at an epoch; the trainer calls it."""
        if values["val_loss"] < self.loss:
            self.loss, self.epoch = values["val_loss"], epoch
            self.weights = copy.deepcopy(trainer.model.state_dict())
        if epoch - self.epoch >= 10:
            trainer.stop()


model, optimizer = start()
best = KeepTheBest()
trainer = Trainer(
    model,
    nn.CrossEntropyLoss(),
    optimizer,
    metrics="accuracy",
    callbacks=[best],
    device="cpu",
    progress=False,
)
history = trainer.fit(train_loader, validation_loader, epochs=30)
model.load_state_dict(best.weights)
values = trainer.evaluate(test_loader)
print(
    f"Trainer: epoch {best.epoch + 1}; on the test wines: loss {values['loss']:.4f}, "
    f"accuracy {values['accuracy']:.3f}"
)
history.plot("16_losses.png")
