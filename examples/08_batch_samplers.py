"""Batch samplers: which samples make up each batch, decided by you."""

import torch

from headrace import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    StratifiedBatchSampler,
    TensorDataset,
)

torch.manual_seed(0)

# 1. What batch_size=4 and shuffle=True do: a sampler gives indices one by one, a batch sampler
#    gives lists of them. The loader fetches what is listed.
numbers = TensorDataset(torch.arange(10))
batches = BatchSampler(RandomSampler(numbers), batch_size=4, drop_last=False)
print("random:", [batch.tolist() for [batch] in DataLoader(numbers, batch_sampler=batches)])

# 2. Any iterable of lists will do. Here each number meets its mirror image.
pairs = [[i, 9 - i] for i in range(5)]
print("pairs: ", [batch.tolist() for [batch] in DataLoader(numbers, batch_sampler=pairs)])


# 3. One of your own: pictures of two sizes cannot be stacked, so batches hold one size each.
class Pictures(Dataset):
    """Twelve pictures: two of three are 32 x 32, the others 32 x 48."""

    widths = [48 if i % 3 == 0 else 32 for i in range(12)]

    def __len__(self):
        return len(self.widths)

    def __getitem__(self, index):
        return torch.full((1, 32, self.widths[index]), float(index))


class OneSizeBatches(Sampler):
    """Shuffled batches whose samples all have the same key."""

    def __init__(self, keys, batch_size):
        self.batch_size = batch_size
        self.groups = {}
        for index, key in enumerate(keys):
            self.groups.setdefault(key, []).append(index)

    def __len__(self):
        return sum(-(-len(group) // self.batch_size) for group in self.groups.values())

    def __iter__(self):
        batches = []
        for group in self.groups.values():
            order = [group[i] for i in torch.randperm(len(group)).tolist()]
            batches += [
                order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)
            ]
        for i in torch.randperm(len(batches)).tolist():  # or all small pictures would come first
            yield batches[i]


loader = DataLoader(Pictures(), batch_sampler=OneSizeBatches(Pictures.widths, batch_size=4))
print(f"pictures, {len(loader)} batches")
for batch in loader:
    indices = batch[:, 0, 0, 0].int().tolist()
    print(f"  shape {tuple(batch.shape)}, pictures {indices}")

# 4. One that is there already: each batch carries the classes in proportion.
labels = torch.tensor([0] * 12 + [1] * 6 + [2] * 6)
stratified = StratifiedBatchSampler(labels, batch_size=8)
loader = DataLoader(TensorDataset(labels), batch_sampler=stratified)
print("classes of each batch:", [batch.bincount().tolist() for [batch] in loader])
