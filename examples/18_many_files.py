"""A dataset of many files: read when needed, by workers, ahead of the loop. How many workers?"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from headrace import DataLoader, Dataset
from headrace.tune import find_num_workers


def write_files(folder, count):
    """Write pieces of a photograph as JPEG files: folder/0000.jpg and so on."""
    photograph = load_sample_image("china.jpg")  # (427, 640, 3)
    rng = np.random.default_rng(0)
    for number in range(count):
        top, left = rng.integers(0, 427 - 192), rng.integers(0, 640 - 192)
        piece = photograph[top : top + 192, left : left + 192]
        Image.fromarray(piece).save(folder / f"{number:04}.jpg", quality=90)


class Photographs(Dataset):
    """Images of a folder. Only their names are in memory; a file is read when it is asked for."""

    def __init__(self, folder):
        self.paths = sorted(folder.glob("*.jpg"))  # sorted: the order of a folder is chance

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with Image.open(self.paths[index]) as image:
            pixels = np.array(image.convert("RGB"))  # (192, 192, 3), uint8
        return torch.from_numpy(pixels).permute(2, 0, 1)  # bytes: a quarter of the floats' size


def main(folder):
    dataset = Photographs(folder)
    print(f"{len(dataset)} files; sample 0: {tuple(dataset[0].shape)} {dataset[0].dtype}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = DataLoader(
        dataset,
        batch_size=32,
        shuffle=True,
        num_workers=2,  # two processes read and decode while this one trains
        prefetch_factor=2,  # each is at most two batches ahead: 2 x 2 x 32 images in memory
        persistent_workers=True,  # they stay from epoch to epoch
        device=device,  # to a GPU from page-locked memory, one batch ahead, while it computes
    )
    for epoch in (1, 2):
        total = torch.zeros((), device=device)
        for batch in loader:
            total += batch.float().mean((1, 2, 3)).sum()  # here a model would learn
        print(f"epoch {epoch}: mean brightness {float(total) / len(dataset):.2f}")
    statistics = loader.statistics()
    print(f"{statistics.samples} images in {statistics.batches} batches, by {statistics.path}")

    # How many workers? As many as keep the loop from waiting, and no more. Measure it.
    report = find_num_workers(loader, seconds=0.4)
    print(f"write DataLoader(..., **{report.options})")


if __name__ == "__main__":  # workers may import this file
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        write_files(Path(name), count=256)
        main(Path(name))
