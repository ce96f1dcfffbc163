"""``headrace bench tokens``: blocks of a mapped corpus, and documents packed into blocks."""

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from headrace import DataLoader
from headrace.bench.costs import cpu_seconds
from headrace.bench.harness import (
    Report,
    Row,
    Say,
    Size,
    System,
    at_least,
    environment,
    in_turn,
    ratios,
    spread,
)
from headrace.data import PackedBlocks, TokenBlocks, TokenFile

_OURS = "headrace"
_END = 50_256
_LENGTH, _BATCH = 1024, 32
_MEANING = (
    "a mapped file of 100,000,000 uint16 tokens (1,000,000 quick) in the page cache, documents of "
    "log-normal lengths with mean 250; blocks of 1,024, batches of 32, shuffled; one torch thread; "
    "whole epochs",
    "bare gather: the same rows of a view of the file taken and made int64, twice, into buffers in "
    "turn, by numpy; nanoGPT: torch.stack of slices at 32 random places, as its get_batch; torch "
    "loader: a Dataset of the two slices of a block",
    "packing: from where documents begin to all blocks of 2,048; its figure is documents a second",
)


def measure(size: Size, say: Say) -> Report:
    """Measure all rows; takes about a minute, seconds when quick."""
    where = environment()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "corpus.bin"
            _write(path, size.choose(100_000_000, 1_000_000))
            corpus = TokenFile(path, "uint16", end_token=_END)
            rows = [*_block_rows(corpus, size, say), *_packed_rows(corpus, size, say)]
    finally:
        torch.set_num_threads(threads)
    return Report("tokens", _MEANING, tuple(rows), size, {**where, "torch_threads": 1})


def _write(path: Path, tokens: int) -> None:
    draw = np.random.default_rng(0)
    made = draw.integers(0, _END, tokens, np.uint16)
    lengths = np.maximum(draw.lognormal(np.log(250) - 0.5, 1.0, tokens // 200), 1).astype(np.int64)
    ends = np.cumsum(lengths)
    made[ends[ends < tokens] - 1] = _END
    made[-1] = _END
    made.tofile(path)


class _Slices(torch.utils.data.Dataset[Any]):
    """A dataset as people write it over a mapped file."""

    def __init__(self, tokens: npt.NDArray[Any]) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // _LENGTH

    def __getitem__(self, index: int) -> Any:
        start = index * _LENGTH
        block = torch.from_numpy(self.tokens[start : start + _LENGTH + 1].astype(np.int64))
        return block[:-1], block[1:]


def _block_rows(corpus: TokenFile, size: Size, say: Say) -> list[Row]:
    say("blocks, four systems")
    blocks = TokenBlocks(corpus, _LENGTH)
    ours = DataLoader(blocks, _BATCH, shuffle=True)
    theirs = torch.utils.data.DataLoader(_Slices(corpus.tokens), _BATCH, shuffle=True)
    runs = in_turn(
        {
            _OURS: lambda: _timed(lambda: ours),
            "bare gather": lambda: _timed(lambda: _bare(corpus.tokens, len(blocks))),
            "nanoGPT": lambda: _timed(lambda: _nanogpt(corpus.tokens, len(blocks))),
            "torch loader": lambda: _timed(lambda: theirs),
        },
        size.rounds,
    )
    bounds = {"bare gather": 0.9, "nanoGPT": 1.0, "torch loader": 1.0}
    return [
        _row(f"{len(blocks):,} blocks of {_LENGTH:,}", len(blocks) * _LENGTH, runs, other, bound)
        for other, bound in bounds.items()
    ]


def _timed(make: Callable[[], Iterable[Any]]) -> tuple[float, float]:
    cpu, started = cpu_seconds(), time.perf_counter()
    for batch in make():  # noqa: B007
        pass
    return time.perf_counter() - started, cpu_seconds() - cpu


def _bare(tokens: npt.NDArray[Any], blocks: int) -> Iterable[Any]:
    windows = np.lib.stride_tricks.sliding_window_view(tokens, _LENGTH + 1)
    buffers = [np.empty((2, _BATCH, _LENGTH), np.int64) for _ in range(8)]
    order = torch.randperm(blocks).numpy() * _LENGTH
    for number, start in enumerate(range(0, blocks, _BATCH)):
        rows = windows[order[start : start + _BATCH]]
        x, y = buffers[number % len(buffers)][:, : len(rows)]
        x[...], y[...] = rows[:, :-1], rows[:, 1:]
        yield x, y


def _nanogpt(tokens: npt.NDArray[Any], blocks: int) -> Iterable[Any]:
    def slices(starts: list[int]) -> torch.Tensor:
        cut = [tokens[start : start + _LENGTH].astype(np.int64) for start in starts]
        return torch.stack([torch.from_numpy(part) for part in cut])

    for _ in range(-(-blocks // _BATCH)):
        starts = torch.randint(len(tokens) - _LENGTH, (_BATCH,)).tolist()
        yield slices(starts), slices([start + 1 for start in starts])


def _packed_rows(corpus: TokenFile, size: Size, say: Say) -> list[Row]:
    documents = len(corpus.documents) - 1
    say(f"{documents:,} documents packed")
    took = []
    for _ in range(size.rounds):
        started = time.perf_counter()
        packed = PackedBlocks(corpus, 2 * _LENGTH)
        took.append(time.perf_counter() - started)
    rates = spread([documents / seconds / 1e6 for seconds in took])
    fill = spread([100 * packed.fill])
    loader = DataLoader(packed, _BATCH // 2, shuffle=True)
    epochs = [_timed(lambda: loader)[0] for _ in range(size.rounds)]
    read = spread([len(corpus) / seconds / 1e6 for seconds in epochs])
    work = f"{documents:,} documents into blocks of {2 * _LENGTH:,}"
    return [
        Row(
            work=work,
            figure="planned",
            value=rates,
            unit="M documents/s",
            target=at_least(5),
            systems=(System(_OURS, rates, "M documents/s"),),
        ),
        Row(
            work=work,
            figure="places that hold tokens",
            value=fill,
            unit="%",
            target=at_least(99),
            systems=(System(_OURS, fill, "%"),),
            note=f"an epoch of them reads {read.median:.3g} M tokens/s",
        ),
    ]


def _row(
    work: str, tokens: int, runs: dict[str, list[tuple[float, float]]], other: str, bound: float
) -> Row:
    def system(name: str) -> System:
        rate = spread([tokens / seconds / 1e6 for seconds, _ in runs[name]])
        return System(name, rate, "M tokens/s", spread([cpu for _, cpu in runs[name]]).median)

    return Row(
        work=work,
        figure=f"throughput, headrace / {other}",
        value=ratios([s for s, _ in runs[other]], [s for s, _ in runs[_OURS]]),
        unit="x",
        target=at_least(bound),
        systems=(system(_OURS), system(other)),
    )
