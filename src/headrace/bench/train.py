"""``headrace bench train``: what the Trainer costs beside the same loop written by hand."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from headrace import DataLoader, TensorDataset
from headrace.bench.harness import (
    Report,
    Row,
    Say,
    Size,
    System,
    at_most,
    environment,
    in_turn,
    spread,
)
from headrace.train import Trainer

OURS = "headrace"
BY_HAND = "by hand"
_BATCH = 64
_FEATURES = 128
_HIDDEN = 384  # about 1 ms a step
_OVERHEAD = 3.0
_TURNS = 15  # of each system in a round: short ones, for a machine's speed drifts

_MEANING = (
    "overhead: the time that Trainer.fit takes for an epoch beyond that of the loop written by "
    "hand over the same kind of loader; guards on, progress off, no validation, no checkpoints",
    f"{_TURNS} turns of each in every round, one thread",
)


def measure(size: Size, say: Say) -> Report:
    """Measure all rows; takes about two minutes, and some seconds when quick."""
    where = environment()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = (_row(size, say, _HIDDEN),)
    finally:
        torch.set_num_threads(threads)
    return Report("train", _MEANING, rows, size, where)


def _row(size: Size, say: Say, hidden: int) -> Row:
    steps = size.choose(400, 20)
    say(f"{steps} steps of an MLP of width {hidden}, in turn")
    runs = {OURS: _ours(steps, hidden), BY_HAND: _by_hand(steps, hidden)}
    for run in runs.values():
        run()
    turns = size.rounds * size.choose(_TURNS, 1)
    times = in_turn(runs, turns)
    pairs = zip(times[OURS], times[BY_HAND], strict=True)
    overhead = [100 * (ours / by_hand - 1) for ours, by_hand in pairs]
    per_step = {name: spread([1e3 * t / steps for t in values]) for name, values in times.items()}
    return Row(
        f"MLP {_FEATURES}-{hidden}-{hidden}-10, batches of {_BATCH}, Adam",
        "overhead of Trainer.fit",
        spread(overhead),
        "%",
        at_most(_OVERHEAD),
        tuple(System(name, figure, "ms/step") for name, figure in per_step.items()),
    )


def _parts(steps: int, hidden: int) -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(_FEATURES, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )
    dataset = TensorDataset(
        torch.randn(steps * _BATCH, _FEATURES), torch.randint(10, (steps * _BATCH,))
    )
    loader = DataLoader(dataset, batch_size=_BATCH, shuffle=True)
    return model, torch.optim.Adam(model.parameters(), 1e-4), loader


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _ours(steps: int, hidden: int) -> Callable[[], float]:
    model, optimizer, loader = _parts(steps, hidden)
    trainer = Trainer(model, nn.CrossEntropyLoss(), optimizer, device="cpu", progress=False)
    return partial(_timed, partial(trainer.fit, loader))


def _by_hand(steps: int, hidden: int) -> Callable[[], float]:
    model, optimizer, loader = _parts(steps, hidden)
    loss_fn = nn.CrossEntropyLoss()

    def epoch() -> None:
        model.train()
        total = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(x)

    return partial(_timed, epoch)
