"""A training script that writes a checkpoint behind each step: ``train.py FOLDER WORKERS``.

Whenever it is started it goes on where it was, until its epochs are over.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from headrace import DataLoader

EPOCHS = 4  # long enough that three kills come before its end, however late they come


class Digits(Dataset):
    """Noisy samples: augmentation with two generators."""

    def __len__(self):
        return 60

    def __getitem__(self, index):
        x = torch.full((8,), index / 60) + 0.1 * torch.randn(8)
        return x + 0.1 * float(np.random.randn()), index % 2


def main(folder, workers):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))
    momentum = [torch.zeros_like(weights) for weights in model.parameters()]
    loader = DataLoader(Digits(), batch_size=5, shuffle=True, num_workers=workers)
    losses = []
    done = 0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        momentum = saved["momentum"]
        loader.load_state_dict(json.loads(saved["loader"]))
        losses, done = saved["losses"], saved["epochs"]
    while done < EPOCHS:
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y)
            descend(model, momentum, loss)
            losses.append(loss.item())
            save(checkpoint, model, momentum, loader, losses, done)
        done += 1
        save(checkpoint, model, momentum, loader, losses, done)
    (folder / "finished").touch()


def descend(model, momentum, loss):
    # torch's optimizers import its compiler, which takes longer than all of this.
    weights = list(model.parameters())
    with torch.no_grad():
        for weight, moving, grad in zip(
            weights, momentum, torch.autograd.grad(loss, weights), strict=True
        ):
            moving.mul_(0.9).add_(grad)
            weight.sub_(moving, alpha=0.1)


def save(path, model, momentum, loader, losses, epochs):
    parts = {
        "model": model.state_dict(),
        "momentum": momentum,
        "loader": json.dumps(loader.state_dict()),
        "losses": losses,
        "epochs": epochs,
    }
    torch.save(parts, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)
    print(len(losses), flush=True)  # who watches may kill now


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
