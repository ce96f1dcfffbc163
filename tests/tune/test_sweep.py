"""Batch size against speed, memory and accuracy."""

import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import TensorDataset

from headrace import OptionError
from headrace.tune import SweepReport, SweepRow, sweep_batch_sizes
from headrace.tune.sweep import _advice

torch.manual_seed(0)
X = torch.randn(256, 6)
Y = (X.sum(1) > 0).long()


def sweep(model, **options):
    options = {"batch_sizes": (8, 64), "epochs": 2, "show": False, **options}
    return sweep_batch_sizes(
        model,
        nn.CrossEntropyLoss(),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        TensorDataset(X, Y),
        **options,
    )


@pytest.fixture
def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 2))


def test_each_size_is_trained_from_the_same_start_by_the_plain_loop(model):
    """Losses and accuracies are those of a loop written by hand."""
    import copy

    from headrace import DataLoader

    report = sweep(model, seed=5, validation=TensorDataset(X[:50], Y[:50]))
    for row in report.rows:
        torch.manual_seed(5)
        net = copy.deepcopy(model)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        loader = DataLoader(TensorDataset(X, Y), row.batch_size, shuffle=True, seed=5)
        for _ in range(2):
            total = 0.0
            for x, y in loader:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(net(x), y)
                loss.backward()
                optimizer.step()
                total += loss.item() * len(x)
        net.eval()
        with torch.no_grad():
            outputs = net(X[:50])
        assert row.loss == pytest.approx(total / 256, abs=1e-6)
        wanted = nn.functional.cross_entropy(outputs, Y[:50]).item()
        assert row.val_loss == pytest.approx(wanted)
        assert row.accuracy == pytest.approx((outputs.argmax(1) == Y[:50]).double().mean().item())


def test_the_model_and_the_random_state_stay_as_they_are(model):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = sweep(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    again = sweep(model)
    assert [r.val_loss for r in again.rows] == [r.val_loss for r in first.rows]


def test_figures(model):
    report = sweep(model)
    assert [row.batch_size for row in report.rows] == [8, 64]
    for row in report.rows:
        assert row.samples_per_s == pytest.approx(256 / row.epoch_s)
        assert row.memory_bytes is None  # on the CPU it would be noise
        assert 0 <= row.accuracy <= 1
    assert report.best in report.rows


def test_regression_has_no_accuracy_unless_it_is_told_what_that_is():
    def run(**options):
        return sweep_batch_sizes(
            nn.Linear(6, 1),
            nn.MSELoss(),
            lambda parameters: torch.optim.SGD(parameters, lr=0.01),
            TensorDataset(X, X.sum(1, keepdim=True)),
            batch_sizes=[32],
            epochs=1,
            show=False,
            **options,
        )

    report = run()
    assert report.rows[0].accuracy is None
    assert "val_loss" in report.advice
    assert "accuracy" not in str(report)
    assert report.to_frame()["batch_size"].tolist() == [32]
    close = run(accuracy=lambda outputs, targets: ((outputs - targets).abs() < 100).float().mean())
    assert close.rows[0].accuracy == 1.0


@pytest.mark.parametrize(
    ("make_optimizer", "rates"),
    [
        (lambda parameters, batch_size: torch.optim.SGD(parameters, batch_size / 64), [0.125, 1.0]),
        (torch.optim.SGD, [1e-3, 1e-3]),  # its second argument is no batch size
        (partial(torch.optim.SGD, lr=0.5), [0.5, 0.5]),
    ],
)
def test_the_optimizer_is_told_the_batch_size_where_it_asks(model, make_optimizer, rates):
    seen = []

    def spy(optimizer, *_):
        seen.append(optimizer.param_groups[0]["lr"])

    hook = register_optimizer_step_pre_hook(spy)
    try:
        data, loss_fn = TensorDataset(X, Y), nn.CrossEntropyLoss()
        options = {"batch_sizes": (8, 64), "epochs": 1, "show": False}
        sweep_batch_sizes(model, loss_fn, make_optimizer, data, **options)
    finally:
        hook.remove()
    assert seen == [rates[0]] * 32 + [rates[1]] * 4


def test_losses_count_the_targets_that_are_not_ignored(model):
    labels = Y.clone()
    labels[:100] = -100
    report = sweep_batch_sizes(
        model,
        nn.CrossEntropyLoss(),
        partial(torch.optim.SGD, lr=0.0),
        TensorDataset(X, labels),
        batch_sizes=[48],
        epochs=1,
        show=False,
        accuracy=lambda outputs, targets: None,
    )
    wanted = nn.functional.cross_entropy(model.eval()(X), labels).item()
    assert report.rows[0].val_loss == pytest.approx(wanted, rel=1e-5)


def row(size, rate, accuracy, loss=1.0):
    return SweepRow(size, rate, 1.0, None, 1.0, loss, accuracy)


@pytest.mark.parametrize(
    ("rows", "best", "advice"),
    [
        # As accurate as any, and the quickest.
        ([row(16, 10, 0.9), row(64, 40, 0.9), row(256, 90, 0.95)], 256, "the best of all"),
        # Too inaccurate, however quick.
        (
            [row(16, 10, 0.95), row(64, 40, 0.945), row(256, 90, 0.9)],
            64,
            "beside accuracy 0.9500 at 16",
        ),
        # Hardly quicker: the smaller one.
        ([row(16, 10, 0.9), row(64, 95, 0.9), row(256, 100, 0.9)], 64, "accuracy 0.9000"),
        (
            [row(16, 10, None, 1.0), row(64, 40, None, 1.005), row(256, 90, None, 1.1)],
            64,
            "val_loss 1.005",
        ),
    ],
)
def test_the_advice(rows, best, advice):
    chosen, sentence = _advice(rows)
    assert chosen.batch_size == best
    assert sentence.startswith(f"Take batch size {best}:")
    assert advice in sentence


def test_shown_as_a_table_a_frame_and_a_picture(model, capsys, tmp_path):
    report = sweep(model, show=True)
    printed = capsys.readouterr().out
    assert printed == f"{report}\n"
    headings = "batch size samples/s epoch s loss val_loss accuracy"
    assert printed.splitlines()[0].split() == headings.split()
    assert printed.splitlines()[-1] == report.advice
    frame = report.to_frame()
    assert frame["batch_size"].tolist() == [8, 64]
    assert frame["accuracy"].tolist() == [row.accuracy for row in report.rows]
    path = report.plot(tmp_path / "sweep.png")
    measured = replace(report, rows=[replace(row, memory_bytes=3 << 20) for row in report.rows])
    assert "MiB" in str(measured)
    assert path.read_bytes().startswith(b"\x89PNG")
    for known in (report, sweep(model, epochs=1, accuracy=lambda outputs, targets: None)):
        known.plot(tmp_path / "other.png")


def test_the_picture_has_ticks_of_one_kind_and_whole_marks(monkeypatch, tmp_path):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: drawn.append(self))
    rows = [SweepRow(8, 900.0, 1, None, 0.1, 0.1, 0.5), SweepRow(2048, 14e4, 1, None, 0, 0, 0.75)]
    SweepReport(tuple(rows), rows[0], "", 1).plot(tmp_path / "sweep.png")
    speed, quality = drawn[0].axes
    ticks = [label.get_text() for label in speed.get_yticklabels()]
    assert "100,000" in ticks
    assert "100000" not in ticks
    assert "0.50" in [label.get_text() for label in quality.get_yticklabels()]
    assert [label.get_text() for label in speed.get_xticklabels()] == ["8", "2,048"]
    assert not any(line.get_clip_on() for axes in (speed, quality) for line in axes.lines)


def test_options_go_to_the_loader(model):
    def collate(samples):
        x, y = torch.utils.data.default_collate(samples)
        return {"x": x, "label": y}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = model

        def forward(self, x):
            return self.layers(x)

    report = sweep(Model(), batch_sizes=[128], collate_fn=collate)
    assert report.rows[0].accuracy is not None


@pytest.mark.parametrize("options", [{"batch_sizes": ()}, {"batch_sizes": (8, 0)}, {"epochs": 0}])
def test_nothing_to_train(model, options):
    with pytest.raises(OptionError, match="leave nothing to train"):
        sweep(model, **options)


SGD = torch.optim.SGD([torch.zeros(1)], lr=0.1)
LOADER = torch.utils.data.DataLoader(TensorDataset(X, Y))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"make_optimizer": SGD}, r"make_optimizer is a SGD, .*lambda p: torch\.optim\.SGD\(p, lr"),
        ({"make_optimizer": None}, "make_optimizer is a NoneType, .*torch.optim.SGD"),
        ({"dataset": LOADER}, "dataset is a DataLoader, .*dataset=loader.dataset"),
        ({"validation": LOADER}, "validation is a DataLoader, .*validation=loader.dataset"),
        ({"batch_sizes": 64}, r"batch_sizes=64 is one size, .*or \(64,\) for one"),
        ({"device": "gpu"}, r"device='gpu' .* Write sweep_batch_sizes\(\.\.\., device='cpu'\)"),
    ],
)
def test_wrong_use_says_what_to_write(model, wrong, words):
    given = {"make_optimizer": torch.optim.SGD, "dataset": TensorDataset(X, Y), **wrong}
    with pytest.raises(OptionError, match=words):
        sweep_batch_sizes(model, nn.CrossEntropyLoss(), show=False, **given)
