"""A different augmentation for each batch: digits that are moved a little each time."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from headrace import DataLoader, TensorDataset, stratified_split

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # (1797, 1, 8, 8)
labels = torch.tensor(digits.target)
train, test = stratified_split(
    TensorDataset(images, labels),
    [0.8, 0.2],
    labels=labels,
    generator=torch.Generator().manual_seed(0),
)


def move(batch):
    """Move each image of a batch by up to one pixel, each in its own direction."""
    x, y = batch
    padded = nn.functional.pad(x, (1, 1, 1, 1))  # (batch, 1, 10, 10)
    down, right = torch.randint(0, 3, (2, len(x)))  # 0, 1 or 2: where the 8 x 8 window begins
    rows = down[:, None] + torch.arange(8)  # (batch, 8)
    columns = right[:, None] + torch.arange(8)
    which = torch.arange(len(x))[:, None, None]
    # One indexing for the whole batch: much faster than a transform for each sample.
    moved = padded[which, 0, rows[:, :, None], columns[:, None, :]]
    return moved.unsqueeze(1), y


def loader_of(transform, num_workers=0):
    torch.manual_seed(0)
    return DataLoader(
        train, batch_size=64, shuffle=True, num_workers=num_workers, batch_transform=transform
    )


def train_model(loader):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(15):
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def accuracy(model, transform=None):
    """Test: without the transform, or with it for images that are not centred either."""
    torch.manual_seed(1)
    right = 0
    with torch.no_grad():
        for x, y in DataLoader(test, batch_size=90, batch_transform=transform):
            right += int((model(x).argmax(1) == y).sum())
    return right / len(test)


if __name__ == "__main__":  # workers may import this file
    # Each batch of each epoch draws random numbers of its own ...
    loader = loader_of(move)
    first, second = (next(iter(loader))[0].mean((1, 2)) for _ in range(2))
    print(f"two epochs begin alike: {torch.equal(first, second)}")
    # ... which follow from the seed, the epoch and the step: not from who makes the batch.
    alone = [x for x, _ in loader_of(move)]
    workers = [x for x, _ in loader_of(move, num_workers=2)]
    print(f"the same with 2 workers: {all(map(torch.equal, alone, workers))}")

    print("trained with   centred test images   moved test images")
    for name, transform in (("images as are", None), ("moved images", move)):
        model = train_model(loader_of(transform))
        print(f"{name:14} {accuracy(model):19.1%} {accuracy(model, move):19.1%}")
