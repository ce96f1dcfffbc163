"""Large batches from two workers, in a script of a few lines."""

import sys

import torch
from torch.utils.data import DataLoader, Dataset


class Pictures(Dataset):
    """Random pictures, made beforehand: what is left is to move them."""

    def __init__(self, length):
        self.pictures = torch.rand(64, 3, 224, 224)
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return self.pictures[index % 64], index % 10


if __name__ == "__main__":
    batches, epochs = int(sys.argv[1]), int(sys.argv[2])
    torch.manual_seed(0)
    loader = DataLoader(Pictures(64 * batches), batch_size=64, shuffle=True, num_workers=2)
    for _ in range(epochs):
        for pictures, labels in loader:
            pass
