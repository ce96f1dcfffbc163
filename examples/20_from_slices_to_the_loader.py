"""From slices written by hand to the loader: the same batches, and what each step gains."""

import time

import numpy as np
import torch
import torch.utils.data

from headrace import DataLoader, TensorDataset, iter_batches

samples, features, batch_size = 40_000, 32, 64
rng = np.random.default_rng(0)
x = rng.random((samples, features), dtype=np.float32)
y = np.arange(samples)  # the number of the sample, so that we can see which ones came
rows, targets = x.tolist(), y.tolist()  # the same as Python lists
data = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))


def slices_of_lists():
    """1. Cut a list; the last slice is shorter by itself."""
    for start in range(0, samples, batch_size):
        stop = start + batch_size
        yield torch.tensor(rows[start:stop]), torch.tensor(targets[start:stop])


def slices_of_arrays():
    """2. Cut an array: a slice is a view, nothing is copied or converted."""
    for start in range(0, samples, batch_size):
        stop = start + batch_size
        yield torch.from_numpy(x[start:stop]), torch.from_numpy(y[start:stop])


def shuffled_arrays():
    """3. Shuffle the indices, not the data, and take rows by them."""
    order = np.random.permutation(samples)
    for start in range(0, samples, batch_size):
        part = order[start : start + batch_size]
        yield torch.from_numpy(x[part]), torch.from_numpy(y[part])


def iter_batches_of_arrays():
    """4. The same in one line."""
    for inputs, labels in iter_batches((x, y), batch_size, shuffle=True):
        yield torch.from_numpy(inputs), torch.from_numpy(labels)


def torch_loader():
    """5. PyTorch's loader: any dataset, collation, workers; each sample goes through Python."""
    return torch.utils.data.DataLoader(data, batch_size=batch_size, shuffle=True)


def headrace_loader():
    """6. The same call; arrays are gathered many rows at a time into memory used again."""
    return DataLoader(data, batch_size=batch_size, shuffle=True)


def seconds(make_batches):
    """Return the time of an epoch, the best of three; check that each sample came once."""
    seen = torch.cat([labels.clone() for _, labels in make_batches()])
    assert torch.equal(seen.sort().values, torch.arange(samples))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for _inputs, _labels in make_batches():
            pass
        times.append(time.perf_counter() - start)
    return min(times)


print(f"{samples} samples of {features} numbers, batches of {batch_size}")
print("                               samples/s   what is gained")
for name, make_batches, gain in (
    ("1 slices of lists", slices_of_lists, "a start: bounded memory for each step"),
    ("2 slices of NumPy arrays", slices_of_arrays, "speed: views; but always in the same order"),
    ("3 arrays by shuffled indices", shuffled_arrays, "a new order in each epoch"),
    ("4 iter_batches", iter_batches_of_arrays, "one line; dicts and tuples; drop_last"),
    ("5 torch's DataLoader", torch_loader, "any dataset, collation, samplers, workers"),
    ("6 headrace's DataLoader", headrace_loader, "all of that at the speed of arrays, resuming"),
):
    print(f"{name:29} {samples / seconds(make_batches):11,.0f}   {gain}")

# What no loop by hand has: stop in the middle of an epoch, go on later with the next batch.
torch.manual_seed(0)
loader = headrace_loader()
batches = iter(loader)
for _ in range(100):
    next(batches)
state = loader.state_dict()  # plain values: put them into the checkpoint, beside the weights
expected = next(batches)[1]
resumed = headrace_loader()
resumed.load_state_dict(state)
print(f"resumed at batch 101: {torch.equal(next(iter(resumed))[1], expected)}")
