"""Programs whose time goes where one knows: ``programs.py CAUSE LIBRARY WORKERS CONTEXT``.

What is slow is a sleep or a loop of known length, far above what a busy machine adds.
"""

import builtins
import io
import sys
import time

import numpy as np
import torch
from PIL import Image

real_open = open


def wait(seconds):
    time.sleep(seconds)


def loop(number):
    total = 0
    for value in range(number):
        total += value
    return total


class Samples(torch.utils.data.Dataset):
    def __init__(self, number):
        self.number = number

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        return torch.full((4,), float(index))


class Decoded(Samples):
    def __init__(self, number):
        super().__init__(number)
        noise = np.random.default_rng(0).integers(0, 255, (500, 500, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).save(file, "jpeg")
        self.data = file.getvalue()

    def __getitem__(self, index):
        image = Image.open(io.BytesIO(self.data)).convert("RGB")
        return torch.tensor(image.getpixel((index, 0)))


class Transformed(Samples):
    def __getitem__(self, index):
        return self.jitter(super().__getitem__(index))

    def jitter(self, sample):
        return sample + 1e-20 * loop(40_000)


class Stored(Samples):
    def __getitem__(self, index):
        with open(__file__) as file:
            return torch.full((4,), float(len(file.read())) + index)


def slow_open(*arguments, **options):
    time.sleep(0.004)
    return real_open(*arguments, **options)


class Large(Samples):
    def __init__(self, number):
        super().__init__(number)
        self.array = np.zeros(1 << 20, np.float32)

    def __getitem__(self, index):
        return self.array


class Uneven(Samples):
    def __getitem__(self, index):
        time.sleep(0.25 if index % 100 == 55 else 0.0002)
        return super().__getitem__(index)


class Thrashing(Samples):
    def __getitem__(self, index):
        return torch.tensor(float(np.ones(8 << 20, np.float32)[index]))


def collate(samples):
    loop(250_000)
    return torch.stack(samples)


def as_list(samples):
    return samples


def begin(_):
    time.sleep(0.5)


# dataset, collate, worker_init_fn, epochs, seconds of a step, workers
PROGRAMS = {
    "decode": (Decoded, 240, None, None, 1, 0.001),
    "transform": (Transformed, 320, None, None, 1, 0.001),
    "collate": (Samples, 400, collate, None, 1, 0.001),
    "hand over": (Large, 240, as_list, None, 1, 0.0005),
    "read": (Stored, 240, None, None, 1, 0.001),
    "start": (Samples, 32, None, begin, 2, 0.001),
    "step": (Samples, 320, None, None, 1, 0.02),
    "workers": (Transformed, 960, None, None, 1, 0.0),
    "imbalance": (Uneven, 400, None, None, 1, 0.002),
    "memory": (Thrashing, 160, None, None, 1, 0.001),
}


def main():
    cause, library, workers, context = sys.argv[1:5]
    if library == "ours":
        from headrace import DataLoader
    else:
        from torch.utils.data import DataLoader
    kind, number, collate_fn, init_fn, epochs, step_s = PROGRAMS[cause]
    if cause == "read":
        builtins.open = slow_open
    torch.set_num_threads(1)
    options = {"multiprocessing_context": context} if int(workers) else {}
    torch.manual_seed(0)
    loader = DataLoader(
        kind(number),
        batch_size=8,
        shuffle=True,
        num_workers=int(workers),
        collate_fn=collate_fn,
        worker_init_fn=init_fn,
        **options,
    )
    total = 0.0
    for _ in range(epochs):
        for batch in loader:
            total += float(np.asarray(batch[0]).sum())
            wait(step_s)
    print(total, torch.rand(1).item())


if __name__ == "__main__":
    main()
