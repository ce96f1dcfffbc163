"""Several processes train one model: start this with torchrun, or alone.

torchrun --nproc-per-node 2 examples/17_several_processes.py
"""

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn

from headrace import DataLoader, TensorDataset, stratified_split
from headrace.train import Trainer

# The same in each process: they begin with the same weights and the same split.
torch.manual_seed(0)

digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32) / 16  # (1797, 64)
labels = torch.tensor(digits.target)
train, test = stratified_split(TensorDataset(images, labels), [0.8, 0.2], labels=labels)

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.005)

# Under torchrun the trainer joins the other processes; each step adds up their gradients.
trainer = Trainer(
    model,
    nn.CrossEntropyLoss(),
    optimizer,
    metrics="accuracy",
    device="cpu",  # "auto" on a machine with a GPU for each process
    progress=False,
)
rank, size = trainer.ranks.rank, trainer.ranks.size  # 0 and 1 without torchrun


def say(text):
    if rank == 0:  # one process speaks for all
        print(text, flush=True)


# shard="auto" divides one order among the processes: nothing is repeated, nothing is lost. All of
# them give the same seed, so that they cut the same order.
part = [batch.tolist() for batch in DataLoader(range(10), batch_size=2, shard="auto")]
parts = [part]
if size > 1:
    parts = [None] * size
    dist.all_gather_object(parts, part)
for number, batches in enumerate(parts):
    say(f"process {number} of {size} loads {batches}")

# 64 samples a step in all, whatever the number of processes: so the course is the same.
train_loader = DataLoader(train, batch_size=64 // size, shuffle=True, seed=0, shard="auto")
test_loader = DataLoader(test, batch_size=128 // size, shard="auto")
history = trainer.fit(train_loader, test_loader, epochs=3)
for epoch, values in enumerate(history.epochs, start=1):
    say(
        f"epoch {epoch}: train loss {values['loss']:.4f}, "
        f"test accuracy {values['val_accuracy']:.4f}"
    )
