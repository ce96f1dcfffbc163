"""JSON lines in shuffled order, beside a bare loop that seeks, reads a line and parses it."""

import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from headrace.bench.harness import Row, Say, Size, System, at_least, in_turn, ratios, spread
from headrace.bench.workers.work import OURS, Run, Work, memory_mib, run, system, two_bare_loops
from headrace.data.text import JSONLines

_BATCH = 256
_PROCESSES = 2
_BARE = "two bare loops"


def text(size: Size, say: Say) -> list[Row]:
    """Measure 1,000,000 JSON lines; takes about a minute and 230 MB of disk."""
    count = size.choose(1_000_000, 20_000)
    say(f"JSON lines: {count:,}, shuffled")
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as directory:
        path = os.path.join(directory, "lines.jsonl")
        offsets = _write(path, count)
        started = time.perf_counter()
        data = JSONLines(path, cache_dir=directory)
        index_s = time.perf_counter() - started
        order = np.random.default_rng(1).permutation(count)
        ours = partial(run, _Shuffled(data, _BATCH, _PROCESSES), OURS)
        loops = partial(_bare_loops, path, offsets[order])
        runs = in_turn({OURS: ours, _BARE: loops}, size.rounds)
        return [
            Row(
                work=f"JSON lines, {count:,}, shuffled, batch {_BATCH}, {_PROCESSES} processes",
                figure=f"throughput, headrace / {_BARE} at once",
                value=ratios([r.rate for r in runs[OURS]], [r.rate for r in runs[_BARE]]),
                unit="x",
                target=at_least(0.9),
                systems=(
                    _system(OURS, runs[OURS], memory_mib(ours)),
                    _system(_BARE, runs[_BARE], memory_mib(lambda _: loops())),
                ),
                note=f"index of {os.path.getsize(path) / 1e6:,.0f} MB built in {index_s:.2g} s",
            )
        ]


class _Shuffled(Work):
    def loader(self, system: str, **more: Any) -> Any:
        return super().loader(system, shuffle=True, **more)


def _system(name: str, runs: list[Run], added_mib: float) -> System:
    return system(name, spread([r.rate / 1e3 for r in runs]), "k lines/s", runs, added_mib)


def _write(path: str, count: int) -> Any:
    """Write lines of about 230 bytes; return where they begin."""
    words = ["water", "wheel", "channel", "mill", "stone", "grain", "sluice", "weir", "race"]
    draw = np.random.default_rng(0)
    picked = draw.integers(0, len(words), (count, 24)).tolist()
    lengths = np.empty(count, np.int64)
    with open(path, "wb") as file:
        for number, row in enumerate(picked):
            text = " ".join(words[word] for word in row)
            record = {"id": number, "text": text, "label": number % 10, "score": number / 7}
            lengths[number] = file.write(json.dumps(record).encode() + b"\n")
    return np.concatenate([[0], np.cumsum(lengths)[:-1]])


def _bare_loops(path: str, offsets: Any) -> Run:
    """Let two processes read and parse half of the lines each, and do nothing with them."""
    halves = [offsets[part::2].tolist() for part in range(2)]

    def loop(part: int, ready: Callable[[], object]) -> None:
        with open(path, "rb") as file:
            ready()
            for place in halves[part]:
                file.seek(place)
                json.loads(file.readline())

    return two_bare_loops(len(offsets), loop)
