"""MNIST-format digits: the files, a batch and its picture, then a small network that reads them."""

import argparse
import gzip
import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn

from headrace import DataLoader
from headrace.data import MNIST


def write_files(root):
    """Write scikit-learn's real digits as MNIST's files: big-endian sizes, then the bytes."""
    digits = load_digits()
    small = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) * 255 / 16
    large = nn.functional.interpolate(small, 20, mode="bilinear")  # 8 x 8 -> 20 x 20 pixels
    images = nn.functional.pad(large, (4, 4, 4, 4)).to(torch.uint8).squeeze(1)  # 28 x 28
    labels = torch.tensor(digits.target, dtype=torch.uint8)
    folder = Path(root, "MNIST", "raw")
    folder.mkdir(parents=True)
    for prefix, part in (("train", slice(0, 1500)), ("t10k", slice(1500, None))):
        for name, array in (("images-idx3", images[part]), ("labels-idx1", labels[part])):
            header = bytes([0, 0, 8, array.ndim])  # 8 is the code of unsigned bytes
            sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
            with gzip.open(folder / f"{prefix}-{name}-ubyte.gz", "wb") as file:
                file.write(header + sizes + array.numpy().tobytes())


def draw(images, labels, path):
    """Draw the first 32 images of a batch, each below its label."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    for axes, image, label in zip(figure.subplots(4, 8).flat, images, labels, strict=False):
        axes.imshow(image[0].numpy(), cmap="gray_r")
        axes.set_title(int(label), fontsize=10)
        axes.set_axis_off()
    figure.savefig(path, dpi=80)


def main(root):
    torch.manual_seed(0)
    train, test = MNIST(root, train=True), MNIST(root, train=False)
    print(f"{len(train)} images to train on, {len(test)} to test with")
    train_loader = DataLoader(train, batch_size=64, shuffle=True)
    test_loader = DataLoader(test, batch_size=256)

    images, labels = next(iter(train_loader))
    print(f"images {tuple(images.shape)} {images.dtype}, labels {tuple(labels.shape)}")
    print(f"first labels: {labels[:8].tolist()}, values {images.min()} to {images.max()}")
    draw(images, labels, "04_digits.png")

    # A multilayer perceptron: the image as one row of 784 numbers, a hidden layer, ten scores.
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    for epoch in range(1, 6):
        loss_sum = 0.0
        for images, labels in train_loader:
            scores = model(images.float() / 255)  # bytes travel, numbers in 0..1 are computed with
            loss = nn.functional.cross_entropy(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(labels)
        right = 0
        with torch.no_grad():
            for images, labels in test_loader:
                right += int((model(images.float() / 255).argmax(1) == labels).sum())
        print(
            f"epoch {epoch}: train loss {loss_sum / len(train):.4f}, "
            f"test accuracy {right / len(test):.3f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a folder with MNIST/raw in it; default: digits made here")
    given = parser.parse_args().data
    if given:
        main(given)
    else:
        with tempfile.TemporaryDirectory() as folder:
            write_files(folder)
            main(folder)
