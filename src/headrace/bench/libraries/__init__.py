"""``headrace bench libraries``: what ``headrace run`` brings to programs of other libraries.

The programs beside this file know nothing of headrace. Python runs each with torch's loader and
``headrace run`` with ours; :mod:`headrace.bench.libraries.meter` adds up the time between the
loop's asking for a batch and its having it. Before that, each runs once with both to compare all
values of all batches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
import torch.utils.data
from torch.utils.data import TensorDataset

from headrace import installed
from headrace.bench.harness import (
    Report,
    Row,
    Say,
    Size,
    System,
    at_least,
    at_most,
    environment,
    in_turn,
    ratios,
    spread,
)

_HERE = Path(__file__).parent
_Kind = Literal["torch", "headrace"]
_PICTURES = 256  # JPEG files
_STATE_US = 100


@dataclass(frozen=True)
class _Program:
    """A program, the modules it needs, and how many batches and epochs it goes through."""

    work: str
    file: str
    needs: tuple[str, ...]
    batches: int
    epochs: int


_PROGRAMS = (
    _Program("Lightning, texts padded", "lightning_texts.py", ("lightning",), 300, 3),
    _Program(
        "the Trainer of transformers, texts padded",
        "trainer_texts.py",
        ("transformers", "accelerate", "datasets"),
        150,
        3,
    ),
    _Program("PyTorch Geometric, small graphs", "graphs.py", ("torch_geometric",), 100, 3),
    _Program("timm, a folder of JPEG files, 2 workers", "jpegs.py", ("timm",), 8, 3),
    _Program("a script, batches of 64x3x224x224, 2 workers", "plain.py", (), 40, 3),
)


def measure(size: Size, say: Say) -> Report:
    """Measure the programs whose libraries are here, and say which are not."""
    meaning = [
        "seconds that a program waits for its loader, in iter() and next(), over 3 epochs; the "
        "figure is torch / headrace",
        "the programs are unmodified: torch's side is run by Python, headrace's by `headrace run`",
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for program in _PROGRAMS:
            missing = [module for module in program.needs if find_spec(module) is None]
            if missing:
                meaning.append(f"left out: {program.work}, for want of {', '.join(missing)}")
                say(meaning[-1])
                continue
            rows.append(_row(program, Path(folder), size, say))
    if find_spec("accelerate") is not None:
        rows.append(_states(size, say))
    return Report("libraries", tuple(meaning), tuple(rows), size, environment())


def _states(size: Size, say: Say) -> Row:
    """Measure what accelerate pays where it takes a state behind each batch."""
    say("states behind each batch, under accelerate")
    with installed():
        import accelerate

        loader = accelerate.Accelerator(cpu=True).prepare(
            torch.utils.data.DataLoader(TensorDataset(torch.arange(100_000)), 4, shuffle=True)
        )
        took = []
        for _ in range(size.rounds):
            rounds = []
            for number, _batch in enumerate(loader):
                started = time.perf_counter()
                loader.base_dataloader.state_dict()
                rounds.append(time.perf_counter() - started)
                if number == size.choose(500, 20):
                    break
            took.append(1e6 * median(rounds))
    return Row(
        work="state_dict() behind each batch, as accelerate takes it",
        figure="median",
        value=spread(took),
        unit="us",
        target=at_most(_STATE_US),
        systems=(System("headrace", spread(took), "us"),),
        note="100,000 samples, shuffled",
    )


def _row(program: _Program, folder: Path, size: Size, say: Say) -> Row:
    say(program.work)
    run = partial(_run, program, folder, size)
    theirs, ours = run("torch", "digest"), run("headrace", "digest")
    equal = all(theirs[name] == ours[name] for name in ("batches", "digest"))
    if not equal:
        raise RuntimeError(f"{program.work}: headrace's batches are not torch's")
    systems = {kind: partial(run, kind, "time") for kind in ("headrace", "torch")}
    runs = in_turn(systems, size.rounds)
    seconds = {kind: [found["seconds"] for found in runs[kind]] for kind in systems}
    return Row(
        work=program.work,
        figure="waiting for data, torch / headrace",
        value=ratios(seconds["torch"], seconds["headrace"]),
        unit="x",
        target=at_least(1),
        systems=tuple(System(kind, spread(seconds[kind]), "s") for kind in ("headrace", "torch")),
        note=f"{ours['batches']} batches, equal in all values",
    )


def _run(
    program: _Program, folder: Path, size: Size, kind: _Kind, what: Literal["time", "digest"]
) -> dict[str, Any]:
    """Run a program to its end in a process of its own; return what the meter found."""
    if program.file == "jpegs.py":
        place = _pictures(folder / "pictures", size.choose(_PICTURES, 16))
    else:
        place = folder / "place"
    out = folder / "found.json"
    runner = ["-m", "headrace.cli", "run"] if kind == "headrace" else []
    batches, epochs = size.choose(program.batches, 3), size.choose(program.epochs, 1)
    command: list[str | Path] = [sys.executable, *runner, _HERE / "meter.py", out, what]
    command += [_HERE / "programs" / program.file, str(batches), str(epochs), place]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=_variables(), cwd=folder
    )
    if done.returncode:
        raise RuntimeError(f"{program.work} with {kind}'s loader failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert found["kind"] == kind
    return found


def _variables() -> dict[str, str]:
    """Return variables with which the programs find headrace, and look for nothing in a network."""
    source = str(_HERE.parents[2])
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    return {**os.environ, **offline, "PYTHONPATH": os.pathsep.join(paths)}


def _pictures(folder: Path, count: int) -> Path:
    """Write JPEG files of 320 x 240 into two folders, once."""
    if folder.exists():
        return folder
    from PIL import Image

    generator = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (15, 20, 3), np.uint8)  # as smooth as photographs
        Image.fromarray(coarse).resize((320, 240)).save(place / f"{number}.jpg")
    return folder
