"""The parts of the demo: split, averages, displays, the comparison's words."""

import io
import math

import pytest
import torch
from rich.console import Console

from headrace.cli.demo.data import load
from headrace.cli.demo.display import EpochResult, LiveDisplay, PlainDisplay, display_for
from headrace.cli.demo.model import digits_network
from headrace.cli.demo.settings import Settings
from headrace.cli.demo.training import Training
from headrace.cli.demo.waiting import Waiting


@pytest.fixture(scope="module")
def digits():
    return load(seed=0)


def test_the_split_is_stratified_and_loses_nothing(digits):
    train, validation = digits.train.tensors, digits.validation.tensors
    assert len(train[1]) + len(validation[1]) == 1797
    everything = torch.cat([train[0], validation[0]]).flatten(1)
    assert len(torch.unique(everything, dim=0)) == 1797
    shares = torch.bincount(validation[1]) / (
        torch.bincount(train[1]) + torch.bincount(validation[1])
    )
    assert shares.sub(0.2).abs().max() < 0.01


def test_the_split_depends_on_the_seed_alone(digits):
    torch.manual_seed(123)
    again, other = load(seed=0), load(seed=1)
    assert torch.equal(again.validation.tensors[0], digits.validation.tensors[0])
    assert not torch.equal(other.validation.tensors[0], digits.validation.tensors[0])


def test_the_train_loss_is_weighted_by_samples(digits, tmp_path):
    # 1,438 images in batches of 1,000: the second batch has 438, and counts for 438.
    settings = Settings(1, 1000, torch.device("cpu"), 0, tmp_path)
    console = Console(file=io.StringIO())
    history = Training(digits_network(), digits, settings, PlainDisplay(console, 1)).run()
    first, second = history.step_losses
    weighted = (first * 1000 + second * 438) / 1438
    assert math.isclose(history.epochs[0].train_loss, weighted, rel_tol=1e-9)


def test_a_terminal_gets_the_bar_and_all_else_lines():
    terminal = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "xterm"})
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    pipe = Console(file=io.StringIO())
    assert isinstance(display_for(terminal, 1, 1), LiveDisplay)
    assert isinstance(display_for(dumb, 1, 1), PlainDisplay)
    assert isinstance(display_for(pipe, 1, 1), PlainDisplay)


def test_the_live_bar_shows_loss_and_rate_and_leaves_the_epochs_line():
    screen = io.StringIO()
    environment = {"TERM": "xterm", "COLUMNS": "100"}
    console = Console(file=screen, force_terminal=True, width=100, _environ=environment)
    with LiveDisplay(console, epochs=2, steps=3) as display:
        display.epoch_begins(1)
        for _ in range(3):
            display.step(0.4321, 9876.0)
        display.epoch_ends(EpochResult(1, 0.5, 0.4, 0.875, 9876.0, 0.1))
    shown = screen.getvalue()
    for part in ("3/3", "0.4321", "9,876", "validation accuracy", "0.8750"):
        assert part in shown


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        (0.010, 0.150, "headrace 10.0 ms, torch's loader 150.0 ms (15.0 times as long)"),
        (0.100, 0.101, "(no difference)"),
        (0.300, 0.100, "(headrace is slower, 3.0 times as long)"),
    ],
)
def test_the_comparison_is_honest_both_ways(ours, theirs, verdict):
    line = Waiting(headrace_s=ours, torch_s=theirs, epochs=12, batches=23, runs=5).line()
    assert verdict in line
    assert "12 epochs of 23 shuffled batches; medians of 5 runs" in line
