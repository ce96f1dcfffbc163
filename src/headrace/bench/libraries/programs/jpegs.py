"""A folder of JPEG files in timm's loader, as for an evaluation."""

import sys

import torch
from timm.data import create_dataset, create_loader

if __name__ == "__main__":
    epochs, folder = int(sys.argv[2]), sys.argv[3]
    loader = create_loader(
        create_dataset("", folder),
        input_size=(3, 224, 224),
        batch_size=32,
        use_prefetcher=False,
        num_workers=2,
        device=torch.device("cpu"),
        persistent_workers=False,
    )
    for _ in range(epochs):
        for pictures, labels in loader:
            pass
