"""Averaged weights: torch's own average, in the model when it is evaluated, exact on resume."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from headrace import DataLoader, TensorDataset
from headrace.errors import OptionError, StateError
from headrace.train import EMA, Callback, EarlyStopping, Trainer


class Oracle(Callback):
    """torch's own average, and what the model has at each epoch's end and start."""

    def __init__(self, decay):
        self.decay = decay
        self.raw, self.seen, self.averaged, self.losses = [], [], None, []

    def on_step_end(self, trainer, step):
        if self.averaged is None:
            average = get_ema_multi_avg_fn(self.decay)
            self.averaged = AveragedModel(trainer.model, multi_avg_fn=average)
        self.averaged.update_parameters(trainer.model)
        self.last = copy.deepcopy(trainer.model.state_dict())

    def on_epoch_start(self, trainer, epoch):
        if epoch:
            self.raw.append(same(trainer.model.state_dict(), self.last))

    def on_epoch_end(self, trainer, epoch, values):
        self.seen.append(same(trainer.model.state_dict(), self.averaged.module.state_dict()))
        self.losses.append(values.get("val_loss"))


class Killed(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer, step):
        if step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """BatchNorm over eight numbers waits for a second thread, on a machine that has other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def data(seed=0):
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x.sum(1, keepdim=True))


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))


def trainer_with(*callbacks, model=None, **options):
    model = model or net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Trainer(
        model, nn.MSELoss(), optimizer, device="cpu", progress=False, guards=False,
        callbacks=callbacks, **options,
    )  # fmt: skip


def fit(trainer, folder=None, epochs=4, **options):
    loader = DataLoader(data(), 8, shuffle=True, seed=3)
    return trainer.fit(loader, DataLoader(data(1), 8), epochs, folder, **options)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_is_torchs_average_while_evaluated_and_at_the_end_only(accumulate):
    oracle = Oracle(0.9)
    trainer = trainer_with(EMA(0.9, warmup=False), oracle, accumulate=accumulate)
    history = fit(trainer)
    assert oracle.seen == [True] * 4
    assert oracle.raw == [True] * 3
    wanted = oracle.averaged.module
    assert same(trainer.model.state_dict(), wanted.state_dict())
    assert history.epochs[-1]["val_loss"] == trainer.evaluate(DataLoader(data(1), 8))["loss"]
    plain = fit(trainer_with(accumulate=accumulate))
    assert [row["loss"] for row in plain.epochs] == [row["loss"] for row in history.epochs]


def test_the_first_weights_do_not_outweigh_a_short_training():
    ema = EMA(0.9999)
    fit(warm := trainer_with(ema))
    fit(cold := trainer_with(EMA(0.9999, warmup=False)))
    fit(plain := trainer_with())
    assert ema.updates == 20

    def distance(one):
        return sum(
            float((a - b).detach().norm())
            for a, b in zip(one.model.parameters(), plain.model.parameters(), strict=True)
        )

    assert distance(warm) < distance(cold) / 2


@pytest.mark.parametrize("killed", [3, 5, 6, 14])
def test_a_run_that_was_killed_has_the_same_average(tmp_path, killed):
    fit(whole := trainer_with(EMA(0.9)), tmp_path / "whole", checkpoint_every_steps=2)
    with pytest.raises(KeyboardInterrupt):
        fit(trainer_with(EMA(0.9), Killed(killed)), tmp_path / "run", checkpoint_every_steps=2)
    again = trainer_with(EMA(0.9))
    history = fit(again, tmp_path / "run", checkpoint_every_steps=2)
    assert same(again.model.state_dict(), whole.model.state_dict())
    assert len(history.epochs) == 4


def test_a_finished_run_gives_its_average_and_goes_on_from_the_weights(tmp_path):
    fit(first := trainer_with(EMA(0.9)), tmp_path, epochs=2)
    fit(again := trainer_with(EMA(0.9)), tmp_path, epochs=2)
    assert same(again.model.state_dict(), first.model.state_dict())
    fit(more := trainer_with(EMA(0.9)), tmp_path, epochs=4)
    fit(whole := trainer_with(EMA(0.9)), epochs=4)
    assert same(more.model.state_dict(), whole.model.state_dict())


def test_a_compiled_model_s_average_is_the_plain_one_s(tmp_path):
    fit(first := trainer_with(EMA(0.9)), tmp_path, epochs=2)
    wrapped = torch.compile(net(), backend="eager")
    fit(trainer_with(EMA(0.9), model=wrapped), tmp_path, epochs=2)
    assert same(wrapped._orig_mod.state_dict(), first.model.state_dict())


def test_a_lazy_model_is_averaged_from_its_first_step():
    lazy = nn.Sequential(nn.LazyLinear(1))
    ema = EMA(0.5)
    ema.on_fit_start(trainer := type("T", (), {"model": lazy}))
    lazy(torch.zeros(1, 3))
    ema.on_step_end(trainer, 1)
    assert ema.updates == 1


@pytest.mark.parametrize("ema_first", [True, False])
def test_early_stopping_gives_back_the_averaged_weights_of_the_best_epoch(ema_first):
    class Best(Callback):
        def __init__(self):
            self.weights = []

        def on_epoch_end(self, trainer, epoch, values):
            values["val_loss"] = [3.0, 1.0, 2.0, 2.0][epoch]
            self.weights.append(copy.deepcopy(trainer.model.state_dict()))

    best, own = Best(), [EMA(0.9), EarlyStopping(patience=2)]
    trainer = trainer_with(best, *(own if ema_first else reversed(own)))
    fit(trainer)
    parameters = dict(trainer.model.named_parameters())
    assert same(parameters, {name: best.weights[1][name] for name in parameters})


def test_two_averages_leave_the_weights_as_they_were():
    oracle = Oracle(0.9)
    fit(trainer_with(EMA(0.5), oracle, EMA(0.9, warmup=False)))
    assert oracle.raw == [True] * 3


def test_a_failing_validation_leaves_the_weights_themselves():
    class Fails(Callback):
        def on_epoch_end(self, trainer, epoch, values):
            raise ZeroDivisionError

    oracle = Oracle(0.9)
    trainer = trainer_with(EMA(0.9), oracle, Fails())
    with pytest.raises(ZeroDivisionError):
        fit(trainer)
    assert same(trainer.model.state_dict(), oracle.last)


def test_another_fit_begins_anew():
    ema = EMA(0.9)
    trainer = trainer_with(ema)
    fit(trainer, epochs=1)
    fit(trainer, epochs=2)
    assert ema.updates == 10


def test_callbacks_in_another_order_are_refused(tmp_path):
    fit(trainer_with(EMA(0.9), EarlyStopping()), tmp_path, epochs=1)
    with pytest.raises(StateError, match="with EMA, EarlyStopping callbacks, and this Trainer has"):
        fit(trainer_with(EarlyStopping(), EMA(0.9)), tmp_path, epochs=2)
    with pytest.raises(StateError, match="with 2 callbacks that have a state"):
        fit(trainer_with(EMA(0.9)), tmp_path, epochs=2)


def test_an_average_of_other_parameters_is_refused():
    ema = EMA(0.9)
    ema.load_state_dict({"updates": 1, "average": {"weight": torch.zeros(2)}})
    with pytest.raises(StateError, match="of other parameters"):
        fit(trainer_with(ema))


@pytest.mark.parametrize("decay", [1, -0.1, float("nan"), "0.9", True, None])
def test_decays_that_cannot_be(decay):
    with pytest.raises(OptionError, match=r"Write EMA\(decay=0\.999\)"):
        EMA(decay)


def test_a_warmup_that_is_no_yes_or_no():
    with pytest.raises(OptionError, match="warmup=100"):
        EMA(0.9, warmup=100)


def test_a_step_that_was_not_taken_is_not_averaged():
    ema = EMA(0.9)
    batches = [(x, y) for x, y in DataLoader(data(), 8)]
    nothing = batches[2][0]
    trainer = trainer_with(ema, weight=lambda batch: 0 if batch[0] is nothing else len(batch[0]))
    trainer.fit(batches)
    assert ema.updates == len(batches) - 1
