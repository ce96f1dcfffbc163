"""Mixed precision: computing in 16 bits where that is safe, keeping the weights in 32."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from headrace import DataLoader, TensorDataset
from headrace.train import Trainer

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # (1797, 1, 8, 8)
data = TensorDataset(images, torch.tensor(digits.target))

# On a GPU float16, which is fast everywhere but has a small range; on a CPU bfloat16, whose range
# is that of float32.
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.float16 if device == "cuda" else torch.bfloat16


def start():
    """Return the same untrained model, its optimizer and a loader each time."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 10)),
    ).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    return model, optimizer, DataLoader(data, batch_size=64, shuffle=True, seed=0)


def train(mixed):
    """Train for three epochs by hand; return the losses and the last outputs."""
    model, optimizer, loader = start()
    # Small float16 gradients would become zero: the loss is scaled up for the backward pass, and
    # the gradients down again before the step. Without float16 this object does nothing.
    scaler = torch.amp.GradScaler(device, enabled=mixed and dtype == torch.float16)
    losses = []
    for _ in range(3):
        total = 0.0
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            # Inside, convolutions and matrix products take 16 bits, losses and norms 32.
            with torch.autocast(device, dtype, enabled=mixed):
                scores = model(x)
                loss = nn.functional.cross_entropy(scores, y)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            total += loss.item() * len(y)
        losses.append(total / len(data))
    return losses, scores, model


def show(name, losses):
    print(f"{name}: losses {', '.join(f'{loss:.3f}' for loss in losses)}")


for mixed in (False, True):
    losses, scores, model = train(mixed)
    weights = next(model.parameters())
    print(f"outputs {scores.dtype}, weights {weights.dtype}")
    show("  mixed" if mixed else "  plain", losses)

# The same in three lines: autocast, scaling and the moves to the device are the trainer's business.
model, optimizer, loader = start()
precision = "16-mixed" if device == "cuda" else "bf16-mixed"
loss_function = nn.CrossEntropyLoss()
trainer = Trainer(model, loss_function, optimizer, precision=precision, progress=False)
history = trainer.fit(loader, epochs=3)
show("Trainer", [epoch["loss"] for epoch in history.epochs])
