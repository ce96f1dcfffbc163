"""``headrace bench``: run a bench, print its table or its JSON."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.problems import WrongUse, need, one_line_errors
from headrace.cli.values import number_option

if TYPE_CHECKING:
    from headrace.bench.harness import Report, Say, Size

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


@bench.command(
    epilog="Examples:  [bold]headrace bench inmemory[/]   "
    "[bold]headrace bench inmemory --json > inmemory.json[/]"
)
def inmemory(quick: _Quick = False, rounds: _Rounds = None, as_json: _Json = False) -> None:
    """Batches of data in memory: throughput, first batch, memory (about 2 minutes)."""
    with one_line_errors("headrace bench inmemory"):
        _run(["inmemory"], quick=quick, full=False, rounds=rounds, as_json=as_json)


@bench.command(
    epilog="Examples:  [bold]headrace bench workers[/]   "
    "[bold]headrace bench workers --json > workers.json[/]"
)
def workers(
    quick: _Quick = False, full: _Full = False, rounds: _Rounds = None, as_json: _Json = False
) -> None:
    """Batches made by worker processes: throughput, start, end (some minutes)."""
    with one_line_errors("headrace bench workers"):
        _run(["workers"], quick=quick, full=full, rounds=rounds, as_json=as_json)


@bench.command(
    epilog="Examples:  [bold]headrace bench batching[/]   "
    "[bold]headrace bench batching --json > batching.json[/]"
)
def batching(quick: _Quick = False, rounds: _Rounds = None, as_json: _Json = False) -> None:
    """Length buckets, packed rows, weights: padding, planning, draws (about a minute, 4 GB)."""
    with one_line_errors("headrace bench batching"):
        _run(["batching"], quick=quick, full=False, rounds=rounds, as_json=as_json)


@bench.command(
    epilog="Examples:  [bold]headrace bench order[/]   "
    "[bold]headrace bench order --json > order.json[/]"
)
def order(
    quick: _Quick = False, full: _Full = False, rounds: _Rounds = None, as_json: _Json = False
) -> None:
    """Shuffles of any size, the cost of a state, resuming at any step (about a minute)."""
    with one_line_errors("headrace bench order"):
        _run(["order"], quick=quick, full=full, rounds=rounds, as_json=as_json)


@bench.command("all", epilog="Example:  [bold]headrace bench all --json > figures.json[/]")
def all_benches(
    quick: _Quick = False, full: _Full = False, rounds: _Rounds = None, as_json: _Json = False
) -> None:
    """Measure all of them, one after the other."""
    with one_line_errors("headrace bench all"):
        _run(list(_measures()), quick=quick, full=full, rounds=rounds, as_json=as_json)


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
    measures = _measures()
    reports = []
    for name in names:
        reports.append(measures[name](size, _say))
        if not as_json:
            _print_table(reports[-1])
    if as_json:
        print(json.dumps({"reports": [report.as_dict() for report in reports]}, indent=2))


def _measures() -> "dict[str, Callable[[Size, Say], Report]]":
    from headrace.bench import batching, inmemory, order, workers

    return {
        "inmemory": inmemory.measure,
        "workers": workers.measure,
        "batching": batching.measure,
        "order": order.measure,
    }


def _say(message: str) -> None:
    # Not a spinner: its thread would take part in what is measured.
    print(f"measuring: {message}", file=sys.stderr)


def _print_table(report: "Report") -> None:
    from rich.console import Console

    from headrace.bench.table import print_report

    print_report(report, Console(highlight=False))
