"""A model applied to data larger than memory: from a file on disk to a file on disk, in batches."""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from headrace.apply import map_batches


def write_rows(path, rows):
    """Write rows of 64 numbers, a part at a time: the whole never has to be in memory."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, 64))
    rng = np.random.default_rng(0)
    for start in range(0, rows, 10_000):
        stop = min(start + 10_000, rows)
        array[start:stop] = rng.random((stop - start, 64), dtype=np.float32)
    array.flush()


def by_hand(model, source, target):
    """Apply the model in batches: what map_batches does, without its care."""
    out = np.lib.format.open_memmap(target, mode="w+", dtype=np.float32, shape=(len(source), 8))
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(source), 4096):
            rows = np.array(source[start : start + 4096])  # only these are read from the disk
            out[start : start + len(rows)] = model(torch.from_numpy(rows)).numpy()
    out.flush()


def main(folder, rows):
    torch.manual_seed(0)
    write_rows(folder / "rows.npy", rows)
    source = np.load(folder / "rows.npy", mmap_mode="r")  # a memory map: nothing is read yet
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 8))
    print(f"input:  {source.shape} {source.dtype}, {source.nbytes / 1e6:.1f} MB on disk")

    by_hand(model, source, folder / "by_hand.npy")

    # In one line: batched, in evaluation mode, without gradients, on the model's device, with a
    # bar if it takes long, and it goes on where it was if it is stopped and started again.
    path = map_batches(model, source, out=folder / "features.npy")

    features = np.load(path, mmap_mode="r")
    print(f"output: {features.shape} {features.dtype}, {features.nbytes / 1e6:.1f} MB on disk")
    same = np.allclose(features, np.load(folder / "by_hand.npy", mmap_mode="r"), atol=1e-5)
    print(f"the same as by hand: {same}")

    # Any function of a batch will do, and what fits into memory can come back as an array.
    norms = map_batches(lambda batch: batch.norm(dim=1), source[:1000])
    print(f"lengths of the first rows: {type(norms).__name__} {norms.shape}, first {norms[0]:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="256 bytes each; try 100_000_000")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        main(Path(name), options.rows)
