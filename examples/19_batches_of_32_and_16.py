"""One model fed batches of 32 and of 16: the batch size is no part of the model."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from headrace import DataLoader, TensorDataset

torch.manual_seed(0)

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # (1797, 1, 8, 8)
data = TensorDataset(images, torch.tensor(digits.target))

model = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    nn.Flatten(),  # (batch, 8, 8, 8) -> (batch, 512): keeps the first dimension, whatever it is
    nn.Linear(512, 10),
)
print("no shape of a weight holds the batch size:")
for name, parameter in model.named_parameters():
    print(f"  {name:9} {tuple(parameter.shape)}")


@torch.no_grad()
def outputs(batch_size):
    """Return the model's outputs for all samples."""
    return torch.cat([model(x) for x, _ in DataLoader(data, batch_size=batch_size)])


def compare(title):
    difference = float((outputs(32) - outputs(16)).abs().max())
    print(f"{title}: {'the same outputs' if difference < 1e-4 else 'different outputs'}")


for batch_size in (32, 16):
    x, _ = next(iter(DataLoader(data, batch_size=batch_size)))
    print(f"in {tuple(x.shape)}, out {tuple(model(x).shape)}")

# In eval mode each sample is computed for itself: it does not matter with whom it came.
model.eval()
compare("eval mode")

# In train mode BatchNorm uses the mean of the batch: there, the company of a sample matters.
model.train()
compare("train mode")

# So training depends on the batch size: with 16 there are twice as many steps, on noisier
# gradients. A rule of thumb: half the batch size, half the learning rate.
optimizer = torch.optim.SGD(model.parameters())
for batch_size, learning_rate in ((32, 0.1), (16, 0.05)):
    optimizer.param_groups[0]["lr"] = learning_rate
    loader = DataLoader(data, batch_size=batch_size, shuffle=True)
    total = 0.0
    for x, y in loader:  # the same model goes on with batches of another size
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(y)
    print(
        f"an epoch in batches of {batch_size}: {len(loader)} steps, "
        f"mean loss {total / len(data):.3f}"
    )
