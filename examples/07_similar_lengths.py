"""Sequences of different lengths, batched with others of similar length by the 1.5 rule."""

import torch

from headrace import BucketBatchSampler, DataLoader, pad_collate

torch.manual_seed(0)

# 1,000 sequences of token numbers, most of them short, some long: as sentences are.
lengths = torch.randn(1000).mul(0.8).add(3.5).exp().clamp(3, 400).long().tolist()
sequences = [torch.randint(1, 5000, (length,)) for length in lengths]


def by_the_rule(lengths, ratio=1.5):
    """Sort by length; start a new batch where a length reaches `ratio` times the batch's first."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    batches = [[order[0]]]
    for i in order[1:]:
        if lengths[i] >= ratio * lengths[batches[-1][0]]:
            batches.append([])
        batches[-1].append(i)
    return batches


def padding(loader):
    """Return the share of a whole epoch that is padding."""
    real = padded = 0
    for values, sizes in loader:  # values: (batch, longest), sizes: (batch,)
        real += int(sizes.sum())
        padded += values.numel()
    return 1 - real / padded


print("the rule by hand")
for batch in by_the_rule(lengths):
    print(f"  {len(batch):3} sequences of {lengths[batch[0]]} to {lengths[batch[-1]]} steps")

# The batches by hand never change and can be of any size. The sampler keeps the rule, and adds
# what training needs: a shuffle in each epoch, and a bound on what a batch holds.
by_rule = BucketBatchSampler(lengths, max_ratio=1.5, min_batch_size=8, batch_size=32)
by_tokens = BucketBatchSampler(lengths, max_tokens=2048)
collate = pad_collate()  # pads to the longest sequence of the batch

loaders = {
    "32 of a shuffle": DataLoader(sequences, batch_size=32, shuffle=True, collate_fn=collate),
    "the 1.5 rule, at most 32": DataLoader(sequences, batch_sampler=by_rule, collate_fn=collate),
    "at most 2048 tokens": DataLoader(sequences, batch_sampler=by_tokens, collate_fn=collate),
}
print("batching                   batches   padding")
for name, loader in loaders.items():
    print(f"{name:26} {len(loader):7} {padding(loader):9.1%}")

print("three batches of an epoch, by the rule and shuffled")
for number, (values, sizes) in enumerate(loaders["the 1.5 rule, at most 32"]):
    if number == 3:
        break
    print(f"  {tuple(values.shape)}: lengths from {sizes.min()} to {sizes.max()}")
