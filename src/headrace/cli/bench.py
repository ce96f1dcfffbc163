"""``headrace bench``: run a bench, print its table or its JSON."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.problems import CannotGoOn, WrongUse, need, one_line_errors
from headrace.cli.values import number_option

if TYPE_CHECKING:
    from headrace.bench.harness import Report

bench = typer.Typer(rich_markup_mode="rich")

_Quick = Annotated[bool, typer.Option("--quick", help="Show in seconds that all of it runs.")]
_Full = Annotated[bool, typer.Option("--full", help="Also what takes torch minutes.")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
_Rounds = Annotated[
    int | None, number_option("How often each system runs (default 5; 1 if quick).")
]


@bench.callback(
    invoke_without_command=True,
    epilog="""
Examples:

  [bold]headrace bench inmemory --quick[/]

  [bold]headrace bench workers --json > workers.json[/]

  [bold]headrace bench all[/]
""",
)
def _root(context: typer.Context) -> None:
    """Measure headrace beside torch's loader; without a name, list what can be measured."""
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")


@dataclass(frozen=True)
class _Bench:
    """A bench: what ``--help`` says of it, and the module under ``headrace.bench`` it lives in.

    ``extras`` are pairs of an extra and a module that it brings.
    """

    help: str
    module: str
    extras: tuple[tuple[str, str], ...] = ()
    needs_gpu: bool = False


_BENCHES = {
    "inmemory": _Bench(
        "Batches of data in memory: throughput, first batch, memory (about 2 minutes).", "inmemory"
    ),
    "ordinary": _Bench(
        "Ten kinds of dataset as people write them, 80 cells beside torch's loader (3 minutes).",
        "ordinary",
    ),
    "workers": _Bench(
        "Batches made by worker processes: throughput, start, end (some minutes).", "workers"
    ),
    "threads": _Bench(
        "Worker threads beside loops that do nothing but the work (about a minute).", "threads"
    ),
    "auto": _Bench('num_workers="auto" beside every fixed setting (about 2 minutes).', "auto"),
    "batching": _Bench(
        "Length buckets, packed rows, weights: padding, planning, draws (about a minute, 4 GB).",
        "batching",
    ),
    "sources": _Bench(
        "Tables, images and text from files (some minutes, 1 GB of disk).",
        "sources",
        (
            ("tables", "polars"),
            ("tables", "pyarrow"),
            ("images", "simplejpeg"),
            ("images", "PIL"),
            ("demo", "sklearn"),
        ),
    ),
    "shards": _Bench(
        "JPEGs in tar shards, on disk and in an object store (some minutes, 1 GB of disk).",
        "shards",
        (
            ("bench", "webdataset"),
            ("bench", "moto"),
            ("remote", "obstore"),
            ("images", "simplejpeg"),
            ("images", "PIL"),
            ("demo", "sklearn"),
        ),
    ),
    "tokens": _Bench(
        "Blocks of a mapped corpus of tokens, and documents packed (about a minute, 200 MB).",
        "tokens",
    ),
    "order": _Bench(
        "Shuffles of any size, the cost of a state, resuming at any step (about a minute).", "order"
    ),
    "train": _Bench(
        "The Trainer beside the same loop written by hand (about a minute).",
        "train",
        (("train", "lightning_fabric"),),
    ),
    "libraries": _Bench(
        "Unmodified programs of Lightning, transformers, PyTorch Geometric and timm under "
        "`headrace run` (some minutes).",
        "libraries",
    ),
    "device": _Bench(
        "Copies to a CUDA device: of the link, behind a step, every value (about a minute).",
        "device",
        needs_gpu=True,
    ),
}


def _register(name: str, about: _Bench) -> None:
    @bench.command(
        name,
        help=about.help,
        epilog=f"Examples:  [bold]headrace bench {name}[/]   "
        f"[bold]headrace bench {name} --json > {name}.json[/]",
    )
    def measure(
        quick: _Quick = False, full: _Full = False, rounds: _Rounds = None, as_json: _Json = False
    ) -> None:
        with one_line_errors(f"headrace bench {name}"):
            _run([name], quick=quick, full=full, rounds=rounds, as_json=as_json)


for _name, _about in _BENCHES.items():
    _register(_name, _about)


@bench.command("all", epilog="Example:  [bold]headrace bench all --json > figures.json[/]")
def all_benches(
    quick: _Quick = False, full: _Full = False, rounds: _Rounds = None, as_json: _Json = False
) -> None:
    """Measure all of them, one after the other."""
    with one_line_errors("headrace bench all"):
        _run(_all_that_run_here(), quick=quick, full=full, rounds=rounds, as_json=as_json)


def _all_that_run_here() -> list[str]:
    if _sees_gpu():
        return list(_BENCHES)
    left_out = [name for name, about in _BENCHES.items() if about.needs_gpu]
    print(f"left out, for want of a CUDA device: {', '.join(left_out)}", file=sys.stderr)
    return [name for name in _BENCHES if name not in left_out]


def _sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _run(
    names: Sequence[str], *, quick: bool, full: bool, rounds: int | None, as_json: bool
) -> None:
    if rounds is not None and rounds < 1:
        raise WrongUse(f"--rounds must be at least 1, not {rounds}")
    if quick and full:
        raise WrongUse("--quick and --full exclude each other")
    need("bench", "psutil")
    from headrace.bench.harness import Size

    size = Size(rounds=rounds or (1 if quick else 5), quick=quick, full=full)
    reports = []
    for name in names:
        for extra, module in _BENCHES[name].extras:
            need(extra, module)
        if _BENCHES[name].needs_gpu and not _sees_gpu():
            raise CannotGoOn("needs a CUDA device, and torch sees none here")
        measure = import_module(f"headrace.bench.{_BENCHES[name].module}").measure
        reports.append(measure(size, _say))
        if not as_json:
            _print_table(reports[-1])
    if as_json:
        print(json.dumps({"reports": [report.as_dict() for report in reports]}, indent=2))
    if any(report.failed for report in reports):
        raise typer.Exit(1)


def _say(message: str) -> None:
    # Not a spinner: its thread would take part in what is measured.
    print(f"measuring: {message}", file=sys.stderr)


def _print_table(report: "Report") -> None:
    from rich.console import Console

    from headrace.bench.table import print_report

    print_report(report, Console(highlight=False))
