"""Ten numbers in batches of four: the last batch is smaller."""

import math

import torch

from headrace import DataLoader

numbers = torch.arange(10)  # anything with a length and [index] is a dataset
batch_size = 4

# In order. The loader takes four samples at a time and stacks them into one tensor.
loader = DataLoader(numbers, batch_size=batch_size)
print("in order")
for number, batch in enumerate(loader, start=1):
    print(f"  batch {number}: {batch.tolist()}, shape {tuple(batch.shape)}")

# 10 is not a multiple of 4: there are ceil(10 / 4) = 3 batches, and the last one has 2 samples.
assert len(loader) == math.ceil(len(numbers) / batch_size) == 3
assert len(batch) == len(numbers) % batch_size == 2

# shuffle=True draws a new order for each pass over the data, which is called an epoch.
torch.manual_seed(0)  # the same orders each time the program is run
loader = DataLoader(numbers, batch_size=batch_size, shuffle=True)
for epoch in (1, 2):
    batches = [batch.tolist() for batch in loader]
    print(f"shuffled, epoch {epoch}: {batches}")
    seen = [number for batch in batches for number in batch]
    assert sorted(seen) == list(range(10))  # each number exactly once

# drop_last=True leaves the smaller batch out: for models that need one fixed size.
loader = DataLoader(numbers, batch_size=batch_size, drop_last=True)
print(f"without the last one: {[batch.tolist() for batch in loader]}")

# A mean over batches must count samples, or the two in the last batch weigh twice as much.
loader = DataLoader(numbers.float(), batch_size=batch_size)
mean_of_means = sum(batch.mean() for batch in loader) / len(loader)
mean = sum(batch.mean() * len(batch) for batch in loader) / len(numbers)
print(f"mean of the batches' means: {mean_of_means:.3f}, weighted by their sizes: {mean:.3f}")
