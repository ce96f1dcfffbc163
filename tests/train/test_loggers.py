"""What loggers get: losses, learning rates and gradient norms, as the loop by hand has them."""

import csv

import pytest
import torch
from lightning_fabric.loggers import CSVLogger
from torch import nn

from headrace import DataLoader, TensorDataset
from headrace.train import Callback, Trainer

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(X, X.sum(1, keepdim=True))


class Kept:
    """A logger with the one method that is asked of it."""

    def __init__(self):
        self.rows = []

    def log_metrics(self, values, step):
        self.rows.append((step, values))

    def of(self, name):
        return [values[name] for _, values in self.rows if name in values]


def groups_of(model, named):
    groups = [{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.01}]
    for name, group in zip(("weights", "rest"), groups, strict=True):
        group.update({"name": name} if named else {})
    return groups


def train(logger, log_every=1, groups=None, clip_norm=None, **options):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(groups(model) if groups else model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    trainer = Trainer(
        model, nn.MSELoss(), optimizer, scheduler=scheduler, logger=logger, log_every=log_every,
        clip_norm=clip_norm, device="cpu", progress=False, guards=False, **options,
    )  # fmt: skip
    trainer.fit(DataLoader(DATA, 8), epochs=2)
    return model


def by_hand(clip_norm):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    rates, norms = [], []
    for x, y in list(torch.utils.data.DataLoader(DATA, 8)) * 2:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
        if clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    return rates, norms, model


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_rates_and_norms_are_those_of_the_step(clip_norm):
    logger = Kept()
    model = train(logger, clip_norm=clip_norm)
    rates, norms, wanted = by_hand(clip_norm)
    assert logger.of("step_lr") == rates
    assert logger.of("step_grad_norm") == pytest.approx(norms, rel=1e-6)
    assert torch.equal(model.weight, wanted.weight)  # looking changes nothing
    assert [step for step, values in logger.rows if "step_lr" in values] == [1, 2, 3, 4, 5, 6]


def test_those_of_the_last_step_where_several_are_read_at_once():
    logger = Kept()
    train(logger, log_every=2)
    rates, norms, _ = by_hand(None)
    read = [1, 2, 4, 5]
    assert logger.of("step_lr") == [rates[at] for at in read]
    assert logger.of("step_grad_norm") == pytest.approx([norms[at] for at in read], rel=1e-6)


@pytest.mark.parametrize(("named", "names"), [(True, ["weights", "rest"]), (False, ["0", "1"])])
def test_each_group_has_its_rate(named, names):
    logger = Kept()
    train(logger, groups=lambda model: groups_of(model, named))
    assert [logger.of(f"step_lr_{name}")[:2] for name in names] == [[0.1, 0.05], [0.01, 0.005]]


def test_sparse_gradients_have_a_norm():
    logger = Kept()
    model = nn.EmbeddingBag(9, 1, sparse=True)
    Trainer(
        model, nn.MSELoss(), torch.optim.SGD(model.parameters(), 0.1), logger=logger, log_every=1,
        device="cpu", progress=False, guards=False,
    ).fit([(torch.tensor([[1, 1], [2, 3]]), torch.zeros(2, 1))])  # fmt: skip
    assert logger.of("step_grad_norm")[0] > 0


@pytest.mark.parametrize("killed", [False, True])
def test_fabrics_csv_logger_has_every_row(tmp_path, killed):
    class Killed(Callback):
        def on_log(self, trainer, step, values):
            if killed and step == 5:
                raise KeyboardInterrupt

    logger = CSVLogger(tmp_path, name="run", version="1")
    if killed:
        with pytest.raises(KeyboardInterrupt):
            train(logger, callbacks=[Killed()])
    else:
        train(logger)
    with (tmp_path / "run" / "1" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [row for row in rows if row["step_loss"]]
    assert [int(row["step"]) for row in steps] == list(range(1, 6 if killed else 7))
    assert [float(row["step_lr"]) for row in steps] == by_hand(None)[0][: len(steps)]
    assert len([row for row in rows if row["loss"]]) == (1 if killed else 2)
