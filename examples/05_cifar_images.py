"""CIFAR-format images and a small convolutional network: loss as it goes, accuracy each epoch."""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_sample_image
from torch import nn

from headrace import DataLoader
from headrace.data import CIFAR10


def write_files(root):
    """Write pieces of two photographs as CIFAR's binary files: a label, 1,024 red, green, blue."""
    rng = np.random.default_rng(0)
    folder = Path(root, "cifar-10-batches-bin")
    folder.mkdir()
    (folder / "batches.meta.txt").write_text("temple\nflower\n")
    photographs = [load_sample_image("china.jpg"), load_sample_image("flower.jpg")]

    def write(name, count, strips):  # of 80 columns: what is tested was not trained on
        records = []
        for label in rng.integers(0, 2, count):
            top, left = rng.integers(0, 427 - 64), 80 * rng.choice(strips) + rng.integers(0, 16)
            piece = photographs[label][top : top + 64 : 2, left : left + 64 : 2]  # (32, 32, 3)
            piece = (piece * rng.uniform(0.2, 1)).astype(np.uint8)  # in another light each time
            records.append(bytes([label]) + piece.transpose(2, 0, 1).tobytes())
        (folder / name).write_bytes(b"".join(records))

    for number in range(1, 6):
        write(f"data_batch_{number}.bin", 500, strips=[0, 2, 4, 6])
    write("test_batch.bin", 400, strips=[1, 3, 5, 7])


class SmallCNN(nn.Module):
    """Two convolutions that look for patterns, two layers that decide."""

    def __init__(self, classes):
        super().__init__()
        self.patterns = nn.Sequential(
            *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2)),  # (3, 32, 32) -> (6, 14, 14)
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),  # -> (16, 5, 5)
        )
        self.decide = nn.Sequential(nn.Linear(400, 64), nn.ReLU(), nn.Linear(64, classes))

    def forward(self, images):
        """Return scores (batch, classes) for bytes (batch, 3, 32, 32)."""
        x = images.float() / 127.5 - 1  # 0..255 -> -1..1
        return self.decide(self.patterns(x).flatten(1))


def main(root, epochs):
    torch.manual_seed(0)
    train, test = CIFAR10(root, train=True), CIFAR10(root, train=False)
    train_loader = DataLoader(train, batch_size=10, shuffle=True)
    test_loader = DataLoader(test, batch_size=200)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = SmallCNN(len(train.classes)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    print(f"{len(train)} images to train on, {len(test)} to test with: {', '.join(train.classes)}")

    for epoch in range(1, epochs + 1):
        model.train()
        running = 0.0
        for step, (images, labels) in enumerate(train_loader, start=1):
            images, labels = images.to(device), labels.to(device)
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            running += loss.item()
            if step % 100 == 0:
                print(f"epoch {epoch}, batch {step:3}: loss {running / 100:.3f}")
                running = 0.0

        model.eval()
        right = 0
        with torch.no_grad():
            for images, labels in test_loader:
                right += int((model(images.to(device)).argmax(1) == labels.to(device)).sum())
        print(f"epoch {epoch}: {right / len(test):.1%} of the test images")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a folder with cifar-10-batches-py (or -bin) in it")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    if options.data:
        main(options.data, options.epochs)
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_files(folder)
            main(folder, options.epochs)
