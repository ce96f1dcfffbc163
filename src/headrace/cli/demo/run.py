"""The demo from start to end."""

import sys
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from headrace.cli.demo.data import Digits, load
from headrace.cli.demo.display import display_for
from headrace.cli.demo.model import digits_network
from headrace.cli.demo.settings import Settings, checked
from headrace.cli.demo.training import History, Training, train_loader
from headrace.cli.demo.waiting import measure_waiting
from headrace.cli.problems import CannotGoOn, need


def run_demo(*, epochs: int, batch_size: int, device: str, seed: int, out: Path) -> None:
    """Train on the digits, show how it goes, write the two pictures and print their paths.

    Raises ``WrongUse`` for a bad value or a missing extra, ``CannotGoOn`` when the pictures
    cannot be written.
    """
    need("demo", "sklearn", "matplotlib")
    digits = load(seed if seed >= 0 else 0)
    settings = checked(
        epochs=epochs,
        batch_size=batch_size,
        device=device,
        seed=seed,
        out=out,
        train_size=len(digits.train),
    )
    # A network this small gains nothing from a second thread, and loses seconds at OpenMP's
    # barriers when another program has the other core.
    torch.set_num_threads(1)
    # Lines are broken to fit a terminal, and left whole for whatever reads a pipe.
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    torch.manual_seed(settings.seed)
    model = digits_network().to(settings.device)
    _introduce(console, digits, model, settings)
    steps = len(train_loader(digits, settings))
    with display_for(console, settings.epochs, steps) as display:
        history = Training(model, digits, settings, display).run()
    _conclude(console, history)
    console.print(measure_waiting(digits, settings).line())
    for path in _draw(digits, history, settings):
        console.print(f"wrote {path}", markup=False, soft_wrap=True)


def _introduce(console: Console, digits: Digits, model: nn.Module, settings: Settings) -> None:
    weights = sum(weight.numel() for weight in model.parameters())
    console.print(
        f"{len(digits.train) + len(digits.validation):,} handwritten digits: "
        f"{len(digits.train):,} to train on, {len(digits.validation):,} to validate with"
    )
    console.print(
        f"a convolutional network of {weights:,} weights on {settings.device}, "
        f"mini-batches of {settings.batch_size}"
    )


def _conclude(console: Console, history: History) -> None:
    last = history.epochs[-1]
    seconds = sum(epoch.seconds for epoch in history.epochs)
    console.print(
        f"[bold]validation accuracy {last.accuracy:.4f}[/] "
        f"after {last.number} {'epoch' if last.number == 1 else 'epochs'} "
        f"({seconds:.1f} s of training and validating)"
    )


def _draw(digits: Digits, history: History, settings: Settings) -> list[Path]:
    from headrace.cli.demo.plots import draw_batch, draw_curves

    images, labels = next(iter(train_loader(digits, settings)))
    batch_png = settings.out / "digits-batch.png"
    curves_png = settings.out / "digits-curves.png"
    try:
        draw_batch(images, labels, batch_png)
        draw_curves(history, curves_png)
    except OSError as error:
        raise CannotGoOn(f"cannot write to {settings.out}: {error.strerror or error}") from None
    return [batch_png, curves_png]
