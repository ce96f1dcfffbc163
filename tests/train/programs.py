"""What the tests run in processes of their own, and in this one to compare."""

import atexit
import json
import os
import random
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import torch
import torch.utils.data
from torch import nn

from headrace import DataLoader, TensorDataset
from headrace.train import EMA, Callback, Trainer
from headrace.tune import find_learning_rate


class Numbers:
    """Noisy samples, with random numbers of all three generators."""

    def __init__(self, n=50):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        noise = torch.randn(4) + float(np.random.randn()) + random.random()
        return torch.full((4,), index / self.n) + 0.1 * noise, index % 3


def make_loader(kind):
    """A loader of each kind that a fit may be given."""
    if kind == "headrace":
        return DataLoader(Numbers(), batch_size=4, shuffle=True)
    if kind == "seeded":
        return DataLoader(Numbers(), batch_size=4, shuffle=True, seed=3)
    if kind == "torch":
        generator = torch.Generator().manual_seed(5)
        return torch.utils.data.DataLoader(
            Numbers(), batch_size=4, shuffle=True, generator=generator
        )
    if kind == "workers":
        return DataLoader(Numbers(), batch_size=4, shuffle=True, num_workers=2)
    if kind == "torch workers":
        return torch.utils.data.DataLoader(Numbers(), batch_size=4, shuffle=True, num_workers=2)
    dataset = Numbers()
    return [
        (torch.stack([dataset[i][0] for i in rows]), torch.tensor([i % 3 for i in rows]))
        for rows in torch.randperm(50).split(4)
    ]


class Say(Callback):
    """Tells who watches of every step; on the last rank SIGTERM comes at one of them."""

    def __init__(self, sigterm_at=None, stop_at=None):
        self.sigterm_at, self.stop_at = sigterm_at, stop_at

    def on_log(self, trainer, step, values):
        print(step, flush=True)
        last = trainer.ranks.rank == trainer.ranks.size - 1
        if step == self.stop_at and last:
            trainer.stop()
        if step == self.sigterm_at and last:
            os.kill(os.getpid(), signal.SIGTERM)


def make_trainer(steps=21, **options):
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)
    chosen = {"device": "cpu", "scheduler": schedule, "log_every": 1, "progress": False, **options}
    return Trainer(model, nn.CrossEntropyLoss(), optimizer, **chosen)


def train(folder, kind="headrace", accumulate=2, sigterm_at=None, **options):
    """Three epochs of 13 batches, with a checkpoint behind every step; goes on where it was."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    torch.set_num_threads(1)
    loader = make_loader(kind)
    steps = 3 * -(-13 // accumulate)
    trainer = make_trainer(steps, accumulate=accumulate, callbacks=[Say(sigterm_at)], **options)
    validation = DataLoader(Numbers(7), batch_size=3)
    return trainer.fit(loader, validation, 3, folder, checkpoint_every_steps=1)


def train_long(folder, kind, epochs=30):
    """Epochs of 13 steps, with a checkpoint behind each; goes on where it was."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    torch.set_num_threads(1)
    trainer = make_trainer(callbacks=[Say()], scheduler=None, guards=False)
    trainer.fit(make_loader(kind), None, epochs, folder, checkpoint_every_steps=1)


def train_ranks(folder, sigterm_at=None, stop_at=None, **options):
    """As ``train``, in several processes: dropout and noise are other ones on each rank."""
    trainer = make_trainer(28, callbacks=[Say(sigterm_at, stop_at)])
    torch.manual_seed(trainer.ranks.rank)
    torch.set_num_threads(1)
    loader = DataLoader(Numbers(), batch_size=4, shuffle=True, shard="auto")
    validation = DataLoader(Numbers(7), batch_size=3, shard="auto")
    trainer.fit(loader, validation, 4, folder, checkpoint_every_steps=1, **options)
    return trainer


def train_ranks_full(folder):
    """As ``train_ranks``, where rank 0 finds no room for a checkpoint."""
    if os.environ["RANK"] == "0":
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
    train_ranks(folder)


def numbers_of(history):
    return {"steps": [s["loss"] for s in history.steps], "epochs": history.epochs}


def learn(folder, n, batch_size, epochs=2, decay=None, **options):
    """Train a model without randomness, and write what came out; ``batch_size`` of all ranks."""
    options |= {} if decay is None else {"callbacks": [EMA(decay)]}
    torch.manual_seed(3)
    torch.set_num_threads(1)
    trainer, dataset = make_learner(n, options)
    size = trainer.ranks.size
    loader = DataLoader(dataset, batch_size=batch_size // size, shuffle=True, seed=1, shard="auto")
    validation = DataLoader(dataset, batch_size=3, shard="auto")
    history = trainer.fit(loader, validation, epochs=epochs, checkpoint_dir=None)
    weights = [p.tolist() for p in trainer.model.parameters()]
    found = {**numbers_of(history), "weights": weights, "evaluated": trainer.evaluate(validation)}
    (Path(folder) / f"{size}-{trainer.ranks.rank}.json").write_text(json.dumps(found))


def make_learner(n, options):
    import torchmetrics

    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    metrics = {
        "accuracy": torchmetrics.classification.MulticlassAccuracy(3, average="micro"),
        "error": lambda outputs, targets: (outputs.argmax(1) != targets).double().mean(),
    }
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator)
    dataset = TensorDataset(x, (x.sum(1) > 0).long() + (x[:, 0] > 0.5).long())
    chosen = {"device": "cpu", "progress": False, "log_every": 3, "metrics": metrics, **options}
    return Trainer(model, nn.CrossEntropyLoss(), optimizer, **chosen), dataset


def failing(function, *arguments, **options):
    """Print the error of a call that has to raise one."""
    try:
        function(*arguments, **options)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    else:
        sys.exit("it raised nothing")


def fit_differing(what):
    """Fit, where the last rank wants something else than the others."""
    trainer = make_trainer()
    last = trainer.ranks.rank == trainer.ranks.size - 1
    options = {"batch_size": 4, "shard": "auto"}
    loader, validation, epochs = DataLoader(Numbers(), **options), None, 1
    if last and what == "validation":
        validation = DataLoader(Numbers(7), **options)
    if last and what == "epochs":
        epochs = 2
    if last and what == "divided":
        loader = DataLoader(Numbers(), batch_size=4)
    failing(trainer.fit, loader, validation, epochs)


def threads_at_exit(folder):
    """Train, and say at the very end which of the group's threads are left. Returns the trainer."""

    def say():  # registered first, so called last
        names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
        print(json.dumps([name for name in names if "gloo" in name]), flush=True)

    atexit.register(say)
    trainer = train_ranks(folder)
    print(torch.distributed.is_initialized(), flush=True)
    return trainer


def look_for_a_rate(folder, n, batch_size):
    """The range test on each rank, and the weights behind it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer = Trainer(model, nn.MSELoss(), optimizer, device="cpu", progress=False)
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, x.sum(1, keepdim=True))
    size = trainer.ranks.size
    loader = DataLoader(data, batch_size // size, shuffle=True, seed=0, shard="auto")
    before = model.weight.detach().clone()
    found = find_learning_rate(trainer, loader, low=1e-4, high=10.0, steps=30)
    assert torch.equal(model.weight, before)
    losses = [row.loss for row in found.rows]
    name = f"{size}-{trainer.ranks.rank}.json"
    (Path(folder) / name).write_text(json.dumps(losses))
