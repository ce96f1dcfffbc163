"""The range test: what it tries is what a loop would, and everything is put back."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader as TorchLoader

from headrace import DataLoader, OptionError, TensorDataset, TrainingError
from headrace.train import Callback, Trainer
from headrace.tune import find_learning_rate
from headrace.tune.rate_curve import judged

X = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(X, X.sum(1, keepdim=True))
RATES = [1e-4 * 1e4 ** (at / 19) for at in range(20)]


def make(lr=0.01, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr)
    return Trainer(model, nn.MSELoss(), optimizer, device="cpu", progress=False, **options)


def weights_of(trainer):
    return torch.cat([v.double().flatten() for v in trainer.model.state_dict().values()])


LOADERS = {
    "shuffled": lambda: DataLoader(DATA, 8, shuffle=True),
    "seeded": lambda: DataLoader(DATA, 8, shuffle=True, seed=3),
    "own generator": lambda: DataLoader(
        DATA, 8, shuffle=True, generator=torch.Generator().manual_seed(1)
    ),
    "threads": lambda: DataLoader(DATA, 8, shuffle=True, num_workers=2, backend="thread"),
    "torch's": lambda: TorchLoader(DATA, 8, shuffle=True),
    "torch's with a generator": lambda: TorchLoader(
        DATA, 8, shuffle=True, generator=torch.Generator().manual_seed(1)
    ),
    "a list": lambda: list(TorchLoader(DATA, 8)),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_training_goes_on_as_if_nothing_had_been(kind):
    losses = []
    for looked in (False, True):
        trainer, loader = make(accumulate=2), LOADERS[kind]()
        trainer.fit(loader)
        if looked:
            modes = [m.training for m in trainer.model.modules()]
            before = weights_of(trainer)
            found = find_learning_rate(trainer, loader, high=0.01, steps=20)
            assert torch.equal(weights_of(trainer), before)
            assert [m.training for m in trainer.model.modules()] == modes
            assert len(found.rows) == 20
        losses.append(trainer.fit(loader, epochs=2).to_json())
    assert losses[0] == losses[1]


def test_a_loader_in_the_middle_of_an_epoch_stays_there():
    loader, trainer = DataLoader(DATA, 8, shuffle=True, seed=3), make()
    batches = iter(loader)
    next(batches), next(batches)
    state = loader.state_dict()
    find_learning_rate(trainer, loader, steps=20)
    assert loader.state_dict() == state
    assert len(list(batches)) == 10
    resumed = DataLoader(DATA, 8, shuffle=True, seed=3)
    resumed.load_state_dict(state)
    find_learning_rate(trainer, resumed, steps=20)
    assert len(list(resumed)) == 10


@pytest.mark.filterwarnings("ignore:'set_vital':UserWarning")
def test_a_loader_with_a_state_is_put_back():
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    loader = stateful.StatefulDataLoader(DATA, 8, shuffle=False)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    resumed = stateful.StatefulDataLoader(DATA, 8, shuffle=False)
    resumed.load_state_dict(loader.state_dict())
    find_learning_rate(make(), resumed, steps=20)
    assert len(list(resumed)) == 7


def by_hand(rates):
    """The range test as anybody would write it."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    losses, batches = [], list(TorchLoader(DATA, 8))
    for at, rate in enumerate([*rates, rates[-1]]):
        optimizer.param_groups[0]["lr"] = rate
        x, y = batches[at % len(batches)]
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[1:]


def test_the_losses_are_those_of_a_loop_written_by_hand():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    trainer = Trainer(model, nn.MSELoss(), optimizer, device="cpu", progress=False)

    def step(batch):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss.detach()

    limits = {"low": 1e-4, "high": 1.0, "steps": 20}
    loader, wanted = DataLoader(DATA, 8), by_hand(RATES)
    found = find_learning_rate(trainer, loader, **limits)
    again = find_learning_rate(step, loader, model=model, optimizer=optimizer, **limits)
    assert [row.loss for row in found.rows] == wanted[: len(found.rows)]
    assert found == again
    assert [row.learning_rate for row in found.rows] == pytest.approx(RATES[: len(found.rows)])
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert not optimizer.state


def test_groups_keep_their_proportions():
    seen, kinds = [], set()
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    groups = [
        {"params": model[0].parameters(), "lr": 0.001},
        {"params": model[1].parameters(), "lr": torch.tensor(0.01)},
    ]
    optimizer = torch.optim.SGD(groups, foreach=False)
    optimizer.register_step_pre_hook(
        lambda o, *_: seen.append([float(g["lr"]) for g in o.param_groups])
    )
    optimizer.register_step_pre_hook(
        lambda o, *_: kinds.add(type(o.param_groups[1]["lr"]))  # a compiled one wants it to stay
    )
    trainer = Trainer(model, nn.MSELoss(), optimizer, device="cpu", progress=False)
    kept = optimizer.param_groups[1]["lr"]
    find_learning_rate(trainer, DataLoader(DATA, 8), steps=12)
    assert all(second == pytest.approx(10 * first) for first, second in seen)
    assert kinds == {torch.Tensor}
    assert seen[0][1] == pytest.approx(1e-7)
    assert optimizer.param_groups[0]["lr"] == 0.001
    assert optimizer.param_groups[1]["lr"] is kept
    assert float(kept) == pytest.approx(0.01)


def test_a_loss_far_above_its_lowest_ends_the_test():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = Trainer(model, nn.MSELoss(), optimizer, device="cpu", progress=False)
    found = find_learning_rate(trainer, DataLoader(DATA, 8), low=1e-4, high=10.0, steps=60)
    assert len(found.rows) < 60
    assert "the loss was far above its lowest" in found.why
    assert all(math.isfinite(row.loss) for row in found.rows)


def test_a_model_in_evaluation_is_trained_and_left_as_it_was():
    trainer = make()
    trainer.model.eval()
    modes = []
    trainer.model[1].register_forward_hook(lambda layer, *_: modes.append(layer.training))
    find_learning_rate(trainer, DataLoader(DATA, 8), steps=10)
    assert modes
    assert all(modes)
    assert not any(layer.training for layer in trainer.model.modules())


def test_a_loss_that_learns_is_put_back():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, output, target):
            self.calls += 1
            return ((self.scale * output - target) ** 2).mean()

    model, loss_fn = nn.Linear(4, 1), Scaled()
    optimizer = torch.optim.SGD([*model.parameters(), *loss_fn.parameters()], 0.1)
    trainer = Trainer(model, loss_fn, optimizer, device="cpu", progress=False)
    find_learning_rate(trainer, DataLoader(DATA, 8), steps=10)
    assert (loss_fn.scale.item(), loss_fn.calls.item()) == (1.0, 0.0)


@pytest.mark.parametrize("kind", ["no number", "refused by the loss"])
def test_a_model_that_goes_to_pieces_ends_the_test_and_comes_back(kind):
    torch.manual_seed(0)
    layers, loss_fn = [nn.Linear(4, 1)], nn.MSELoss()
    y = X.sum(1, keepdim=True)
    if kind == "refused by the loss":
        layers, loss_fn, y = [nn.Linear(4, 1), nn.Sigmoid()], nn.BCELoss(), (y > 0).float()
    model = nn.Sequential(*layers)
    if kind == "refused by the loss":  # what BCELoss says of NaN is an error
        model[0].weight.register_hook(lambda g: g * (math.nan if rate() > 1e-3 else 1.0))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def rate():
        return optimizer.param_groups[0]["lr"]

    trainer = Trainer(model, loss_fn, optimizer, device="cpu", progress=False)
    before = weights_of(trainer)
    found = find_learning_rate(trainer, DataLoader(TensorDataset(X, y), 8), high=1e20)
    assert len(found.rows) < 100
    assert "The test ended at" in found.why
    assert torch.equal(weights_of(trainer), before)


def test_what_is_wrong_with_the_function_passes_and_everything_is_put_back():
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = model.weight.detach().clone()

    def step(batch):
        with torch.no_grad():
            model.weight.add_(1)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        find_learning_rate(step, DataLoader(DATA, 8), model=model, optimizer=optimizer)
    assert torch.equal(model.weight, before)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_no_callback_is_called_and_no_schedule_moves():
    called = []

    class Tells(Callback):
        def on_step_end(self, trainer, step):
            called.append(step)

    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    before = copy.deepcopy(scheduler.state_dict())
    trainer = Trainer(
        model, nn.MSELoss(), optimizer, scheduler=scheduler, callbacks=[Tells()], device="cpu"
    )
    find_learning_rate(trainer, DataLoader(DATA, 8), steps=20)
    assert not called
    assert scheduler.state_dict() == before


@given(
    turn=st.floats(-5, -1),
    fall=st.floats(0.3, 3),
    noise=st.floats(0, 0.03),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_the_steepest_place_is_found(turn, fall, noise, seed):
    at = np.linspace(-7, 1, 100)
    losses = 3 - fall / (1 + np.exp(-4 * (at - turn)))
    losses[at > turn + 1.5] = np.exp(3 * (at[at > turn + 1.5] - turn))
    losses += fall * noise * np.random.default_rng(seed).standard_normal(100)
    found, lowest, why = judged(list(10**at), list(losses))
    assert abs(math.log10(found) - turn) < 0.5
    assert found < lowest
    assert why.startswith("Take ")


@pytest.mark.parametrize("last", [1e3, 1e12, 1e300])
def test_what_diverges_does_not_reach_back(last):
    at = np.linspace(-7, 1, 100)
    losses = 3 - 2 / (1 + np.exp(-4 * (at + 0.5)))
    wanted, *_ = judged(list(10**at), list(losses))
    losses[-1] = last
    found, *_ = judged(list(10**at), list(losses))
    assert abs(math.log10(found) - math.log10(wanted)) < 0.5


@given(seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_chance_is_no_fall(seed):
    losses = 2 + 0.2 * np.random.default_rng(seed).standard_normal(100)
    rates = list(10 ** np.linspace(-7, 1, 100))
    assert judged(rates, list(losses))[0] is None
    rising = np.linspace(0, 5, 100) + losses
    assert judged(rates, list(rising))[0] is None


def test_a_model_that_learns_nowhere_has_no_rate():
    trainer = make()
    trainer.updater.optimizer.param_groups[0]["lr"] = 0.0
    for parameter in trainer.model.parameters():
        parameter.register_hook(torch.zeros_like)
    found = find_learning_rate(trainer, DataLoader(DATA, 8, shuffle=True))
    assert found.learning_rate is None
    with pytest.raises(TrainingError, match="overfit_one_batch"):
        float(found)


def test_the_report_is_a_table_and_a_picture(tmp_path):
    found = find_learning_rate(make(), DataLoader(DATA, 48, shuffle=True))
    assert "learning rate" in str(found)
    assert str(found).count("\n") <= 17
    assert f"Take {found.learning_rate:.2g}" in str(found)
    found.plot(tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
    find_learning_rate(make(), DataLoader(DATA, 8), high=1e-6, steps=10).plot(tmp_path / "flat.svg")
    assert (tmp_path / "flat.svg").stat().st_size


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"low": 1.0, "high": 0.1}, OptionError, "no range of learning rates"),
        ({"low": 0.0}, OptionError, "no range"),
        ({"high": math.inf}, OptionError, "no range"),
        ({"low": math.nan}, OptionError, "no range"),
        ({"steps": 3}, OptionError, "write steps=100|Write steps=100"),
        ({"steps": 2.5}, OptionError, "steps=2.5 is no count"),
        ({"loader": []}, TrainingError, "gave no batch"),
        ({"loader": DATA}, OptionError, "no batches"),
        ({"loader": iter([])}, OptionError, "an iterator"),
        ({"loader": (b for b in [])}, OptionError, "an iterator"),
        ({"step": 3}, OptionError, "neither a Trainer nor a function"),
        ({"step": lambda batch: 1.0}, OptionError, "what it trains"),
        ({"model": nn.Linear(1, 1)}, OptionError, "a Trainer has its own model"),
    ],
)
def test_what_cannot_be_is_told(given, error, words):
    given = {"step": make(), "loader": DataLoader(DATA, 8), **given}
    with pytest.raises(error, match=words):
        find_learning_rate(given.pop("step"), given.pop("loader"), **given)


def test_functions_without_a_loss_and_optimizers_without_a_rate_are_told():
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loader, parts = DataLoader(DATA, 8), {"model": model, "optimizer": optimizer}
    for wrong in (lambda batch: None, lambda batch: torch.ones(3)):
        with pytest.raises(TrainingError, match="return loss"):
            find_learning_rate(wrong, loader, **parts)
    optimizer.param_groups[0]["lr"] = None
    with pytest.raises(OptionError, match="finds its learning rate itself"):
        find_learning_rate(lambda batch: 1.0, loader, **parts)


def test_batches_that_count_nothing_are_passed_over():
    y = torch.full((96,), -100)
    y[:48] = 1
    data = TensorDataset(X, y)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
    found = find_learning_rate(trainer, DataLoader(data, 8), steps=30)
    assert all(math.isfinite(row.loss) for row in found.rows)
    y[:] = -100
    with pytest.raises(TrainingError, match="count nothing"):
        find_learning_rate(trainer, DataLoader(data, 8), steps=30)
